"""The version of fera."""

__version__ = "0.1.0"
