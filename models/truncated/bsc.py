"""Binary sparse coding (BSC), learned by EM with Expectation Truncation.

    p(s) = Π_h π^{s_h} (1-π)^{1-s_h},   p(y | s) = N(y; W s, σ² I),   s_h ∈ {0, 1}

Henniges, Puertas, Bornschein, Eggert, Lücke: Binary sparse coding, LVA/ICA 2010. The E-step evaluates the states of
`states.py` (Lücke & Eggert, JMLR 11, 2010); the log-joint and its moments are evaluated through the Gram matrix
G = WᵀW and the scores b = Wᵀy, so that the cost per point does not grow with (number of states) × D.

Shapes: n datapoints of a batch, D observed, H atoms, H' candidates, P pairs of candidates, M multi-atom states.
Not here: a prior per atom, values other than 0 and 1, an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log, pi
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .cut import ROUNDS, ScoreHistogram, histogram, kept, narrow
from .prior import mass_and_mean, truncated_pi
from .states import count_states, state_table

PI_BOUND = 1e-5
# exp of a difference below -80 is a float32 denormal: it costs ten times an ordinary exp and adds nothing to a sum.
LOWEST_LOG = {torch.float32: -80.0, torch.float64: -700.0}
# Above this score-to-noise ratio the rounding of float32 joints exceeds 0.01 nats.
FLOAT32_LIMIT = 1e5
SMALLEST_CODE = 1e-4


@dataclass(frozen=True, slots=True)
class BSCStats(Stats):
    """Sums over datapoints, float64; those marked * only over points that the data cut keeps."""

    ys: Tensor
    """* Σ y <s>ᵀ [D, H]."""
    ss: Tensor
    """* Σ <s sᵀ> [H, H]."""
    s: Tensor
    """* Σ <s> [H]."""
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
    """[n, M]."""
    candidates: Tensor
    """[n, H'] int64."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out): ranks points for the cut."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""


@dataclass(frozen=True, kw_only=True)
class BSC(Model):
    """Binary sparse coding: atoms are switched on or off and add up; Gaussian noise."""

    h_prime: int = 8
    """Candidate atoms per datapoint (H'); all atoms where there are fewer."""
    gamma: int = 5
    """Most active atoms in an evaluated state (γ)."""
    anneal_prior: bool = False
    """Whether the temperature also flattens the prior."""
    start: Literal["mean", "data"] = "mean"
    """Atoms start at the data's mean plus noise, or at datapoints drawn at random."""

    ramp_names: ClassVar[tuple[str, ...]] = ("T", "ncut", "W_noise", "partial")

    def __post_init__(self) -> None:
        Model.__post_init__(self)
        if self.h_prime < 1:
            raise ModelError(f"h_prime={self.h_prime}: at least one candidate is needed")
        if not 1 <= self.gamma <= self.h_prime:
            raise ModelError(f"gamma={self.gamma} active atoms cannot be drawn from h_prime={self.h_prime} candidates")
        state_table(self.candidates, self.active, torch.float32, torch.device("cpu"))

    @property
    def candidates(self) -> int:
        """H', at most H."""
        return min(self.h_prime, self.atoms)

    @property
    def active(self) -> int:
        """γ, at most H."""
        return min(self.gamma, self.candidates)

    def schedule(self) -> Schedule:
        """100 passes; cooled from T=2 to 1, then the data cut rises to its full strength."""
        return Schedule(
            passes=100,
            update_every="pass",
            batch_rows=4096,
            ramps={"T": ((0.05, 2.0), (0.4, 1.0)), "ncut": ((1 / 3, 0.0), (2 / 3, 1.0))},
        )

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """W at the data's mean (or at datapoints) plus noise of a quarter of its spread; π = 1/H; σ the spread."""
        spread = probe.variance.clamp(min=0).sqrt().mean().clamp(min=1e-12)
        noise = torch.randn(probe.dim, self.atoms, generator=generator, dtype=torch.float64) * spread / 4
        if self.start == "data":
            chosen = torch.randint(probe.sample.shape[0], (self.atoms,), generator=generator)
            weights = probe.sample[chosen].T + noise
        else:
            weights = probe.mean[:, None] + noise
        return {
            "W": weights.contiguous(),
            "pi": torch.tensor(min(1 / self.atoms, 0.5), dtype=torch.float64),
            "sigma": spread.reshape(()).clone(),
        }

    # -- E-step ----------------------------------------------------------------------------------------------------

    def posterior(self, params: Params, x: Tensor, stage: Stage | None = None) -> Posterior:
        """The truncated posterior of the rows `x` [n, D] (at temperature 1 without a stage)."""
        weights, sigma = params["W"].to(x.dtype), float(params["sigma"])
        scores = x @ weights
        if x.dtype == torch.float32 and scores.numel() and float(scores.abs().max()) / sigma**2 > FLOAT32_LIMIT:
            return self.posterior(params, x.double(), stage)
        beta = 1.0 / stage.get("T", 1.0) if stage else 1.0
        table = state_table(self.candidates, self.active, x.dtype, x.device)
        gram = weights.T @ weights
        energy = gram.diagonal()
        logit = log(float(params["pi"])) - log(1 - float(params["pi"]))

        chosen = (scores * energy.clamp(min=1e-24).rsqrt()).topk(self.candidates, dim=1).indices
        gain = (scores - energy / 2) / sigma**2
        crossed = gram[chosen[:, table.first], chosen[:, table.second]] / sigma**2
        multi = torch.cat([gain.gather(1, chosen), crossed], 1) @ table.design.T

        n, atoms = gain.shape
        joint = x.new_zeros(n, 1 + atoms + multi.shape[1])
        heat = beta if self.anneal_prior else 1.0
        torch.add(gain * beta, logit * heat, out=joint[:, 1 : atoms + 1])
        torch.add(multi * beta, table.size * (logit * heat), out=joint[:, atoms + 1 :])
        weight, log_z = _normalise(joint)

        log_evidence = log_z
        if beta != 1.0:
            plain = torch.cat([x.new_zeros(n, 1), gain + logit, multi + table.size * logit], 1)
            log_evidence = torch.logsumexp(plain, 1).double()
        square = x.double().square().sum(1)
        constant = atoms * log(1 - float(params["pi"])) - x.shape[1] / 2 * log(2 * pi * sigma**2)
        return Posterior(
            single=weight[:, 1 : atoms + 1],
            multi=weight[:, atoms + 1 :],
            candidates=chosen,
            log_z=log_z - beta * square / (2 * sigma**2),
            log_evidence=log_evidence - square / (2 * sigma**2) + constant,
        )

    def moments(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """<s> [n, H], and the pair moments of the candidates [n, P]."""
        dtype, device = posterior.single.dtype, posterior.single.device
        table = state_table(self.candidates, self.active, dtype, device)
        both = posterior.multi @ table.moments
        mean = posterior.single.scatter_add(1, posterior.candidates, both[:, : self.candidates])
        return mean, both[:, self.candidates :]

    # -- the contract ----------------------------------------------------------------------------------------------

    def surveys_at(self, stage: Stage) -> int:
        """Three histograms where the schedule cuts data, none otherwise."""
        return len(ROUNDS) if stage.get("ncut", 0.0) > 0 else 0

    def survey(self, params: Params, batch: Batch, stage: Stage) -> ScoreHistogram:
        """A histogram of the points' tempered log Z, the score by which the data cut ranks them."""
        if "log_z" not in batch.memo:
            batch.memo["log_z"] = self.posterior(params, batch.x, stage).log_z
        return histogram(batch.memo["log_z"], stage)

    def refine(self, params: Params, survey: Stats, stage: Stage) -> Stage:
        """Narrow the threshold above which ⌊N (1 - (1 - A(π)) ncut)⌋ points lie."""
        assert isinstance(survey, ScoreHistogram)
        mass, _ = mass_and_mean(float(params["pi"]), self.atoms, self.active)
        keep = max(1, floor(stage.rows * (1 - (1 - mass) * min(stage.get("ncut", 0.0), 1.0))))
        return narrow(survey, stage, keep)

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> BSCStats:
        """Sums of the posterior moments; points below the data cut's threshold only count for the free energy."""
        q = self.posterior(params, batch.x, stage)
        mean, pair = self.moments(q)
        use = kept(q.log_z, stage)
        partial = stage.get("partial", 1.0)
        if partial < 1.0:
            draw = torch.rand(use.shape, generator=stage.generator(batch.start), dtype=torch.float64)
            use = use & (draw < partial).to(use.device)
        x, chosen = batch.x.to(mean.dtype), q.candidates
        if not bool(use.all()):
            x, mean, pair, chosen = x[use], mean[use], pair[use], chosen[use]
        table = state_table(self.candidates, self.active, mean.dtype, mean.device)
        place = chosen[:, table.first] * self.atoms + chosen[:, table.second]
        flat = torch.zeros(self.atoms**2, dtype=torch.float64, device=mean.device)
        upper = flat.index_add_(0, place.reshape(-1), pair.reshape(-1).double()).reshape(self.atoms, self.atoms)
        total = mean.double().sum(0)
        return BSCStats(
            ys=(x.T @ mean).double(),
            ss=upper + upper.T + torch.diag(total),
            s=total,
            yy=x.double().square().sum(),
            used=use.sum().double(),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(use.shape[0]), dtype=torch.float64, device=mean.device),
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """The exact M-step: W by normal equations for its change, σ from the new W, π with the cut's correction.

        Solving for the change leaves atoms that no point used where they are.
        """
        assert isinstance(stats, BSCStats)
        used = float(stats.used)
        if used == 0:
            return params
        dim, atoms = params["W"].shape
        weights = params["W"] + _solve(stats.ss, stats.ys - params["W"] @ stats.ss)
        residual = stats.yy - 2 * (weights * stats.ys).sum() + ((weights @ stats.ss) * weights).sum()
        floor_ = 1e-6 * stats.yy / (used * dim)
        variance = torch.maximum(residual / (used * dim), floor_).clamp(min=1e-30)
        mean = float(stats.s.sum()) / used
        cut = stage.get("ncut", 0.0) > 0
        prior = truncated_pi(mean, atoms, self.active) if cut else mean / atoms
        noise = stage.get("W_noise", 0.0)
        if noise > 0:
            draw = torch.randn(dim, atoms, generator=stage.generator(-1 % 2**32), dtype=torch.float64)
            weights = weights + noise * draw.to(weights.device)
        return {
            "W": weights,
            "pi": torch.tensor(min(max(prior, PI_BOUND), 1 - PI_BOUND), dtype=torch.float64, device=weights.device),
            "sigma": variance.sqrt(),
        }

    def encode(self, params: Params, batch: Batch) -> Codes:
        """Posterior means <s> of the H' strongest atoms; entries below 1e-4 are left out."""
        mean, _ = self.moments(self.posterior(params, batch.x))
        values, indices = mean.topk(self.candidates, dim=1)
        faint = values < SMALLEST_CODE
        return Codes(indices.masked_fill(faint, -1).int(), values.masked_fill(faint, 0).to(batch.x.dtype))

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint (nats, at temperature 1), π, σ, mean active atoms, share of points in use."""
        assert isinstance(stats, BSCStats)
        rows, used = max(float(stats.rows), 1.0), max(float(stats.used), 1.0)
        return {
            "free_energy": float(stats.log_evidence) / rows,
            "pi": float(params["pi"]),
            "sigma": float(params["sigma"]),
            "active_atoms": float(stats.s.sum()) / used,
            "used_share": float(stats.used) / rows,
        }

    def dictionary(self, params: Params) -> Tensor:
        """W, [D, H]."""
        return params["W"]

    def memory(self, rows: int, dim: int) -> int:
        """Rows, scores and joints of one batch, and parameters and statistics in float64."""
        item = 8 if self.dtype == "float64" else 4
        multi = count_states(self.candidates, self.active)
        pairs = self.candidates * (self.candidates + 1) // 2
        per_row = dim * (item + 16) + (5 * self.atoms + 4 * multi + 6 * pairs) * item + 16 * pairs
        fixed = 8 * (6 * dim * self.atoms + 6 * self.atoms**2) + 4 * multi * pairs * item
        return rows * per_row + fixed

    def flops(self, dim: int) -> float:
        """Scores and Σ y<s>ᵀ, and the two products with the state table."""
        multi = count_states(self.candidates, self.active)
        columns = self.candidates * (self.candidates + 1) // 2
        return 4.0 * dim * self.atoms + 4.0 * multi * columns


def _normalise(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of [n, S] in place, and its log normaliser [n] in float64."""
    top = joint.amax(1, keepdim=True)
    weight = joint.sub_(top).clamp_(min=LOWEST_LOG[joint.dtype]).exp_()
    total = weight.sum(1, keepdim=True)
    return weight.div_(total), (top.double() + total.double().log()).squeeze(1)


def _solve(ss: Tensor, right: Tensor) -> Tensor:
    """right · ss⁺ for a symmetric positive semi-definite ss [H, H]; directions that no data supports give 0."""
    ridge = 1e-10 * ss.diagonal().mean().clamp(min=1e-30)
    factor, info = torch.linalg.cholesky_ex(ss + ridge * torch.eye(len(ss), dtype=ss.dtype, device=ss.device))
    if int(info) == 0:
        return torch.cholesky_solve(right.T, factor).T
    values, vectors = torch.linalg.eigh(ss)
    inverse = torch.where(values > 1e-10 * values.max(), 1 / values, torch.zeros_like(values))
    return (right @ vectors) * inverse @ vectors.T
