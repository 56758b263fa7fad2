"""Noisy-OR: binary data, each of whose ones has at least one of several independent causes.

    s_h ~ Bernoulli(π_h),   p(y_d = 1 | s) = 1 - P_d(s),   P_d(s) = Π_h (1 - W_dh s_h)

As learned with evolutionary states by Drefs, Guiraud, Lücke: Evolutionary variational optimization of generative
models, JMLR 23, 2022. With R1 = Σ y <s_h/(1-P_d)>, R0 = Σ (1-y) <s_h/(1-P_d)> and s = Σ <s_h>, the free energy is
stationary in W where W = 1 - R0 (1-W)/(R0 + R1 - s). That fixed-point step is fast, but may lower the free energy. The
step of EM with the cause of every one as a further latent, W ← W R1/s, never does: it is what is taken instead, one
pass later, where the fixed-point step has lowered the free energy; and after the last pass, whose result nobody checks.
What is needed for this travels with the parameters: `training/W` (the step of EM), `training/free_energy` (before the
step) and `training/trial` (1 while the present W is a fixed-point step).

Shapes: n datapoints of a batch, D observed, H atoms, S states of a point, C states to evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .evolution import Landscape, Scene, Sets, code_weights, evolved, substitutions, tile_memory, weights
from .expectation import PI_BOUND, Truncated, temperatures
from .inference import Listed
from .prior import mass

SAFE, REFERENCE, TRIAL = f"{TRAINING}W", f"{TRAINING}free_energy", f"{TRAINING}trial"
BOUND = 1e-5
START_BOUND = 0.02
TOLERANCE = 1e-9
RARE = 1e-8


@dataclass(frozen=True, slots=True)
class NoisyOrStats(Stats):
    """Sums over datapoints, float64; those marked * only over points that the update uses."""

    causes: Tensor
    """* Σ <s_h/(1-P_d)> [D, H]."""
    ones: Tensor
    """* Σ y_d <s_h/(1-P_d)> [D, H]."""
    s: Tensor
    """* Σ <s> [H]."""
    used: Tensor
    """* points."""
    log_evidence: Tensor
    """Σ log Z at temperature 1: the free energy."""
    rows: Tensor
    """Points."""
    substituted: Tensor
    """States replaced in this E-step."""


class NoisyOrLandscape(Landscape):
    """Joints of states of n binary points."""

    def __init__(self, model: NoisyOR, params: Params, x: Tensor, stage: Stage | None) -> None:
        """ModelError for rows that hold anything but 0 and 1."""
        if not bool(((x == 0) | (x == 1)).all()):
            raise ModelError("noisyor explains rows of zeros and ones only; the data holds other values (or NaN)")
        super().__init__(model.alphabet, x)
        self.x = x
        self.beta, self.heat = temperatures(stage, model.anneal_prior)
        self.atoms = params["W"].to(x.dtype)
        off = torch.log1p(-params["W"]).to(x.dtype).T
        self.rows = torch.cat([off, off.new_zeros(1, off.shape[1])])
        """[H+1, D] log(1-W); 0 for the empty slot's atom H."""
        prior = params["pi"].double()
        self._logit = torch.cat([torch.logit(prior), prior.new_zeros(1)]).to(x.dtype)
        self.constant, self.wanted = torch.log1p(-prior).sum().expand(len(x)), float(prior.sum())

    def log_off(self, states: Tensor) -> Tensor:
        """log P [n, C, D]."""
        used = int(self.alphabet.size(states).max()) if states.numel() else 0
        out = self.rows[-1].expand(*states.shape[1:], -1).clone()
        for codes in states[:used]:
            out += self.rows[codes]
        return out

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        off = self.log_off(states)
        # The zero state gives -inf to every one, as it should.
        on = torch.expm1(off).neg_().log_()
        return torch.where(self.x[:, None] > 0, on, off).sum(2), self._logit[states].sum(0)

    def candidates(self, count: int) -> Tensor:
        # The joints of the singletons, up to a constant.
        score = self.x @ self.atoms.log() + (1 - self.x) @ self.rows[:-1].T
        return score.topk(min(count, self.atoms.shape[1]), dim=1).indices

    def means(self, states: Tensor, q: Tensor) -> Tensor:
        """<s>."""
        return code_weights(states, q, self.alphabet.none)

    def expected(self, states: Tensor, q: Tensor) -> Tensor:
        """<1 - P>, the probabilities of ones."""
        return torch.einsum("ns,nsd->nd", q, torch.expm1(self.log_off(states)).neg_())

    def causes(self, states: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Σ q s/(1-P) and Σ y q s/(1-P) [H, D] over the states with probabilities `q` [n, S]."""
        share = q[:, :, None] / torch.expm1(self.log_off(states)).neg_()
        both, ones = (torch.zeros_like(self.rows) for _ in range(2))
        used = int(self.alphabet.size(states).max()) if states.numel() else 0
        for codes in states[:used]:
            both.index_add_(0, codes.flatten(), share.flatten(0, 1))
            ones.index_add_(0, codes.flatten(), (share * self.x[:, None]).flatten(0, 1))
        return both[:-1], ones[:-1]


@dataclass(frozen=True, kw_only=True)
class NoisyOR(Truncated):
    """Noisy-OR: binary data whose ones have one or more of several causes; evolutionary states."""

    states: Literal["preselected", "evolutionary", "all"] = "evolutionary"
    """Every point keeps a set of states that evolves, or all 2^H states are evaluated."""
    anneal_prior: bool = True
    """Whether the temperature also flattens the prior."""

    def __post_init__(self) -> None:
        if self.missing:
            raise ModelError("missing=True: noisyor needs complete rows; bsc and its relatives accept missing values")
        Truncated.__post_init__(self)
        if self.states == "preselected":
            raise ModelError("states='preselected': noisyor has evolutionary states, or all of them")

    def usual_schedule(self) -> Schedule:
        """100 passes; cooled from T=2 to 1 over the first half."""
        return Schedule(passes=100, update_every="pass", batch_rows=4096, ramps={"T": ((0.05, 2.0), (0.5, 1.0))})

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """W at the data's mean (or at datapoints) plus noise, inside (0, 1); π = 2/H."""
        weights_ = self.start_atoms(probe, generator)[0].clamp(START_BOUND, 1 - START_BOUND)
        return {
            "W": weights_,
            "pi": torch.full((self.atoms,), min(2 / self.atoms, 0.5), dtype=torch.float64),
            SAFE: weights_.clone(),
            REFERENCE: torch.zeros((), dtype=torch.float64),
            TRIAL: torch.zeros((), dtype=torch.float64),
        }

    def mass(self, params: Params) -> float:
        """P(|s| ≤ γ)."""
        return mass(params["pi"], self.atoms, self.active)

    def log_z(self, params: Params, batch: Batch, stage: Stage) -> Tensor:
        """There is no data cut to rank points for."""
        raise ModelError("noisyor has no data cut")

    def scene(self, params: Params, stage: Stage | None, dim: int) -> Scene:
        """Landscapes of rows of `dim` dimensions."""
        return Scene(lambda x: NoisyOrLandscape(self, params, x, stage), self._row_bytes(dim))

    def listed(self, params: Params, x: Tensor) -> Listed:
        """There are no preselected states to list."""
        raise ModelError("noisyor evaluates no states over candidates")

    def means(self, params: Params, x: Tensor) -> Tensor:
        """There are no preselected states to average over."""
        raise ModelError("noisyor evaluates no states over candidates")

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> NoisyOrStats:
        """One E-step on the batch's sets, and the sums over them.

        Raises:
            ModelError: the rows hold anything but 0 and 1.
        """
        use = self.used(batch.x.new_zeros(len(batch.x), dtype=torch.float64), batch, stage)
        tiles = evolved(batch, stage, self, self.scene(params, stage, batch.x.shape[1]))
        return reduce(lambda a, b: a + b, (self._sums(land, sets, use[at]) for at, _, land, sets in tiles))

    def _sums(self, land: Landscape, sets: Sets, use: Tensor) -> NoisyOrStats:
        """The sums of one tile; points outside of `use` [n] only count for the free energy."""
        assert isinstance(land, NoisyOrLandscape)
        q, evidence = weights(land, sets)
        q = q * use[:, None]
        both, ones = land.causes(sets.states, q)
        return NoisyOrStats(
            causes=both.T.double().contiguous(),
            ones=ones.T.double().contiguous(),
            s=land.means(sets.states, q).sum(0, dtype=torch.float64),
            used=use.sum().double(),
            log_evidence=(evidence + land.constant).sum(),
            rows=torch.tensor(float(len(use)), dtype=torch.float64, device=use.device),
            substituted=sets.substituted.sum().double(),
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """π as the atoms' frequencies; W by the fixed-point step, or that of EM (see above)."""
        assert isinstance(stats, NoisyOrStats)
        if float(stats.used) == 0:
            return params
        free_energy, reference = stats.log_evidence / stats.rows, float(params[REFERENCE])
        comparable, last = self._comparable(stage), stage.step + 1 >= stage.steps
        fell = float(free_energy) < reference - TOLERANCE * abs(reference)
        if comparable and float(params[TRIAL]) > 0 and fell:
            return {**params, "W": params[SAFE].clone(), TRIAL: torch.zeros_like(params[TRIAL])}
        old = params["W"]
        seen = stats.s > RARE * stats.used
        safe = old * stats.ones / stats.s.clamp(min=1e-300)
        both = (stats.causes - stats.s).clamp(min=1e-300)
        fast = 1 - (stats.causes - stats.ones) * (1 - old) / both
        bounded = lambda w: torch.where(seen, w, old).clamp(BOUND, 1 - BOUND)  # noqa: E731
        tries = comparable and not last and "W" not in self.fixed
        new = {
            "W": bounded(fast if tries else safe),
            "pi": (stats.s / stats.used).clamp(PI_BOUND, 1 - PI_BOUND),
            SAFE: bounded(safe),
            REFERENCE: free_energy,
            TRIAL: torch.full_like(params[TRIAL], float(tries)),
        }
        noisy = self.disturbed(new, stage)
        return self.learned(params, {**noisy, "W": noisy["W"].clamp(BOUND, 1 - BOUND)})

    def _comparable(self, stage: Stage) -> bool:
        """Whether free energies of successive updates say whether W got better."""
        noise = any(stage.get(f"{n}_noise", 0.0) > 0 for n in ("W", "pi"))
        return stage.get("T", 1.0) == 1.0 and stage.get("partial", 1.0) >= 1 and not noise

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint (nats, at temperature 1), mean π, mean active atoms, share of points in use,
        states replaced per point."""
        assert isinstance(stats, NoisyOrStats)
        rows, used = max(float(stats.rows), 1.0), max(float(stats.used), 1.0)
        return {
            "free_energy": float(stats.log_evidence) / rows,
            "pi": float(params["pi"].mean()),
            "active_atoms": float(stats.s.sum()) / used,
            "used_share": float(stats.used) / rows,
            **substitutions(stats, rows),
        }

    def _row_bytes(self, dim: int) -> int:
        return 16 * dim * (self.sets.size + self.sets.offspring)

    def memory(self, rows: int, dim: int) -> int:
        """Rows and sets of one batch, one tile's states, parameters and statistics in float64."""
        item = 8 if self.dtype == "float64" else 4
        tile = tile_memory(self.alphabet, self.sets, self._row_bytes(dim))
        return rows * (dim * (item + 8) + Model.row_memory(self)) + tile + 8 * 16 * dim * self.atoms

    def flops(self, dim: int) -> float:
        """A few operations per state, active atom and dimension; two or three atoms are active in most states."""
        return 20.0 * dim * (self.sets.size + self.sets.offspring)
