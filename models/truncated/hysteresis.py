"""Hysteresis of Expectation Truncation: a point keeps its candidates where those chosen now explain it worse.

Choosing candidates anew can lower the free energy. With the better of two lists, the old one and the new one, no
point's log Z falls at fixed parameters, so that EM is monotone at temperature 1 without a data cut, as for any
variational E-step (Neal & Hinton, A view of the EM algorithm that justifies incremental, sparse, and other variants,
1998).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..base import Batch

KEPT = "candidates"
"""Name of the lists among what a model keeps of rows, and in a batch's memo."""


class Chosen(Protocol):
    """A posterior over states inside of candidates."""

    @property
    def candidates(self) -> Tensor: ...
    @property
    def log_z(self) -> Tensor: ...


Q = TypeVar("Q", bound=Chosen)


def settled(posterior: Callable[[Tensor | None], Q], batch: Batch, *, hysteresis: bool) -> Q:
    """The posterior by the batch's memo's candidates, or those chosen now; with `hysteresis` the better of those and
    the kept ones, which are kept from now on.

    `posterior(candidates)`: chooses them itself for None.
    """
    found = posterior(batch.memo.get(KEPT))
    if not hysteresis:
        return found
    if KEPT in batch.kept:
        before = posterior(batch.kept[KEPT].long())
        found = _picked(before.log_z >= found.log_z, before, found)
    batch.kept[KEPT] = found.candidates.int()
    return found


def _picked(first: Tensor, a: Any, b: Any) -> Any:
    """Rows of `a` where `first` [n], else of `b`, in all tensors of a (nested) dataclass."""
    if isinstance(a, Tensor):
        return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b) if a.ndim and len(a) == len(first) else a
    if is_dataclass(a):
        return type(a)(*(_picked(first, getattr(a, f.name), getattr(b, f.name)) for f in fields(a)))
    return a
