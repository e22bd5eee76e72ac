"""The page of `s2clip app`, as a script: python examples/app.py [--model tiny] [--port 7860]; its blocks: `Page`."""

import sys

from s2clip.cli import main
from s2clip.cli.page import Page

__all__ = ["Page"]

if __name__ == "__main__":
    main(["app", *sys.argv[1:]])
