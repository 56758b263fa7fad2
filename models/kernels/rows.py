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
