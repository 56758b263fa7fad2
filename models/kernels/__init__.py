"""The few hot spots that are compiled for CPUs, each behind a function with a torch twin that runs anywhere."""

from .rows import top_k

__all__ = ["top_k"]
