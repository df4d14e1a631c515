"""dspark: speculative decoding with DSpark heads on your own machine."""

__version__ = "0.1.0"
