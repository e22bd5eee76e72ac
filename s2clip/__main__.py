"""`python -m s2clip` is the program `s2clip`."""

from s2clip.cli import main

main(prog_name="s2clip")
