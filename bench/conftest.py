"""Benches import their neighbours by name; no bench changes a global setting."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
