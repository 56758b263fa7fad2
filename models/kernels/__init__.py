"""The few hot spots that are compiled for CPUs, each behind a function with a torch twin that runs anywhere."""

from .nnls import nnls
from .rows import top_k
from .sums import code_cross, code_moments, sweep_block

__all__ = ["code_cross", "code_moments", "nnls", "sweep_block", "top_k"]
