"""The version, a leaf that packaging reads."""

__version__ = "0.1.0"
