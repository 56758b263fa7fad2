"""Where a dictionary starts: at distinct rows of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pursuit.problem import SMALLEST_NORM
from .steps import normalised

FAINT = 0.05
ALIKE = 0.95


def faint_energy(sample: Tensor) -> float:
    """‖x‖² below which a row of `sample` [m, D] counts as faint: the 5th percentile of the rows that are not zero."""
    energy = sample.square().sum(1)
    energy = energy[energy > SMALLEST_NORM**2]
    return float(torch.quantile(energy, FAINT)) if len(energy) else 0.0


def distinct_rows(sample: Tensor, atoms: int, generator: torch.Generator) -> Tensor:
    """`atoms` unit rows [H, D] float64 drawn from `sample` [m, D].

    Rows that are zero or faint, or whose cosine with a row drawn before exceeds 0.95, are passed over; what is
    missing then (fewer rows than atoms, many duplicates) are random directions.
    """
    order = torch.randperm(len(sample), generator=generator).to(sample.device)
    shuffled = sample[order].double()
    energy = shuffled.square().sum(1)
    units, _ = normalised(shuffled[(energy >= faint_energy(sample)) & (energy > SMALLEST_NORM**2)])
    chosen = units[:0]
    for block in units.split(max(64, atoms)):
        if len(chosen) == atoms:
            break
        block = block[((block @ chosen.T).abs() <= ALIKE).all(1)]
        chosen = torch.cat([chosen, _apart(block)])[:atoms]
    missing = atoms - len(chosen)
    drawn = torch.randn(missing, sample.shape[1], generator=generator, dtype=torch.float64).to(sample.device)
    return torch.cat([chosen, normalised(drawn)[0]])


def _apart(units: Tensor) -> Tensor:
    """The rows that are not alike to an earlier row that was kept."""
    near = (units @ units.T).abs() > ALIKE
    kept = torch.ones(len(units), dtype=torch.bool, device=units.device)
    for i in near.triu(1).any(1).nonzero().flatten().tolist():
        if kept[i]:
            kept[i + 1 :] &= ~near[i, i + 1 :]
    return units[kept]
