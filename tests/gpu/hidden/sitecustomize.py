"""For rehearsals: packages that a bare machine lacks are not found, though they are installed here."""

import os
from importlib.machinery import PathFinder

ABSENT = frozenset(os.environ.get("S2CLIP_ABSENT", "").split(","))
"""Top-level modules, with commas between."""


class Search:
    """PathFinder.find_spec without the absent; an object, because pytest keeps it as a class's attribute."""

    original = PathFinder.find_spec

    def __call__(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.original(name, path, target)


PathFinder.find_spec = Search()
