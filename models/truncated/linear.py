"""Discrete latents that add up linearly, with Gaussian noise: binary, ternary and discrete sparse coding.

    p(y | s) = N(y; W s + offset, σ² I),   s_h ∈ V = {0, v_1, …, v_L}

BSC  s_h ∈ {0, 1}:      Henniges, Puertas, Bornschein, Eggert, Lücke, Binary sparse coding, LVA/ICA 2010.
TSC  s_h ∈ {-1, 0, 1}:  Exarchakis, Henniges, Eggert, Lücke, Ternary sparse coding, LVA/ICA 2012.
DSC  any V:             Exarchakis, Lücke, Discrete sparse coding, Neural Computation 29, 2017.

The log-joint and its moments are evaluated through the Gram matrix G = WᵀW and the scores b = Wᵀy, so that the cost
per point does not grow with (number of states) × D. In units where the zero state is 0, the singleton that has atom h
at value v is log p(v)/p(0) + (v b_h - v² G_hh / 2)/σ², and a state is the sum of its singletons minus
v_i v_j G_ij / σ² for each pair: one product with the table of `states.py`.

Shapes: n datapoints of a batch, D observed, H atoms, H' candidates, P pairs of candidates, L non-zero values, K = L+1,
M multi-atom states.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import log, pi
from typing import Literal

import torch
from torch import Tensor

from ..base import Batch, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Stage
from . import masked
from .evolution import Scene, substitutions, tile_memory
from .expectation import Truncated, normalise, solve, temperatures, too_large
from .fused import posterior_rows, working_bytes
from .gram import gram_of
from .hysteresis import KEPT, settled
from .inference import Listed, with_zero
from .states import StateTable, state_table


@dataclass(frozen=True, slots=True)
class LinearStats(Stats):
    """Sums over datapoints, float64; those marked * only over points that the update uses. y is without the offset."""

    ys: Tensor
    """* Σ y <s>ᵀ [D, H]."""
    y: Tensor
    """* Σ y [D]."""
    ss: Tensor
    """* Σ <s sᵀ> [H, H]."""
    s: Tensor
    """* Σ <s> [H]."""
    counts: Tensor
    """* Σ q(s_h = v) for every non-zero value [L, H]."""
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
    """[n, L, H] probability of the state in which only atom h is active, at that value."""
    multi: Tensor
    """[n, M]."""
    candidates: Tensor
    """[n, H'] int64."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out): ranks points for the cut."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""


@dataclass(frozen=True, kw_only=True)
class Linear(Truncated):
    """Atoms times discrete values add up; Gaussian noise. A subclass says which values and how they are distributed."""

    select: Literal["cosine", "singleton"] = "singleton"
    """Candidates are the atoms most similar to the point, or those that explain it best alone (prior included)."""
    individual_priors: bool = False
    """Whether every atom has a prior of its own."""
    offset: bool = False
    """Whether a constant vector is learned beside the atoms."""

    def __post_init__(self) -> None:
        Truncated.__post_init__(self)
        if self.select not in ("cosine", "singleton"):
            raise ModelError(f"select={self.select!r}: choose cosine or singleton")
        self._table(torch.float32, torch.device("cpu"))

    @property
    @abstractmethod
    def support(self) -> tuple[float, ...]:
        """The L non-zero values."""

    @property
    def levels(self) -> int:
        """L."""
        return len(self.support)

    @abstractmethod
    def start_prior(self, generator: torch.Generator) -> Params:
        """Start values of the prior's parameters."""

    @abstractmethod
    def log_prior(self, params: Params) -> tuple[Tensor, float]:
        """log p(v)/p(0) [L, H] float64, and log p(s = 0)."""

    @abstractmethod
    def fit_prior(self, params: Params, stats: LinearStats, cut: bool) -> Tensor:
        """π from the counts; with `cut`, the one whose truncation to γ active atoms explains them."""

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """W at the data's mean (or at datapoints) plus noise; σ the spread; an offset starts at 0."""
        weights, spread = self.start_atoms(probe, generator)
        extra = {"offset": torch.zeros(probe.dim, dtype=torch.float64)} if self.offset else {}
        return {"W": weights, **self.start_prior(generator), "sigma": spread, **extra}

    # -- E-step ----------------------------------------------------------------------------------------------------

    def posterior(
        self, params: Params, x: Tensor, stage: Stage | None = None, candidates: Tensor | None = None
    ) -> Posterior:
        """The truncated posterior of the rows `x` [n, D] (at temperature 1 without a stage).

        `candidates` [n, H'] int64 are used where given, instead of choosing them.
        """
        x = self._centred(params, x)
        if rows := masked.split(x, allowed=self.missing):
            return self._masked_posterior(params, rows, stage, candidates)
        sigma = float(params["sigma"])
        weights, gram = gram_of(params["W"], x.dtype)
        scores = x @ weights
        if too_large(scores, max(abs(v) for v in self.support) / sigma**2):
            return self.posterior(params, x.double() + self._shift(params), stage, candidates)
        beta, heat = temperatures(stage, self.anneal_prior)
        gram = gram / sigma**2
        odds, log_zero = self.log_prior(params)
        odds = odds.to(x.dtype)
        chosen = self._choose(scores, gram.diagonal(), odds, sigma) if candidates is None else candidates

        joint = self._joints(scores, gram, odds, sigma, chosen, beta, heat)
        log_evidence = None
        if beta != 1.0:
            log_evidence = torch.logsumexp(self._joints(scores, gram, odds, sigma, chosen, 1.0, 1.0), 1).double()
        weight, log_z = normalise(joint)
        log_evidence = log_z if log_evidence is None else log_evidence
        square = x.double().square().sum(1)
        inner = 1 + self.levels * self.atoms
        return Posterior(
            single=weight[:, 1:inner].unflatten(1, (self.levels, self.atoms)),
            multi=weight[:, inner:],
            candidates=chosen,
            log_z=log_z - beta * square / (2 * sigma**2),
            log_evidence=log_evidence - square / (2 * sigma**2) + log_zero - x.shape[1] / 2 * log(2 * pi * sigma**2),
        )

    def _masked_posterior(
        self, params: Params, rows: masked.Rows, stage: Stage | None, candidates: Tensor | None
    ) -> Posterior:
        """As `posterior`, of centred rows with missing entries: G/σ² is a matrix per row."""
        weights, sigma = params["W"].to(rows.x.dtype), float(params["sigma"])
        scores = rows.x @ weights
        if too_large(scores, max(abs(v) for v in self.support) / sigma**2):
            wide = masked.Rows(rows.x.double(), rows.seen.double())
            return self._masked_posterior(params, wide, stage, candidates)
        odds, log_zero = self.log_prior(params)
        odds, table = odds.to(weights.dtype), self._table(weights.dtype, weights.device)
        energy = rows.seen @ weights.square() / sigma**2
        chosen = self._choose(scores, energy, odds, sigma) if candidates is None else candidates
        crossed = masked.pair_products(weights / sigma, rows.seen, chosen)[:, table.first, table.second]

        def joints(beta: float, heat: float) -> Tensor:
            single = torch.stack(
                [
                    heat * o - (beta / 2 * v**2) * energy + (beta * v / sigma**2) * scores
                    for o, v in zip(odds, self.support)
                ],
                1,
            )
            own = single.gather(2, chosen[:, None, :].expand(-1, self.levels, -1)).flatten(1)
            multi = torch.cat([own, beta * crossed], 1) @ table.design.T
            return torch.cat([single.new_zeros(len(single), 1), single.flatten(1), multi], 1)

        beta, heat = temperatures(stage, self.anneal_prior)
        plain = torch.logsumexp(joints(1.0, 1.0), 1).double() if beta != 1.0 else None
        weight, log_z = normalise(joints(beta, heat))
        square, dims = rows.x.double().square().sum(1) / sigma**2, rows.dims
        inner = 1 + self.levels * self.atoms
        return Posterior(
            single=weight[:, 1:inner].unflatten(1, (self.levels, self.atoms)),
            multi=weight[:, inner:],
            candidates=chosen,
            # A point with fewer observed entries would rank higher: each takes 1/2 from the score on average.
            log_z=log_z - beta / 2 * (square + rows.x.shape[1] - dims),
            log_evidence=(log_z if plain is None else plain)
            - square / 2
            + log_zero
            - dims / 2 * log(2 * pi * sigma**2),
        )

    def moments(self, posterior: Posterior) -> tuple[Tensor, Tensor, Tensor]:
        """<s> [n, H], the candidates' pair moments [n, P], and q(s_h = v) [n, L, H]."""
        table = self._table(posterior.single.dtype, posterior.single.device)
        inner = self.levels * self.candidates
        both = posterior.multi @ table.moments
        where = posterior.candidates[:, None, :].expand(-1, self.levels, -1)
        value = posterior.single.scatter_add(2, where, both[:, :inner].unflatten(1, (self.levels, self.candidates)))
        if self.support == (1.0,):
            return value[:, 0], both[:, inner:], value
        mean = torch.einsum("nlh,l->nh", value, value.new_tensor(self.support))
        return mean, both[:, inner:], value

    def _joints(
        self, scores: Tensor, gram: Tensor, odds: Tensor, sigma: float, chosen: Tensor, beta: float, heat: float
    ) -> Tensor:
        """[n, 1+L·H+M] tempered log-joints minus that of the zero state; `gram` is G/σ²."""
        table = self._table(scores.dtype, scores.device)
        n, atoms = scores.shape
        inner = 1 + self.levels * atoms
        joint = scores.new_empty(n, inner + self.multi_states)
        joint[:, 0] = 0
        single = joint[:, 1:inner].unflatten(1, (self.levels, atoms))
        energy = gram.diagonal()
        for i, value in enumerate(self.support):
            own = heat * odds[i] - (beta * value**2 / 2) * energy
            torch.add(own, scores, alpha=beta * value / sigma**2, out=single[:, i])
        own = single.gather(2, chosen[:, None, :].expand(-1, self.levels, -1)).flatten(1)
        crossed = (gram * beta)[chosen[:, table.first], chosen[:, table.second]]
        torch.mm(torch.cat([own, crossed], 1), table.design.T, out=joint[:, inner:])
        return joint

    def _choose(self, scores: Tensor, energy: Tensor, odds: Tensor, sigma: float) -> Tensor:
        """[n, H'] int64, the atoms that states of several atoms may use; `energy` is ‖W_h‖²/σ²."""
        if self.select == "cosine":
            score = scores * energy.clamp(min=1e-24).rsqrt()
            both_signs = min(self.support) < 0 < max(self.support)
            score = score.abs_() if both_signs else score if max(self.support) > 0 else score.neg_()
        else:
            gains = (
                torch.add(odds[i] - (v**2 / 2) * energy, scores, alpha=v / sigma**2) for i, v in enumerate(self.support)
            )
            score = next(gains)
            for gain in gains:
                score = torch.maximum(score, gain, out=score)
        return score.topk(self.candidates, dim=1).indices

    def _table(self, dtype: torch.dtype, device: torch.device) -> StateTable:
        return state_table(self.candidates, self.active, dtype, device, self.support)

    def _shift(self, params: Params) -> Tensor | float:
        return params["offset"] if self.offset else 0.0

    def _centred(self, params: Params, x: Tensor) -> Tensor:
        return x - params["offset"].to(x.dtype) if self.offset else x

    # -- the contract ----------------------------------------------------------------------------------------------

    def scene(self, params: Params, stage: Stage | None, dim: int) -> Scene:
        """Landscapes of rows of `dim` dimensions, for sets of states."""
        from . import linear_sets

        return linear_sets.scene(self, params, stage, dim)

    def listed(self, params: Params, x: Tensor) -> Listed:
        """The posterior of the rows `x` [n, D] at temperature 1, state by state."""
        q = self.posterior(params, x)
        mean, _, value = self.moments(q)
        probability = with_zero(q.single.flatten(1), q.multi)
        held = self._table(mean.dtype, mean.device).held
        return Listed(probability, q.candidates, held, self.support, mean, value, q.log_evidence)

    def reconstruction(self, params: Params, x: Tensor, found: Listed) -> Tensor:
        """<W s + offset> [n, D]."""
        return Truncated.reconstruction(self, params, x, found) + self._shift(params)

    def log_z(self, params: Params, batch: Batch, stage: Stage) -> Tensor:
        """[n] float64: ranks points for the data cut."""
        if self.fusible() and self.compiled(batch.x):
            x, candidates = self._centred(params, batch.x), batch.memo.get(KEPT)
            return posterior_rows(self, params, x, stage, candidates=candidates, moments=False).log_z
        joints = lambda c: self.posterior(params, batch.x, stage, c)  # noqa: E731
        return settled(joints, batch, hysteresis=self.hysteresis).log_z

    def means(self, params: Params, x: Tensor) -> Tensor:
        """<s> [n, H]."""
        if self.compiled(x):
            return posterior_rows(self, params, self._centred(params, x), None).mean
        return self.moments(self.posterior(params, x))[0]

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> LinearStats:
        """Sums of the posterior moments; points below the data cut's threshold only count for the free energy.

        Where the batch's memo holds `candidates` [n, H'], the states are those over them.
        """
        if self.by_sets:
            from . import linear_sets

            return linear_sets.statistics(self, params, batch, stage)
        if self.fusible() and self.compiled(batch.x):
            return self._fused(params, batch, stage)
        q = settled(lambda c: self.posterior(params, batch.x, stage, c), batch, hysteresis=self.hysteresis)
        mean, pair, value = self.moments(q)
        use = self.used(q.log_z, batch, stage)
        x, chosen = self._centred(params, batch.x.to(mean.dtype)), q.candidates
        if not bool(use.all()):
            x, mean, pair, value, chosen = x[use], mean[use], pair[use], value[use], chosen[use]
        rows = masked.split(x, allowed=self.missing)
        x = rows.x if rows else x
        table = self._table(mean.dtype, mean.device)
        place = chosen[:, table.first] * self.atoms + chosen[:, table.second]
        flat = torch.zeros(self.atoms**2, dtype=torch.float64, device=mean.device)
        upper = flat.index_add_(0, place.reshape(-1), pair.reshape(-1).double()).reshape(self.atoms, self.atoms)
        counts = value.sum(0, dtype=torch.float64)
        levels = counts.new_tensor(self.support)
        stats = LinearStats(
            ys=(x.T @ mean).double(),
            y=x.sum(0, dtype=torch.float64) if self.offset else upper.new_zeros(x.shape[1]),
            ss=upper + upper.T + torch.diag(levels.square() @ counts),
            s=levels @ counts,
            counts=counts,
            yy=x.double().square().sum(),
            used=use.sum().double(),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(use.shape[0]), dtype=torch.float64, device=mean.device),
        )
        return self._completed(stats, params, rows, mean, pair, value, chosen) if rows else stats

    def _completed(
        self,
        stats: LinearStats,
        params: Params,
        rows: masked.Rows,
        mean: Tensor,
        pair: Tensor,
        value: Tensor,
        chosen: Tensor,
    ) -> LinearStats:
        """The sums with the expectations of the missing entries added."""
        weights, table = params["W"].to(mean.dtype), self._table(mean.dtype, mean.device)
        own = torch.einsum("nlh,l->nh", value, value.new_tensor(self.support).square())
        between = masked.between_pairs(pair, table.first, table.second, self.candidates)
        ys = masked.expected_products(weights, rows.gone, chosen, own, between)
        y = (rows.gone * (mean @ weights.T)).sum(0, dtype=torch.float64) if self.offset else stats.y
        noise = params["sigma"].square() * rows.gone.sum(dtype=torch.float64)
        yy = stats.yy + (ys * params["W"]).sum() + noise
        return replace(stats, ys=stats.ys + ys, y=stats.y + y if self.offset else y, yy=yy)

    def _fused(self, params: Params, batch: Batch, stage: Stage) -> LinearStats:
        """`statistics` through the compiled kernel."""
        x = self._centred(params, batch.x)
        use = self.rows_in_use(params, batch, stage)
        q = posterior_rows(self, params, x, stage, candidates=batch.memo.get(KEPT), use=use)
        everything = torch.ones(len(x), dtype=torch.float64) if use is None else use.double()
        levels = q.counts.new_tensor(self.support)
        return LinearStats(
            ys=(x.T @ q.mean).double(),
            y=x.double().T @ everything if self.offset else q.counts.new_zeros(x.shape[1]),
            ss=q.pairs + q.pairs.T + torch.diag(levels.square() @ q.counts),
            s=levels @ q.counts,
            counts=q.counts,
            yy=q.square @ everything,
            used=everything.sum(),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(len(x)), dtype=torch.float64),
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """The exact M-step: W (and the offset, as an atom that is always on) by normal equations for their change, σ
        from the new W, π with the cut's correction.

        Solving for the change leaves atoms that no point used where they are.
        """
        assert isinstance(stats, LinearStats)
        used = float(stats.used)
        if used == 0:
            return params
        dim = params["W"].shape[0]
        weights, ys, ss = params["W"], stats.ys, stats.ss
        if self.offset:
            weights = torch.cat([weights, torch.zeros_like(weights[:, :1])], 1)
            ys = torch.cat([ys, stats.y[:, None]], 1)
            ss = torch.cat([torch.cat([ss, stats.s[:, None]], 1), torch.cat([stats.s, stats.used[None]])[None]])
        fixed = ["W" in self.fixed] * self.atoms + ["offset" in self.fixed] * self.offset
        free = torch.tensor([i for i, kept in enumerate(fixed) if not kept], device=ss.device, dtype=torch.int64)
        if len(free):
            # What is fixed stays out of the equations: the rest is the best beside it.
            change = solve(ss[free[:, None], free], (ys - weights @ ss)[:, free])
            weights = weights.index_add(1, free, change)
        residual = stats.yy - 2 * (weights * ys).sum() + ((weights @ ss) * weights).sum()
        least = 1e-6 * stats.yy / (used * dim)
        variance = torch.maximum(residual / (used * dim), least).clamp(min=1e-30)
        new = {
            "W": weights[:, : self.atoms].contiguous(),
            "pi": self.fit_prior(params, stats, stage.get("ncut", 0.0) > 0),
            "sigma": variance.sqrt(),
        }
        if self.offset:
            new["offset"] = params["offset"] + weights[:, -1]
        return self.learned(params, self.disturbed({**params, **new}, stage))

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint (nats, at temperature 1), π (of being active, mean over atoms), σ, mean active
        atoms, share of points in use."""
        assert isinstance(stats, LinearStats)
        rows, used = max(float(stats.rows), 1.0), max(float(stats.used), 1.0)
        return {
            "free_energy": float(stats.log_evidence) / rows,
            "pi": self.activity(params).mean().item(),
            "sigma": float(params["sigma"]),
            "active_atoms": float(stats.counts.sum()) / used,
            "used_share": float(stats.used) / rows,
            **substitutions(stats, rows),
        }

    @abstractmethod
    def activity(self, params: Params) -> Tensor:
        """P(s_h ≠ 0), [] or [H]."""

    def memory(self, rows: int, dim: int) -> int:
        """Rows and means of one batch (without the kernel also joints), parameters and statistics in float64."""
        item = 8 if self.dtype == "float64" else 4
        multi, pairs = self.multi_states, self.candidates * (self.candidates + 1) // 2
        columns = self.levels * self.candidates + pairs
        if self.fusible() and not self.missing:
            fixed = 8 * (7 * dim * self.atoms + 9 * self.atoms**2) + 32 * multi * columns
            return working_bytes(self, rows, dim, item) + fixed
        item_dims = (3 * self.candidates + 6) * item if self.missing else 0
        per_row = (
            dim * (item + 16 + item_dims)
            + ((1 + 5 * self.levels) * self.atoms + 4 * multi + 6 * columns) * item
            + 16 * pairs
        )
        fixed = 8 * (6 * dim * self.atoms + 6 * self.atoms**2) + 4 * multi * columns * item
        if self.by_sets:
            from .linear_sets import row_bytes

            # The sums of two tiles are added.
            per_row = dim * (item + 16) + Model.row_memory(self)
            fixed = 2 * fixed + tile_memory(self.alphabet, self.sets, row_bytes(self, dim))
        return rows * per_row + fixed

    def flops(self, dim: int) -> float:
        """Scores and Σ y<s>ᵀ, and the two products with the state table."""
        columns = self.levels * self.candidates + self.candidates * (self.candidates - 1) // 2
        return 4.0 * dim * self.atoms + 4.0 * self.multi_states * columns
