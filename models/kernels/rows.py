"""Selection along the rows of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def top_k(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, largest first; of equal entries the one with the lower index comes first.

    Args:
        u: [n, H] without NaN, k <= H.
        k: Entries to keep.

    Returns:
        values [n, k] and indices [n, k] int64.
    """
    if not native.usable(u):
        values, indices = u.sort(dim=1, descending=True, stable=True)
        return values[:, :k].contiguous(), indices[:, :k].contiguous()
    u = u.contiguous()
    values = u.new_empty(u.shape[0], k)
    indices = torch.empty(u.shape[0], k, dtype=torch.int64)
    native.call("top_k", u, u.shape[0], u.shape[1], k, values, indices)
    return values, indices


def pack(u: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The entries above 0 of each row (`signed`: other than 0) in slots, as many as the fullest row needs.

    Args:
        u: [n, H] without NaN.
        signed: whether entries below 0 are kept.

    Returns:
        values [n, w], 0 in empty slots, and indices [n, w] int64, 0 there; both in the order of the columns.
    """
    n, width = u.shape
    if native.usable(u) and u.numel():
        u = u.contiguous()
        counts = torch.empty(n, dtype=torch.int64)
        native.call("count", u, n, width, int(signed), counts)
        slots = int(counts.max())
        values, indices = u.new_empty(n, slots), torch.empty(n, slots, dtype=torch.int64)
        native.call("pack", u, n, width, slots, int(signed), values, indices)
        return values, indices
    kept = u != 0 if signed else u > 0
    counts = kept.sum(1)
    slots = int(counts.max()) if n else 0
    row, column = kept.nonzero(as_tuple=True)
    slot = torch.arange(row.numel(), device=u.device) - (counts.cumsum(0) - counts)[row]
    values, indices = u.new_zeros(n, slots), torch.zeros(n, slots, dtype=torch.int64, device=u.device)
    values[row, slot], indices[row, slot] = u[row, column], column
    return values, indices
