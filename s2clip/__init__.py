"""s2clip: open-vocabulary segmentation without training."""

__version__ = "0.1.0"
