"""Lasso by homotopy and coordinate descent, compiled, for CPUs. Its torch twin is `models.pursuit.fista.fista`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .threads import scratch


def lasso_rows(
    b: Tensor,
    gram: Tensor,
    energy: Tensor,
    penalty: Tensor,
    ridge: float,
    *,
    nonnegative: bool,
    tolerance: float,
    path: bool,
    most: int,
    sweeps: int,
    warm: Tensor,
    start: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve every row on its own; only where `native.usable`.

    Args:
        b: [n, H] x·D.
        gram: [H, H].
        energy: [n] ‖x‖².
        penalty: [H] λ, positive.
        ridge: λ₂.
        nonnegative: demand a >= 0.
        tolerance: duality gap to reach, as a share of ½‖x‖².
        path: follow the homotopy first; else coordinate descent from the start on.
        most: active atoms of the path at which descent takes over.
        sweeps: of descent.
        warm: [n, m] int32 distinct atoms (-1: none) from which descent begins.
        start: [n, m] their coefficients.

    Returns:
        indices [n, k] int32 ascending, -1 where unused, values [n, k], k of the fullest code; status [n] uint8,
        error [n].
    """
    n, count = b.shape
    indices = scratch("indices", (n, count), b, torch.int32)
    values = scratch("values", (n, count), b)
    counts = torch.empty(n, dtype=torch.int64)
    status, error = torch.empty(n, dtype=torch.uint8), b.new_empty(n)
    native.call(
        "lasso",
        *(b, n, count, gram.contiguous(), penalty.contiguous(), energy.contiguous()),
        *(float(ridge), float(tolerance), int(nonnegative), int(path), most, sweeps),
        *(warm.contiguous(), start.contiguous(), warm.shape[1], indices, values, counts, status, error),
    )
    width = int(counts.max()) if n else 0
    used = torch.arange(width) < counts[:, None]
    return torch.where(used, indices[:, :width], -1), torch.where(used, values[:, :width], 0), status, error
