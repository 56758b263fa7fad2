"""Online dictionary learning with forgetting (Mairal, Bach, Ponce, Sapiro, Online Learning for Matrix Factorization and
Sparse Coding, JMLR 11, 2010).

After every batch the running sums A and B are aged by a factor β, the batch's mean is added, and one sweep of block
coordinates moves the atoms. Ages:
    power     β = (1 - 1/t)^rate at update t (section 3.4.2): a larger rate forgets faster, 0 never
    batch     β = (θ+1-η)/(θ+1) with batches of η rows, θ = tη while t < η, else η² + t - η (section 3.4.3)
    constant  β = rate: follows a source that drifts
Independently of that, sums older than the previous pass can be dropped: they belong to codes of a worse dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..base import TRAINING, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .coding import ATOMS, Coded
from .steps import coordinate_sweep
from .sums import MomentSums

MOMENTS, CROSS = f"{TRAINING}moments", f"{TRAINING}cross"
OLD_MOMENTS, OLD_CROSS = f"{TRAINING}moments_before", f"{TRAINING}cross_before"
UPDATES, SEEN = f"{TRAINING}updates", f"{TRAINING}seen"
USES, WINDOW = f"{TRAINING}uses", f"{TRAINING}window"
FAIR_USES = 800.0


@dataclass(frozen=True, kw_only=True)
class Online(Coded):
    """Online dictionary learning (Mairal et al.): running sums that forget, one sweep over the atoms per batch."""

    coder: Literal["omp", "lasso", "threshold"] = "lasso"
    """How codes are found."""
    forgetting: Literal["power", "batch", "constant"] = "power"
    """How running sums age at update t: by (1 - 1/t)^rate, as the paper does for batches, or by `rate` each time."""
    rate: float = 5.0
    """ρ of `power`, β of `constant`. On patches of photographs ρ = 5 needs less than half of the batches of `batch`."""
    recent: bool = True
    """Drop sums that are older than the previous pass."""
    constraint: Literal["unit", "ball"] = "unit"
    """Atoms of norm 1, or at most 1."""
    nonnegative_atoms: bool = False
    """Atoms without negative entries."""
    sweeps: int = 1
    """Sweeps over the atoms in an update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forgetting not in ("power", "batch", "constant"):
            raise ModelError(f"forgetting={self.forgetting!r}: choose power, batch or constant")
        if not self.rate >= 0 or (self.forgetting == "constant" and not self.rate < 1):
            raise ModelError(f"rate={self.rate}: choose 0 or more, with forgetting=constant below 1 (for example 0.95)")
        if self.constraint not in ("unit", "ball"):
            raise ModelError(f"constraint={self.constraint!r}: choose unit or ball")
        if self.sweeps < 1:
            raise ModelError(f"sweeps={self.sweeps}: at least one is needed")

    def schedule(self) -> Schedule:
        """Five passes in batches of 512 rows."""
        return Schedule(passes=5, update_every="batch", batch_rows=512)

    @property
    def positive_atoms(self) -> bool:
        """As the setting says."""
        return self.nonnegative_atoms

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """Distinct rows; their absolute values where atoms may not be negative."""
        atoms = super().start_atoms(probe, generator)
        return atoms.abs() if self.nonnegative_atoms else atoms

    def start_state(self, probe: Probe) -> Params:
        """No sums yet."""
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=probe.mean.device)  # noqa: E731
        old = {OLD_MOMENTS: zeros(self.atoms, self.atoms), OLD_CROSS: zeros(self.atoms, probe.dim)}
        return {
            MOMENTS: zeros(self.atoms, self.atoms),
            CROSS: zeros(self.atoms, probe.dim),
            **(old if self.recent else {}),
            UPDATES: zeros(()),
            SEEN: zeros(()),
            USES: zeros(self.atoms),
            WINDOW: zeros(()),
        }

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """Age the running sums, add the batch's, sweep; replace atoms once enough rows have gone by to judge them."""
        assert isinstance(stats, MomentSums)
        rows = float(stats.rows)
        if rows == 0:
            return params
        new = self._aged(params, stats, rows, stage)
        moments, cross = new[MOMENTS], new[CROSS]
        if self.recent:
            moments, cross = moments + new[OLD_MOMENTS], cross + new[OLD_CROSS]
        atoms = coordinate_sweep(
            new[ATOMS].double(),
            moments,
            cross,
            length=self.constraint,
            nonnegative=self.positive_atoms,
            sweeps=self.sweeps,
        )
        new |= {USES: new[USES] + stats.counts, WINDOW: new[WINDOW] + rows}
        replaced = torch.zeros_like(stats.counts, dtype=torch.bool)
        entries = float(new[USES].sum()) / float(new[WINDOW])
        enough = FAIR_USES * self.atoms / max(entries, 1e-3)
        if float(new[WINDOW]) >= min(enough, max(stage.rows, rows)):
            atoms, replaced = self.renewed(atoms, new[USES], moments.diagonal(), stats, stage)
            new |= self._without(new, replaced)
        return {**new, ATOMS: atoms.to(self.torch_dtype), **self.search_state(stats, replaced)}

    def _aged(self, params: Params, stats: MomentSums, rows: float, stage: Stage) -> Params:
        """`params` with the running sums aged and the batch's mean added; a new pass starts new sums."""
        updates = params[UPDATES] + 1
        factor = self._factor(float(updates), rows)
        new = {**params, UPDATES: updates, SEEN: params[SEEN] + rows}
        new[MOMENTS] = torch.add(stats.moments / rows, params[MOMENTS], alpha=factor)
        new[CROSS] = torch.add(stats.cross / rows, params[CROSS], alpha=factor)
        if self.recent:
            new[OLD_MOMENTS], new[OLD_CROSS] = params[OLD_MOMENTS] * factor, params[OLD_CROSS] * factor
            if stage.rows and float(new[SEEN]) >= stage.rows:
                new |= {OLD_MOMENTS: new[MOMENTS], OLD_CROSS: new[CROSS], SEEN: torch.zeros_like(new[SEEN])}
                new |= {MOMENTS: torch.zeros_like(new[MOMENTS]), CROSS: torch.zeros_like(new[CROSS])}
        return new

    def _factor(self, updates: float, rows: float) -> float:
        """β of this update."""
        if self.forgetting == "constant":
            return self.rate
        if self.forgetting == "power":
            return (1 - 1 / updates) ** self.rate
        theta = updates * rows if updates < rows else rows * rows + updates - rows
        return (theta + 1 - rows) / (theta + 1)

    def _without(self, params: Params, replaced: Tensor) -> Params:
        """Running sums without the replaced atoms, to which nothing of the old ones' sums belongs; a new window."""
        keep = (~replaced).double()
        out = {USES: torch.zeros_like(params[USES]), WINDOW: torch.zeros_like(params[WINDOW])}
        for name in (MOMENTS, OLD_MOMENTS):
            if name in params:
                out[name] = params[name] * keep * keep[:, None]
        for name in (CROSS, OLD_CROSS):
            if name in params:
                out[name] = params[name] * keep[:, None]
        return out

    def statistics_numbers(self, dim: int) -> int:
        """A and B; the running ones stand among the parameters, which hold as much again, twice."""
        return 2 * self.atoms * (self.atoms + dim)
