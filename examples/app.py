"""The page of `s2clip app`, as a script: python examples/app.py [--model tiny] [--port 7860]"""

import sys

from s2clip.cli import main

main(["app", *sys.argv[1:]])
