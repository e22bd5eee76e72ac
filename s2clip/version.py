"""The one place of the version: the package, its wheel and run.json read it here."""

__version__ = "0.1.0"
