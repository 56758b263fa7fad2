"""Online orthogonal dictionary learning by Frank–Wolfe steps (after Xue, Lau, Online Orthogonal Dictionary Learning
Based on Frank-Wolfe Method, arXiv 2103.01484) – a reconstruction.

Known from the paper's abstract and introduction: rows y = D°x of an orthogonal D° stream by, none is kept, the
orthogonality is relaxed, and the steps are Frank–Wolfe's, with rate O(ln t / t^¼). Objective and schedules are
reconstructed: for Bernoulli–Gaussian x the orthogonal D that maximises E‖D y‖₃³ is D° up to signs and order (Shen et
al., 2020, for ℓ3; Zhai et al., JMLR 21, 2020, for ℓ4). Its relaxation to the ball ‖D‖₂ <= 1, the convex hull of the
orthogonal matrices, is tight, since -E‖D y‖_p^p is concave: minima lie at extreme points.

    g ← (1-ρ_t) g + ρ_t ∇,   S = -polar(g),   D ← (1-γ_t) D + γ_t S

∇ = -p E[(|z|^{p-2} z) yᵀ] with z = D y is the mean over one batch. The averaging with ρ makes batches of a few rows
work. The dictionary is polar(D), and codes are the largest entries of polar(D) y.

With `whiten`, rows are first multiplied by (E y yᵀ)^{-1/2}, which makes a complete dictionary orthogonal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..pursuit import threshold
from ..pursuit.problem import energies
from ..schedule import Schedule, Stage
from .steps import normalised, polar

ITERATE, SECOND = "iterate", "second_moment"
GRADIENT, SEEN = f"{TRAINING}gradient", f"{TRAINING}rows"
STILL = 1e-6
STEPS = {
    "early": (lambda t: 2 / (t + 2) ** 0.75, lambda t: 4 / (t + 8) ** 0.5),
    "late": (lambda t: t**-0.75, lambda t: t**-0.5),
    "convex": (lambda t: 1 / (t + 1), lambda t: 4 / (t + 8) ** (2 / 3)),
}
"""(γ_t, ρ_t) for t = 1, 2, …, each at most 1."""


@dataclass(frozen=True, slots=True)
class PowerSums(Stats):
    """Sums over rows, float64."""

    slope: Tensor
    """Σ (|z|^{p-2} z) yᵀ [H, D], of whitened rows."""
    powers: Tensor
    """Σ ‖z‖_p^p."""
    second: Tensor
    """Σ y yᵀ [D, D] of the rows as they are; empty without whitening."""
    explained: Tensor
    """Σ of the squared entries that a code keeps."""
    energy: Tensor
    """Σ ‖y‖², whitened."""
    entries: Tensor
    """Σ of codes' entries."""
    rows: Tensor
    """Rows."""


@dataclass(frozen=True, kw_only=True)
class ODLFW(Model):
    """D orthonormal atoms learned from a stream by Frank–Wolfe steps (ODL-FW, reconstructed)."""

    p: Literal[3, 4] = 3
    """Norm that is maximised; 3 is the more accurate."""
    steps: Literal["early", "late", "convex"] = "early"
    """Schedules of γ and ρ: `early` γ = 2/(t+2)^¾, ρ = 4/(t+8)^½; `late` t^-¾, t^-½, half of the
    error; `convex` 1/(t+1), 4/(t+8)^⅔, a quarter of it. The job's schedule can set `gamma` and `rho` instead: constant
    ones follow a dictionary that drifts."""
    nonzeros: int = 5
    """Entries of a code."""
    whiten: bool = False
    """Whether rows are whitened by their running second moment."""

    ramp_names: ClassVar[tuple[str, ...]] = ("gamma", "rho")
    ramp_limits: ClassVar[Mapping[str, tuple[float, float]]] = {"gamma": (0, 1), "rho": (0, 1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (3, 4):
            raise ModelError(f"p={self.p}: choose 3 or 4")
        if self.steps not in STEPS:
            raise ModelError(f"steps={self.steps!r}: choose {', '.join(STEPS)}")
        if not 1 <= self.nonzeros <= self.atoms:
            raise ModelError(f"nonzeros={self.nonzeros} of atoms={self.atoms}: choose from 1 to {self.atoms}")

    def schedule(self) -> Schedule:
        """One pass in batches of 64 rows: a stream is seen once."""
        return Schedule(passes=1, update_every="batch", batch_rows=64)

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """A random orthogonal matrix; the sample's second moment where rows are whitened.

        Raises:
            ModelError: the number of atoms is not that of dimensions.
        """
        if self.atoms != probe.dim:
            raise ModelError(
                f"atoms={self.atoms}: an orthogonal dictionary of rows of {probe.dim} dimensions has {probe.dim} atoms"
            )
        drawn = torch.randn(self.atoms, probe.dim, generator=generator, dtype=torch.float64)
        start = polar(drawn.to(probe.mean.device))
        second = probe.sample.T @ probe.sample / max(1, len(probe.sample))
        return {
            ITERATE: start,
            **({SECOND: second, SEEN: second.new_tensor(float(len(probe.sample)))} if self.whiten else {}),
            GRADIENT: torch.zeros_like(start),
        }

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """A given iterate's singular values are cut to at most 1: inside the ball in which the steps move."""
        taken = super().adopt(name, given, own)
        if name != ITERATE:
            return taken
        left, values, right = torch.linalg.svd(taken)
        return left * values.clamp(max=1) @ right

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> PowerSums:
        """The slope of Σ ‖D y‖_p^p, and what metrics need."""
        del stage
        y = self._whitened(params, batch.x)
        z = y @ params[ITERATE].to(y.dtype).T
        slope = z * z.abs() if self.p == 3 else z**3
        kept = z.abs().topk(self.nonzeros, dim=1).values.double()
        wide = batch.x.double()
        return PowerSums(
            slope=slope.double().T @ y.double(),
            powers=z.double().abs().pow(self.p).sum(),
            second=wide.T @ wide if self.whiten else wide.new_zeros(0),
            explained=kept.square().sum(),
            energy=y.double().square().sum(),
            entries=(kept > 0).sum().double(),
            rows=wide.new_tensor(float(len(wide))),
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """Average the gradient, one Frank–Wolfe step."""
        assert isinstance(stats, PowerSums)
        rows = float(stats.rows)
        if rows == 0 or not bool(stats.slope.any()):
            return params
        gamma, rho = self._lengths(stage)
        gradient = torch.lerp(params[GRADIENT], -self.p / rows * stats.slope, rho)
        # Directions that no row has touched yet stay where they are, instead of where rounding turns them.
        weight = STILL * float(torch.linalg.matrix_norm(gradient)) / self.atoms**0.5
        target = -polar(gradient - weight * params[ITERATE])
        new = {**params, GRADIENT: gradient, ITERATE: torch.lerp(params[ITERATE], target, gamma)}
        if self.whiten:
            seen = params[SEEN] + stats.rows
            share = float(stats.rows / seen)
            new |= {SEEN: seen, SECOND: torch.lerp(params[SECOND], stats.second / stats.rows, share)}
        return new

    def encode(self, params: Params, batch: Batch) -> Codes:
        """The largest entries of polar(D) y."""
        y = self._whitened(params, batch.x)
        return threshold(y, polar(params[ITERATE]).to(y.dtype).T, nonzeros=self.nonzeros).codes

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Means over the update's rows, at the iterate.

        loss: -‖D y‖_p^p; gap: Frank and Wolfe's <∇, D - S>, an upper bound (of a convex loss) on what is left to gain,
        of the averaged gradient before the update; explained_variance: share of ‖y‖² in the entries that codes keep;
        l0: entries of a code.
        """
        assert isinstance(stats, PowerSums)
        rows = max(1.0, float(stats.rows))
        gradient = params[GRADIENT]
        gap = float((gradient * params[ITERATE]).sum() + torch.linalg.matrix_norm(gradient, "nuc"))
        return {
            "loss": -float(stats.powers) / rows,
            "gap": max(gap, 0.0),
            "explained_variance": float(stats.explained / stats.energy.clamp(min=1e-300)),
            "l0": float(stats.entries) / rows,
        }

    def dictionary(self, params: Params) -> Tensor:
        """[D, H]: the orthogonal atoms; with whitening the complete dictionary they stand for, its atoms normalised."""
        atoms = polar(params[ITERATE])
        if self.whiten:
            values, vectors = torch.linalg.eigh(params[SECOND])
            atoms = atoms @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T
            atoms, _ = normalised(atoms)
        return atoms.T

    def memory(self, rows: int, dim: int) -> int:
        """Rows, scores and their powers of a batch; a dozen matrices [D, D]."""
        return rows * (dim * (6 * self.torch_dtype.itemsize + 32) + 24 * self.nonzeros) + 112 * dim * self.atoms

    def flops(self, dim: int) -> float:
        """Scores and slope."""
        return 4.0 * dim * self.atoms

    def _lengths(self, stage: Stage) -> tuple[float, float]:
        """(γ, ρ) of this update."""
        t = stage.step + 1
        gamma, rho = (min(1.0, f(t)) for f in STEPS[self.steps])
        return stage.get("gamma", gamma), stage.get("rho", rho)

    def _whitened(self, params: Params, x: Tensor) -> Tensor:
        """y: the rows, whitened where that is asked for. Raises ModelError: rows that are not finite."""
        energies(x)
        if not self.whiten:
            return x
        values, vectors = torch.linalg.eigh(params[SECOND])
        # Directions in which the rows hardly vary are left out rather than blown up.
        strong = values > 1e-10 * values.amax()
        scale = torch.where(strong, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
        return x @ ((vectors * scale) @ vectors.T).to(x.dtype)
