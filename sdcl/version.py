"""The version of this code, written into checkpoints."""

__version__ = "0.2.0"
