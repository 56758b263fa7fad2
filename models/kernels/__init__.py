"""The few hot spots that are compiled for CPUs, each behind a function with a torch twin that runs anywhere."""

from .bags import Gradients, add_gradients, decode, inner_products
from .nnls import nnls
from .rows import pack, top_k
from .steps import Adam, Moments, Tangent, tangent
from .sums import code_cross, code_moments, sweep_block

__all__ = [
    "Adam",
    "Gradients",
    "Moments",
    "Tangent",
    "add_gradients",
    "code_cross",
    "code_moments",
    "decode",
    "inner_products",
    "nnls",
    "pack",
    "sweep_block",
    "tangent",
    "top_k",
]
