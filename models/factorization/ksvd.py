"""Approximate K-SVD in the form that adds: one power step for every atom at once (Rubinstein, Zibulevsky, Elad,
Technion CS-2008-08; Irofti, Dumitrescu, parallel AK-SVD, 2014).

With the residual R = X - Dᵀa and an atom's coefficients a_j, the first power step of K-SVD turns atom j into
d_j + Σ a_j r / Σ a_j², normalised. Done for all atoms from the same residual it needs one sum of H D numbers instead
of H (H + D), and no worker ever holds all rows.

Not here: K-SVD that visits atoms one after the other, in which every atom waits for the sum of the one before: H
reductions a pass, each with its own vector. Where all rows are in one place, `rank_one.py` does that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..base import TRAINING, Batch, Params, Probe, Stats
from ..schedule import Schedule, Stage
from .coding import ATOMS, Coded, extended
from .steps import normalised
from .sums import CodingSums, ResidualSums, cross_of, power_of

ERROR = f"{TRAINING}error"


@dataclass(frozen=True, kw_only=True)
class KSVD(Coded):
    """K-SVD, approximate and parallel: one power step of all atoms at once, after every pass over the data."""

    def schedule(self) -> Schedule:
        """Forty passes."""
        return Schedule(passes=40, update_every="pass", batch_rows=4096)

    def start_state(self, probe: Probe) -> Params:
        """The error per row of the pass before; -1 while it is unknown."""
        return {ERROR: torch.tensor(-1.0, dtype=torch.float64, device=probe.mean.device)}

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> CodingSums:
        """Σ a∘a, Σ a rᵀ and the common sums, under the rows' codes."""
        codes, residual = self.coded(params, batch)
        common = self.common_sums(params, batch, codes, residual, stage)
        return extended(ResidualSums, common, power_of(codes, self.atoms), cross_of(codes, residual, self.atoms))

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """One step for all atoms. Where the pass before it raised the error, the step is divided by the mean number
        of entries in a code, by which at most simultaneous steps overshoot."""
        assert isinstance(stats, ResidualSums)
        rows = float(stats.rows)
        if rows == 0:
            return params
        error = stats.error / rows
        damping = max(1.0, float(stats.counts.sum()) / rows) if 0 <= params[ERROR] < error else 1.0
        atoms = params[ATOMS].double()
        used = stats.power > 0
        step = stats.pull / torch.where(used, stats.power, torch.ones_like(used, dtype=torch.float64))[:, None]
        stepped, good = normalised(atoms + step / damping)
        atoms, replaced = self.renewed(stepped.where(good[:, None], atoms), stats.counts, stats.power, stats, stage)
        # After a replacement the error says nothing about the step.
        known = torch.full_like(error, -1.0) if bool(replaced.any()) else error
        return {**params, ATOMS: atoms.to(self.torch_dtype), ERROR: known, **self.search_state(stats, replaced)}

    def statistics_numbers(self, dim: int) -> int:
        """Σ a∘a and Σ a rᵀ."""
        return self.atoms * (dim + 1)
