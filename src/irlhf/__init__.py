"""Reward functions from what people do and from what people prefer, with one likelihood."""

__version__ = "0.1.0"
