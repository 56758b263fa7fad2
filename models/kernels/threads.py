"""Blocks of work on all of torch's threads, each block on one thread with all that it calls.

A compiled kernel and torch's products bring a team of threads each; used in turn, the one team waits spinning while the
other computes. Dealing whole blocks to threads that compute alone avoids that, and keeps a block in one core's cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

P = TypeVar("P")
R = TypeVar("R")


def on_threads(work: Callable[[P], R], pieces: Sequence[P]) -> list[R]:
    """`[work(piece) for piece in pieces]`, the pieces dealt to torch's threads; the first error is raised.

    Args:
        work: must release Python's lock most of the time, as torch and the compiled kernels do.
        pieces: what to work on; results come in their order.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        return [work(piece) for piece in pieces]
    return list(_pool(threads, os.getpid()).map(work, pieces))


def scratch(name: str, shape: tuple[int, int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """This thread's buffer called `name`, uninitialised, as large as asked for; the next call gives the same memory.

    Blocks allocated and freed in turn between results that stay would leave holes that the C library does not reuse.
    """
    dtype, count = dtype or like.dtype, shape[0] * shape[1]
    held = _held.__dict__.get(name)
    if held is None or held.dtype != dtype or held.numel() < count:
        held = _held.__dict__[name] = torch.empty(count, dtype=dtype)
    return held[:count].view(shape)


_held = threading.local()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # A forked process inherits the pool, but not its threads: it needs one of its own.
    del process
    pool = ThreadPoolExecutor(threads, "sparsefleet-block", initializer=torch.set_num_threads, initargs=(1,))
    # Start every thread now, then set the number again: a thread's own setting is also the default of new threads.
    list(pool.map(lambda _: None, range(threads)))
    torch.set_num_threads(threads)
    return pool
