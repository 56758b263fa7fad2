"""The compiled kernels, where the package was built with a C++ compiler.

They are plain C functions in one shared library, called with the addresses of contiguous CPU tensors. Nothing else
crosses: the library knows neither Python nor torch, so that one build serves all versions of both.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

SWITCH = "SPARSEFLEET_KERNELS"
"""Environment variable: `torch` turns the compiled kernels off."""
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


@cache
def library() -> ctypes.CDLL | None:
    """The shared library, or None where it was not built or is switched off."""
    if os.environ.get(SWITCH, "") == "torch":
        return None
    found = find_spec("sparsefleet.models.kernels._native")
    return None if found is None or found.origin is None else ctypes.CDLL(found.origin)


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can work on these tensors: on the CPU, float32 or float64, and built."""
    return all(t.device.type == "cpu" and t.dtype in SUFFIX for t in tensors) and library() is not None


def call(name: str, *arguments: Tensor | int | float) -> int:
    """Call `NAME_f32` or `NAME_f64`, by the dtype of the first tensor, with all of torch's threads.

    Args:
        name: Of the function without the suffix; its last parameter is the number of threads.
        arguments: Contiguous tensors, passed by address; int as int64, float as double.

    Returns:
        What the function returns, 0 for success.
    """
    lib = library()
    assert lib is not None
    first = next(a for a in arguments if isinstance(a, Tensor))
    function = getattr(lib, f"{name}_{SUFFIX[first.dtype]}")
    function.restype = ctypes.c_int64
    return int(function(*map(_passed, arguments), ctypes.c_int64(torch.get_num_threads())))


def _passed(argument: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
