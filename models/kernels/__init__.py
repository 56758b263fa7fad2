"""The few hot spots that are compiled for CPUs, each behind a function with a torch twin that runs anywhere."""

from .bags import Gradients, add_gradients, decode, inner_products
from .rows import pack, top_k
from .steps import Adam, Moments, Tangent, tangent

__all__ = [
    "Adam",
    "Gradients",
    "Moments",
    "Tangent",
    "add_gradients",
    "decode",
    "inner_products",
    "pack",
    "tangent",
    "top_k",
]
