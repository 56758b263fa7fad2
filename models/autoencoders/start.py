"""Where an autoencoder starts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Probe

BLOCK = 4096
"""Rows drawn at once."""


def geometric_median(rows: Tensor, *, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point with the smallest summed distance to `rows` [m, D], by Weiszfeld's iteration from their mean.

    Stops once a step is below `tolerance` of the median distance. Distances below a thousandth of the median distance
    count as that, so that a row at the iterate neither gives NaN nor holds the iterate there.
    """
    centre = rows.mean(0)
    for _ in range(iterations):
        distance = torch.linalg.vector_norm(rows - centre, dim=1)
        spread = distance.median()
        if spread == 0:  # half of all rows are this point: no other is closer to all
            break
        weight = 1 / distance.clamp(min=1e-3 * float(spread))
        new = (weight @ rows) / weight.sum()
        moved = torch.linalg.vector_norm(new - centre)
        centre = new
        if moved <= tolerance * spread:
            break
    return centre


def root_dim_scale(rows: Tensor) -> float:
    """The factor that gives `rows` [m, D] a mean norm of sqrt(D); 1 where all rows are zero."""
    mean = float(torch.linalg.vector_norm(rows, dim=1).mean())
    return rows.shape[1] ** 0.5 / mean if mean > 0 else 1.0


def unit_rows(weights: Tensor) -> Tensor:
    """`weights` [H, D] with rows of norm 1 (rows of zeros stay)."""
    norm = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    return weights / norm.clamp(min=torch.finfo(weights.dtype).tiny)


def random_rows(rows: int, dim: int, generator: torch.Generator, held: slice = slice(None)) -> Tensor:
    """Those of [rows, dim] that are `held`, float32, directions drawn evenly, norm 1. In float32 so that all dtypes
    start alike; all rows are drawn, block by block, so that every slice has the rows that the whole has there."""
    first, last, _ = held.indices(rows)
    out = torch.empty(last - first, dim, device=generator.device)
    # torch draws 16 numbers at once; the last block takes the rest.
    blocks = max(1, rows // BLOCK)
    for at in range(0, blocks * BLOCK, BLOCK):
        end = at + BLOCK if at < (blocks - 1) * BLOCK else rows
        drawn = unit_rows(torch.randn(end - at, dim, generator=generator, device=generator.device))
        low, high = max(at, first), min(end, last)
        if low < high:
            out[low - first : high - first] = drawn[low - at : high - at]
    return out


def columns(probe: Probe, arrays: int) -> list[Tensor]:
    """The sample's columns, array by array of those that make up a row."""
    widths = probe.widths or (probe.dim // arrays,) * arrays
    return list(probe.sample.split(widths, dim=1))
