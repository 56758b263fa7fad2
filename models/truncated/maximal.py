"""Maximal causes analysis (MCA) and maximum-magnitude causes analysis (MMCA), learned with Expectation Truncation.

    s_h ~ Bernoulli(π),   p(y_d | s) = N(ȳ_d, σ²),   ȳ_d = max over active atoms of W_dh   (MCA: W ≥ 0)
                                                     ȳ_d = the active W_dh of largest magnitude   (MMCA)

Puertas, Bornschein, Lücke: The maximal causes of natural scenes are edge filters, NIPS 2010. Bornschein, Henniges,
Lücke: Are V1 simple cells optimized for visual occlusions?, PLoS Computational Biology 9, 2013.

The M-step averages, for every atom and dimension, the data where the atom dominates. It is not a maximiser, so it is
checked: while the free energy is comparable from update to update (temperature 1, all points in use, no noise) and an
update of W lowered it, W goes back half, three quarters, seven eighths, and then all of the way to where it was, with
the new π and σ, which are exact maximisers. The free energy of the accepted W is therefore known one pass later, and
what is needed to go back travels with the parameters: `training/W`, `training/free_energy` (of that W), and
`training/trial`, the number of halvings behind the current W (-1: nothing to compare with). Every worker computes the
same from the same sums.

Shapes: n datapoints of a batch, D observed, H atoms, H' candidates, M states of two or more atoms.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb, log, log1p, pi
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from . import masked
from .evolution import Scene, substitutions, tile_memory
from .expectation import PI_BOUND, Truncated, normalise, temperatures, too_large
from .fused_maximal import Rows, maximal_rows, working_bytes
from .hysteresis import KEPT, settled
from .inference import Listed, with_zero
from .prior import mass, truncated_pi
from .states import MOST_STATES
from .superposition import (
    exact_predictions,
    exact_shares,
    narrow,
    powers,
    smooth_predictions,
    smooth_shares,
    state_sizes,
)

BEFORE, REFERENCE, TRIAL = f"{TRAINING}W", f"{TRAINING}free_energy", f"{TRAINING}trial"
TRIALS = 4
"""Steps back by half, three quarters, seven eighths, all."""
TOLERANCE = 1e-9
UNUSED = 1e-10
TILE_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True)
class MaximalStats(Stats):
    """Sums over datapoints, float64; those marked * only over points that the update uses."""

    ay: Tensor
    """* Σ <A_dh> y_d [D, H]: the data where the atom dominates."""
    a: Tensor
    """* Σ <A_dh> [D, H]."""
    active: Tensor
    """* Σ <|s|>."""
    residual: Tensor
    """* Σ <‖y - ȳ‖²>."""
    yy: Tensor
    """* Σ ‖y‖²."""
    used: Tensor
    """* points."""
    log_evidence: Tensor
    """Σ log Z at temperature 1: the free energy."""
    rows: Tensor
    """Points."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Truncated posterior of n points."""

    single: Tensor
    """[n, H] probability of the state in which only atom h is active."""
    multi: Tensor
    """[n, M], in the order of `superposition.groups`."""
    candidates: Tensor
    """[n, H'] int64."""
    residual: Tensor
    """[n] float64, <‖y - ȳ‖²>."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out): ranks points for the cut."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""


@dataclass(frozen=True, kw_only=True)
class Maximal(Truncated):
    """Atoms are superposed by a maximum; Gaussian noise. A subclass says which maximum."""

    anneal_prior: bool = True
    """Whether the temperature also flattens the prior."""
    superposition: Literal["annealed", "smooth", "max"] = "annealed"
    """The maximum: smoothed while the temperature is above 1 and exact at 1; always smoothed; always exact."""
    backtrack: bool = True
    """Whether an update of W that lowered the free energy is taken back."""
    least_weight: float = 1e-4
    """Smallest entry (MMCA: magnitude) of W."""

    signed: ClassVar[bool] = False
    sharpest: ClassVar[float] = 1.05
    """Temperature below which the smoothed maximum gets no sharper."""

    def __post_init__(self) -> None:
        Truncated.__post_init__(self)
        if self.superposition not in ("annealed", "smooth", "max"):
            raise ModelError(f"superposition={self.superposition!r}: choose annealed, smooth or max")
        if not self.least_weight > 0:
            raise ModelError(f"least_weight={self.least_weight} must be above 0")
        if self.multi_states > MOST_STATES:
            raise ModelError(
                f"h_prime={self.h_prime}, gamma={self.gamma} make {self.multi_states:,} states per point, "
                f"over {MOST_STATES:,}; lower one"
            )

    def usual_schedule(self) -> Schedule:
        """200 passes; cooled from T=4 to 1 over most of the run, while the data cut rises."""
        ramps = {"T": ((0.0, 4.0), (0.8, 1.0)), "ncut": ((0.0, 0.0), (2 / 3, 1.0))}
        return Schedule(passes=200, update_every="pass", batch_rows=4096, ramps=self.allowed(ramps))

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """W at the data's mean (or at datapoints) plus noise; π = 1/H; σ the spread."""
        weights, spread = self.start_atoms(probe, generator)
        weights = self.bounded(weights if self.signed else weights.abs())
        return {
            "W": weights,
            "pi": torch.tensor(min(1 / self.atoms, 0.5), dtype=torch.float64),
            "sigma": spread,
            BEFORE: weights.clone(),
            REFERENCE: torch.zeros((), dtype=torch.float64),
            TRIAL: torch.full((), -1.0, dtype=torch.float64),
        }

    def bounded(self, weights: Tensor) -> Tensor:
        """W with the floor applied."""
        if not self.signed:
            return weights.clamp(min=self.least_weight)
        sign = torch.where(weights < 0, -1.0, 1.0).to(weights.dtype)
        return sign * weights.abs().clamp(min=self.least_weight)

    def rho(self, stage: Stage | None) -> float | None:
        """Exponent of the smoothed maximum at this stage; None: the maximum itself."""
        temperature = stage.get("T", 1.0) if stage else 1.0
        if self.superposition == "max" or (self.superposition == "annealed" and temperature <= 1.0):
            return None
        return 1 / (1 - 1 / max(temperature, self.sharpest))

    @abstractmethod
    def rank(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift [H] of what candidates are ranked by: the overshoot, where signed the score."""

    @abstractmethod
    def choose(self, weights: Tensor, x: Tensor, scores: Tensor, energy: Tensor) -> Tensor:
        """[n, H'] int64, the atoms that states of several atoms may use; `energy` is ‖W_h‖² [H], or [n, H] over what
        was observed where entries of `x` are missing (NaN)."""

    # -- E-step ----------------------------------------------------------------------------------------------------

    def posterior(
        self, params: Params, x: Tensor, stage: Stage | None = None, candidates: Tensor | None = None
    ) -> Posterior:
        """The truncated posterior of the rows `x` [n, D] (at temperature 1 without a stage).

        `candidates` [n, H'] int64 are used where given, instead of choosing them.
        """
        weights, sigma = params["W"].to(x.dtype), float(params["sigma"])
        given, rows = x, masked.split(x, allowed=self.missing)
        x = rows.x if rows else x
        square = x.double().square().sum(1)
        scores = x @ weights
        energy = rows.seen @ weights.square() if rows else weights.square().sum(0)
        if too_large(torch.cat([x.square().sum(1), energy.flatten()]), 0.5 / sigma**2):
            return self.posterior(params, given.double(), stage, candidates)
        chosen = self.choose(weights, given, scores, energy) if candidates is None else candidates
        gain = x.new_zeros(len(x), 1 + self.atoms + self.multi_states)
        gain[:, 1 : self.atoms + 1] = scores - energy / 2
        error = gain[:, self.atoms + 1 :]
        for points, dims in self._tiles(x):
            tile = self._errors(weights, x, chosen, points, dims, self.rho(stage), rows.seen if rows else None)
            error[points] -= tile.T / 2
        error += x.square().sum(1, keepdim=True) / 2
        gain /= sigma**2

        prior = float(params["pi"])
        logit = log(prior) - log1p(-prior)
        size = x.new_tensor([0.0] + [1.0] * self.atoms + [*state_sizes(self.candidates, self.active)])
        beta, heat = temperatures(stage, self.anneal_prior)
        plain = torch.logsumexp(torch.add(gain, size, alpha=logit), 1).double() if beta != 1.0 else None
        weight, log_z = normalise((gain * beta).add_(size, alpha=logit * heat))
        seen = rows.dims if rows else x.shape[1]
        constant = self.atoms * log1p(-prior) - seen / 2 * log(2 * pi * sigma**2)
        explained = torch.einsum("ns,ns->n", weight, gain).double() * (2 * sigma**2)
        return Posterior(
            single=weight[:, 1 : self.atoms + 1],
            multi=weight[:, self.atoms + 1 :],
            candidates=chosen,
            residual=(square - explained).clamp(min=0),
            # A point with fewer observed entries would rank higher: each takes 1/2 from the score on average.
            log_z=log_z - beta / 2 * (square / sigma**2 + x.shape[1] - seen),
            log_evidence=(log_z if plain is None else plain) - square / (2 * sigma**2) + constant,
        )

    def _tiles(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Blocks of points and dimensions whose states fit the cache."""
        if self.active < 2:
            return
        pixels = max(64, TILE_ELEMENTS // (self.multi_states + self.candidates))
        dims = min(x.shape[1], pixels)
        rows = max(1, pixels // max(dims, 1))
        for a in range(0, len(x), rows):
            for b in range(0, x.shape[1], dims):
                yield slice(a, min(a + rows, len(x))), slice(b, min(b + dims, x.shape[1]))

    def _pixels(self, weights: Tensor, chosen: Tensor, rows: slice, dims: slice, rho: float | None) -> Tensor:
        """[H', points·dimensions] the candidates' atoms in a tile."""
        atoms = weights.T[:, dims][chosen[rows].T].flatten(1)
        return atoms.double() if narrow(weights, rho) else atoms

    def _predictions(
        self, weights: Tensor, chosen: Tensor, rows: slice, dims: slice, rho: float | None
    ) -> list[Tensor]:
        """[C_m, points·dimensions] ȳ of a tile's states, for m = 2 … γ."""
        atoms = self._pixels(weights, chosen, rows, dims, rho)
        if rho is None:
            return exact_predictions(atoms, self.active, signed=self.signed)
        return smooth_predictions(powers(atoms, self.active, rho))

    def _errors(
        self,
        weights: Tensor,
        x: Tensor,
        chosen: Tensor,
        rows: slice,
        dims: slice,
        rho: float | None,
        seen: Tensor | None,
    ) -> Tensor:
        """[M, points] Σ over the tile's (observed) dimensions of (y - ȳ)²."""
        y = x[rows, dims]
        levels = self._predictions(weights, chosen, rows, dims, rho)
        apart = [p.view(-1, *y.shape).sub_(y) for p in levels]
        if seen is not None:
            apart = [a.mul_(seen[rows, dims]) for a in apart]
        parts = [torch.linalg.vector_norm(a, dim=2).square_() for a in apart]
        return torch.cat(parts).to(x.dtype)

    # -- the contract ----------------------------------------------------------------------------------------------

    def log_z(self, params: Params, batch: Batch, stage: Stage) -> Tensor:
        """[n] float64: ranks points for the data cut."""
        if self.fusible() and self.compiled(batch.x):
            return self._fused(params, batch.x, stage, candidates=batch.memo.get(KEPT)).log_z
        joints = lambda c: self.posterior(params, batch.x, stage, c)  # noqa: E731
        return settled(joints, batch, hysteresis=self.hysteresis).log_z

    def means(self, params: Params, x: Tensor) -> Tensor:
        """<s> [n, H]."""
        if self.compiled(x):
            return self._fused(params, x, None, marginals=True).single.to(x.dtype)
        q = self.posterior(params, x)
        return q.single.scatter_add(1, q.candidates, self._candidate_means(q))

    def _candidate_means(self, q: Posterior) -> Tensor:
        """[n, H'] probability that a candidate is active in a state of several atoms."""
        return q.multi @ self._members(q.multi)

    def _members(self, like: Tensor) -> Tensor:
        """[M, H'] of the dtype of `like`, 1 where a state holds a candidate."""
        if self.active < 2:
            return like.new_zeros(0, self.candidates)
        eye = torch.eye(self.candidates, dtype=like.dtype, device=like.device)
        return torch.cat([smooth_predictions(powers(eye, m, 1.0))[-1] for m in range(2, self.active + 1)])

    def scene(self, params: Params, stage: Stage | None, dim: int) -> Scene:
        """Landscapes of rows of `dim` dimensions, for sets of states."""
        from . import maximal_sets

        return maximal_sets.scene(self, params, stage, dim)

    def listed(self, params: Params, x: Tensor) -> Listed:
        """The posterior of the rows `x` [n, D] at temperature 1, state by state."""
        q = self.posterior(params, x)
        mean = q.single.scatter_add(1, q.candidates, self._candidate_means(q))
        probability, held = with_zero(q.single, q.multi), self._members(q.multi)
        return Listed(probability, q.candidates, held, (1.0,), mean, mean[:, None], q.log_evidence)

    def reconstruction(self, params: Params, x: Tensor, found: Listed) -> Tensor:
        """<ȳ> [n, D]."""
        weights, multi = params["W"].to(found.probability.dtype), found.probability[:, 1 + self.atoms :]
        out = found.probability[:, 1 : 1 + self.atoms] @ weights.T
        for rows, dims in self._tiles(x):
            levels = self._predictions(weights, found.candidates, rows, dims, self.rho(None))
            q = multi[rows].T.split([len(level) for level in levels])
            for level, share in zip(levels, q):
                pixels = level.view(len(level), share.shape[1], -1)
                out[rows, dims] += torch.einsum("sn,snd->nd", share.to(level.dtype), pixels).to(out.dtype)
        return out

    def mass(self, params: Params) -> float:
        """P(|s| ≤ γ)."""
        return mass(params["pi"], self.atoms, self.active)

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> MaximalStats:
        """Sums over the posterior; points below the data cut's threshold only count for the free energy.

        Where the batch's memo holds `candidates` [n, H'], the states are those over them.
        """
        if self.by_sets:
            from . import maximal_sets

            return maximal_sets.statistics(self, params, batch, stage)
        if self.fusible() and self.compiled(batch.x):
            return self._fused_statistics(params, batch, stage)
        q = settled(lambda c: self.posterior(params, batch.x, stage, c), batch, hysteresis=self.hysteresis)
        use = self.used(q.log_z, batch, stage)
        x, single, multi, chosen = batch.x.to(q.single.dtype), q.single, q.multi, q.candidates
        if not bool(use.all()):
            x, single, multi, chosen = x[use], single[use], multi[use], chosen[use]
        seen = masked.split(x, allowed=self.missing)
        x = seen.x if seen else x
        total = single.sum(0, dtype=torch.float64)
        ay, a = (x.T @ single).double().T.contiguous(), total[:, None].expand(-1, x.shape[1]).clone()
        a = (single.T @ seen.seen).double() if seen else a
        weights = params["W"].to(x.dtype)
        for rows, dims in self._tiles(x):
            shares = self._shares(weights, chosen, multi, rows, dims, self.rho(stage)).to(x.dtype)
            y, at = x[rows, dims], chosen[rows].T.reshape(-1)
            shares = shares.view(self.candidates, *y.shape)
            shares = shares * seen.seen[rows, dims] if seen else shares
            for out, part in ((a, shares), (ay, shares * y)):
                out[:, dims] += x.new_zeros(self.atoms, y.shape[1]).index_add_(0, at, part.flatten(0, 1))
        sizes = x.new_tensor(state_sizes(self.candidates, self.active))
        return MaximalStats(
            ay=ay.T.contiguous(),
            a=a.T.contiguous(),
            active=total.sum() + (multi @ sizes).sum(dtype=torch.float64),
            # A missing entry keeps the variance that it had.
            residual=q.residual[use].sum() + (params["sigma"].square() * seen.gone.sum() if seen else 0.0),
            yy=x.double().square().sum() + (params["sigma"].square() * seen.gone.sum() if seen else 0.0),
            used=use.sum().double(),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(use.shape[0]), dtype=torch.float64, device=x.device),
        )

    def _fused(self, params: Params, x: Tensor, stage: Stage | None, **wanted: Any) -> Rows:
        """The posteriors of the rows through the compiled kernel."""
        found = maximal_rows(self, params, x, stage, **wanted)
        return self._fused(params, x.double(), stage, **wanted) if found is None else found

    def _fused_statistics(self, params: Params, batch: Batch, stage: Stage) -> MaximalStats:
        use, candidates = self.rows_in_use(params, batch, stage), batch.memo.get(KEPT)
        q = self._fused(params, batch.x, stage, candidates=candidates, use=use, shares=True)
        single = q.single
        total = single.sum(0, dtype=torch.float64)
        return MaximalStats(
            ay=(batch.x.to(single.dtype).T @ single).double() + q.ay.T.contiguous(),
            a=total + q.a.T.contiguous(),
            active=q.active,
            residual=q.residual,
            yy=q.yy,
            used=torch.tensor(float(len(batch.x) if use is None else use.sum()), dtype=torch.float64),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(len(batch.x)), dtype=torch.float64),
        )

    def _shares(
        self, weights: Tensor, chosen: Tensor, multi: Tensor, rows: slice, dims: slice, rho: float | None
    ) -> Tensor:
        """[H', points·dimensions] Σ over the tile's states of q(s) A."""
        atoms = self._pixels(weights, chosen, rows, dims, rho)
        counts = [comb(self.candidates, m) for m in range(2, self.active + 1)]
        q = list(multi[rows].T.to(atoms.dtype).contiguous().split(counts))
        points = rows.stop - rows.start
        if rho is None:
            return exact_shares(atoms, q, points, signed=self.signed)
        return smooth_shares(powers(atoms, self.active, rho), q, points, signed=self.signed)

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """W as the mean of what every atom dominates, taken back where the last one lowered the free energy; σ with
        the W of the E-step; π with the cut's correction."""
        assert isinstance(stats, MaximalStats)
        used = float(stats.used)
        if used == 0:
            return params
        free_energy = stats.log_evidence / stats.rows
        comparable = self.backtrack and self._comparable(stage)
        trial = int(params[TRIAL])
        fell = float(free_energy) < float(params[REFERENCE]) - TOLERANCE * abs(float(params[REFERENCE]))
        if comparable and 0 <= trial < TRIALS and fell:
            return self._taken_back(params, trial, last=stage.step + 1 >= stage.steps)
        weights, dim = params["W"], params["W"].shape[0]
        seen = stats.a > UNUSED
        moved = self.inert(weights, stats.ay / stats.a.clamp(min=UNUSED), stats.a)
        mean = float(stats.active) / used
        cut = stage.get("ncut", 0.0) > 0
        prior = truncated_pi(mean, self.atoms, self.active) if cut else mean / self.atoms
        least = 1e-6 * stats.yy / (used * dim)
        new = {
            "W": self.bounded(torch.where(seen, moved, weights)),
            "pi": weights.new_tensor(min(max(prior, PI_BOUND), 1 - PI_BOUND)),
            "sigma": torch.maximum(stats.residual / (used * dim), least).clamp(min=1e-30).sqrt(),
            BEFORE: weights.clone(),
            REFERENCE: free_energy,
            TRIAL: weights.new_tensor(0.0 if comparable else -1.0),
        }
        noisy = self.disturbed(new, stage)
        return self.learned(params, {**noisy, "W": self.bounded(noisy["W"])})

    def inert(self, old: Tensor, new: Tensor, seen: Tensor) -> Tensor:
        """The new W where entries change slowly that few points dominate."""
        del old, seen
        return new

    def _comparable(self, stage: Stage) -> bool:
        """Whether free energies of successive updates say whether W got better."""
        noise = any(stage.get(f"{n}_noise", 0.0) > 0 for n in ("W", "pi", "sigma"))
        whole = stage.get("ncut", 0.0) <= 0 and stage.get("partial", 1.0) >= 1
        return stage.get("T", 1.0) == 1.0 and whole and not noise

    def _taken_back(self, params: Params, trial: int, *, last: bool) -> Params:
        """Half of the last change of W, or none of it after three halvings or at the end of the run."""
        before = params[BEFORE]
        whole = last or trial + 1 >= TRIALS
        weights = before.clone() if whole else self.bounded(before + (params["W"] - before) / 2)
        done = TRIALS if whole else trial + 1
        return {**params, "W": weights, TRIAL: torch.full_like(params[TRIAL], float(done))}

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint (nats, at temperature 1), π, σ, mean active atoms, share of points in use, and how
        often W was taken back before this update."""
        assert isinstance(stats, MaximalStats)
        rows, used = max(float(stats.rows), 1.0), max(float(stats.used), 1.0)
        return {
            "free_energy": float(stats.log_evidence) / rows,
            "pi": float(params["pi"]),
            "sigma": float(params["sigma"]),
            "active_atoms": float(stats.active) / used,
            "used_share": float(stats.used) / rows,
            "taken_back": max(float(params.get(TRIAL, torch.zeros(()))), 0.0),
            **substitutions(stats, rows),
        }

    def memory(self, rows: int, dim: int) -> int:
        """Rows, scores and joints of one batch, one tile's states, parameters and statistics in float64."""
        item = 8 if self.dtype == "float64" else 4
        if self.by_sets:
            from .maximal_sets import row_bytes

            kept = Model.row_memory(self)
            tile = tile_memory(self.alphabet, self.sets, row_bytes(self, dim))
            return rows * (dim * (2 * item + 16) + kept) + tile + 8 * 20 * dim * self.atoms
        if self.fusible() and not self.missing:
            # A smoothed maximum may need float64, and with it a copy of the rows.
            wide = item < 8 and self.superposition != "max"
            return working_bytes(self, rows, dim, 8 if wide else item) + (rows * dim * item if wide else 0)
        per_row = (
            dim * ((4 if self.missing else 2) * item + 16)
            + (4 * self.atoms + 5 * self.multi_states + 4 * self.candidates) * item
        )
        states = self.multi_states + self.candidates
        tile = 8 * 8 * max(TILE_ELEMENTS, 64 * states)
        return rows * per_row + tile + 8 * 10 * dim * self.atoms

    def flops(self, dim: int) -> float:
        """Scores and Σ y<s>ᵀ, and a dozen operations per state and dimension."""
        return 4.0 * dim * self.atoms + 12.0 * dim * self.multi_states
