"""A model of your own: k-means with an additive statistic, learned on any engine.

    sparsefleet learn --data demo/patches.zarr --model own_model:KMeans --atoms 32 --engine mpi --workers 2

(run where this file lies, or with --module-path). Every row has one active atom, its nearest centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sparsefleet.models import Batch, Codes, Model, Params, Probe, Schedule, Stage, Stats
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Assigned(Stats):
    """Sums over the rows of each centre."""

    sums: Tensor
    """[D, H]."""
    counts: Tensor
    """[H]."""
    error: Tensor
    """Σ ‖y - nearest centre‖²."""


@dataclass(frozen=True, kw_only=True)
class KMeans(Model):
    """k-means (Lloyd): atoms are centres."""

    def schedule(self) -> Schedule:
        return Schedule(passes=20, update_every="pass", batch_rows=8192)

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        chosen = torch.randint(probe.sample.shape[0], (self.atoms,), generator=generator)
        return {"W": probe.sample[chosen].T.contiguous()}

    def _nearest(self, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = params["W"].to(x.dtype)
        distance = (x * x).sum(1, keepdim=True) - 2 * x @ centres + (centres * centres).sum(0)
        best = distance.min(1)
        return best.indices, best.values

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> Assigned:
        index, error = self._nearest(params, batch.x)
        x = batch.x.double()
        sums = torch.zeros(self.atoms, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, index, x)
        counts = torch.bincount(index, minlength=self.atoms).double()
        return Assigned(sums.T.contiguous(), counts, error.double().sum())

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        assert isinstance(stats, Assigned)
        means = stats.sums / stats.counts.clamp(min=1)
        return {"W": torch.where(stats.counts > 0, means, params["W"])}

    def encode(self, params: Params, batch: Batch) -> Codes:
        index, _ = self._nearest(params, batch.x)
        return Codes(index[:, None].int(), torch.ones_like(batch.x[:, :1]))

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        assert isinstance(stats, Assigned)
        return {"error": float(stats.error) / max(float(stats.counts.sum()), 1.0)}

    def dictionary(self, params: Params) -> Tensor:
        return params["W"]

    def memory(self, rows: int, dim: int) -> int:
        return 8 * (rows * (self.atoms + 2 * dim) + 4 * self.atoms * dim)
