"""Semi-non-negative matrix factorisation with winner-take-all features, and features of features.

x ≈ Fᵀ g with g >= 0 and features F of either sign (Ding, Li, Jordan, IEEE PAMI 32, 2010), of which only the largest
entries are kept after every update (Shafran, Geva et al., Decomposing MLP Activations into Interpretable Features via
Semi-Nonnegative Matrix Factorization, 2025). Cutting entries can raise the error; so the best features so far are what
is published.

Two deviations from the multiplicative updates of those papers. The codes of a row are its non-negative least squares,
solved anew in every pass: they depend on the features alone, no row's code has to be kept between passes, and with
full features the error never rises. A pass then does the work of hundreds of multiplicative ones: features that are to
steer a network are best taken after two or three passes from k-means, while they still point at clusters (measured by
benchmarks/semi_nmf.py). And features have norm 1, their scale lies in the codes: neither the product nor
the winners notice.

The hierarchy treats the features, weighted by how much they are used, as rows of a smaller problem: F₀ ≈ Y₁ F₁ with
Y₁ >= 0, and so on. It is computed with the last update.

Shapes: n rows, D dimensions, H features (atoms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .coding import ATOMS
from .nonnegative import NonnegativeCodes, nonnegative_codes
from .start import distinct_rows
from .steps import least_squares, normalised
from .sums import CodingSums, MomentSums

CURRENT, BEST, POWER = f"{TRAINING}current", f"{TRAINING}best", f"{TRAINING}power"
HIERARCHY = -2 % 2**32


@dataclass(frozen=True, kw_only=True)
class SNMF(NonnegativeCodes):
    """Semi-NMF: features of either sign, of which only the largest entries stay; codes are not negative."""

    share: float = 1.0
    """Share of a feature's entries that are kept, the largest; 1: all."""
    start: Literal["kmeans", "svd", "random", "rows"] = "kmeans"
    """Features start at the centres of 15 Lloyd iterations, at singular vectors, at random, or at distinct rows."""
    levels: tuple[int, ...] = ()
    """Sizes of the hierarchy's levels above the features, falling: (200, 100)."""
    replace: bool = False
    """Whether dead and coherent features are replaced by badly represented rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ModelError(f"share={self.share}: choose above 0, to keep some entries, and at most 1")
        if self.start not in ("kmeans", "svd", "random", "rows"):
            raise ModelError(f"start={self.start!r}: choose kmeans, svd, random or rows")
        sizes = (self.atoms, *self.levels)
        if any(not 1 <= b < a for a, b in pairwise(sizes)):
            raise ModelError(f"levels={list(self.levels)} must fall from below atoms={self.atoms} to at least 1")

    def schedule(self) -> Schedule:
        """Two hundred passes."""
        return Schedule(passes=200, update_every="pass", batch_rows=4096)

    # -- start -----------------------------------------------------------------------------------------------------

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """As `start` says, and only the largest entries."""
        return normalised(self._winners(self._full_start(probe, generator)))[0]

    def _full_start(self, probe: Probe, generator: torch.Generator) -> Tensor:
        if self.start == "random":
            drawn = torch.randn(self.atoms, probe.dim, generator=generator, dtype=torch.float64)
            return normalised(drawn.to(probe.mean.device))[0]
        rows = distinct_rows(probe.sample, self.atoms, generator)
        if self.start == "svd":
            _, _, right = torch.linalg.svd(probe.sample, full_matrices=False)
            # Of the two signs the one that more of the data has; beyond the rank, rows.
            found = right[: self.atoms] * torch.sign((probe.sample @ right[: self.atoms].T).sum(0) + 1e-300)[:, None]
            return torch.cat([found, rows[len(found) :]])
        return _centres(probe.sample, rows) if self.start == "kmeans" else rows

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """Features, twice (the best so far and the current ones), how much the best are used (Σ a∘a [H]), and the
        levels, empty until the last update."""
        params = super().init(probe, generator)
        below = self.atoms
        for level, size in enumerate(self.levels, start=1):
            for name, shape in (("atoms", (size, probe.dim)), ("weights", (below, size))):
                params[f"level{level}/{name}"] = torch.zeros(shape, dtype=self.torch_dtype, device=probe.mean.device)
            below = size
        best = torch.tensor(torch.finfo(torch.float64).max, dtype=torch.float64, device=probe.mean.device)
        return {**params, CURRENT: params[ATOMS].clone(), BEST: best, POWER: best.new_zeros(self.atoms)}

    # -- codes and statistics --------------------------------------------------------------------------------------

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> CodingSums:
        """A, B and the common sums, under the rows' codes for the current features."""
        return super().statistics({**params, ATOMS: self._current(params)}, batch, stage)

    def _current(self, params: Params) -> Tensor:
        # Before the first update a given start is only among the published features.
        return params[ATOMS] if float(params[BEST]) == torch.finfo(torch.float64).max else params[CURRENT]

    # -- update ----------------------------------------------------------------------------------------------------

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """Keep the current features if they are the best so far; then least squares, and only the largest entries."""
        assert isinstance(stats, MomentSums)
        if float(stats.rows) == 0:
            return params
        current = self._current(params)
        better = stats.error < params[BEST]
        new = {
            **params,
            ATOMS: torch.where(better, current, params[ATOMS]),
            BEST: torch.minimum(stats.error, params[BEST]),
            POWER: torch.where(better, stats.moments.diagonal(), params[POWER]),
        }
        wide = current.double()
        fitted, good = normalised(self._winners(least_squares(wide, stats.moments, stats.cross)))
        fitted, replaced = self.renewed(
            fitted.where(good[:, None], wide), stats.counts, stats.moments.diagonal(), stats, stage
        )
        new |= {CURRENT: fitted.to(self.torch_dtype), **self.search_state(stats, replaced)}
        if self.levels and stage.step + 1 >= stage.steps:
            new |= self._hierarchy(new[ATOMS].double() * new[POWER].sqrt()[:, None], stage)
        return new

    def _winners(self, features: Tensor) -> Tensor:
        keep = math.ceil(self.share * features.shape[1])
        if keep == features.shape[1]:
            return features
        at = features.abs().topk(keep, dim=1).indices
        return torch.zeros_like(features).scatter_(1, at, features.gather(1, at))

    def _hierarchy(self, features: Tensor, stage: Stage) -> Params:
        """Every level's features and the weights [H below, H] >= 0 that make those below."""
        out: Params = {}
        for level, size in enumerate(self.levels, start=1):
            upper, weights = factorise(features, size, stage.generator(HIERARCHY, level), share=self.share)
            out[f"level{level}/atoms"] = upper.to(self.torch_dtype)
            out[f"level{level}/weights"] = weights.to(self.torch_dtype)
            features = upper * torch.linalg.vector_norm(weights, dim=0)[:, None]
        return out

    # -- the rest of the contract ----------------------------------------------------------------------------------

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """As for all of these models, of the current features; best_error: the relative error of the best before."""
        found = super().metrics(params, stats)
        assert isinstance(stats, MomentSums)
        least = torch.minimum(params[BEST], stats.error)
        return {**found, "best_error": float((least / stats.energy.clamp(min=1e-300)).sqrt())}


def factorise(
    rows: Tensor, size: int, generator: torch.Generator, *, share: float = 1.0, passes: int = 100
) -> tuple[Tensor, Tensor]:
    """`rows` [n, D] ≈ weights @ features, all in memory: features [size, D] of norm 1 and weights [n, size] >= 0."""
    model = SNMF(atoms=size, share=share, dtype="float64")
    params = model.init(Probe(len(rows), rows.mean(0), rows.var(0, correction=0), rows), generator)
    for step in range(passes):
        stage = Stage(step=step, steps=passes, rows=len(rows))
        params = model.update(params, model.statistics(params, Batch(rows), stage), stage)
    return params[ATOMS], nonnegative_codes(rows, params[ATOMS])


def _centres(sample: Tensor, start: Tensor, iterations: int = 15) -> Tensor:
    """Unit centres after Lloyd iterations from the rows `start`, taken at the data's mean length; empty ones stay."""
    centres = start * torch.linalg.vector_norm(sample, dim=1).mean()
    for _ in range(iterations):
        nearest = torch.cdist(sample, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centres)).to(sample.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    units, good = normalised(centres)
    return units.where(good[:, None], start)
