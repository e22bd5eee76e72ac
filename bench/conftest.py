"""Benches import their neighbours by name; no bench changes a global setting."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]

import profile  # noqa: E402, F401  the standard library's, before this folder, which has one too, is looked through

sys.path.insert(0, HERE)
