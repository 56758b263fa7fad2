"""Spike-and-slab sparse coding (Gaussian sparse coding, GSC), learned by EM with Expectation Truncation.

    s_h ~ Bernoulli(π_h),   z ~ N(μ, Ψ),   y ~ N(W (s∘z), Σ)

Sheikh, Shelton, Lücke: A truncated EM approach for spike-and-slab sparse coding, JMLR 15, 2014. Posteriors of the slab
are computed by `slab.py` in as many dimensions as a state has active atoms; no D × D or H × H matrix per point or
state appears. The M-steps are exact: with a diagonal Ψ the slab values of inactive atoms integrate out; with a full Ψ
the whole of z is latent.

Only W_h z_h is identified, so atoms are brought to norm 1 after every update, their length moving into μ and Ψ.

Shapes: n datapoints of a batch, D observed, H atoms, H' candidates, M states of two or more atoms, P' = H'(H'+1)/2
pairs of candidates, the diagonal included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb, log, pi
from typing import Literal

import torch
from torch import Tensor

from ..base import Batch, Model, Params, Probe, Stats
from ..errors import ModelError
from ..kernels import native
from ..kernels.slab import MOST_ACTIVE
from ..schedule import Schedule, Stage
from . import masked, noise, slab_update
from .evolution import Scene, substitutions, tile_memory
from .expectation import Truncated, normalise, solve, temperatures, too_large
from .fused_slab import Rows, slab_rows, working_bytes
from .hysteresis import KEPT, settled
from .inference import Listed
from .prior import mass, truncated_pis
from .slab import TILE_ELEMENTS, Moments, Points, Tile, size_class, start_slab, state_means, state_moments, upper
from .slab_posterior import Posterior, Spread, Theta, scatter, stack
from .states import MOST_STATES, state_table

PI_BOUND = 5e-5


@dataclass(frozen=True, slots=True)
class GSCStats(Stats):
    """Sums over datapoints, float64; those marked * only over points that the update uses."""

    ys: Tensor
    """* Σ y <s∘z>ᵀ [D, H]."""
    zz: Tensor
    """* Σ <(s∘z)(s∘z)ᵀ> [H, H]."""
    s: Tensor
    """* Σ <s> [H]."""
    sz: Tensor
    """* Σ <s∘z> [H]."""
    yy: Tensor
    """* Σ ‖y‖² [], Σ y² [D] or Σ y yᵀ [D, D], as the noise needs."""
    imputed: Tensor
    """* Σ <t> [H] of `slab.py`; [0] where Ψ is diagonal."""
    spread: Tensor
    """* Σ <ttᵀ - K> [H, H]; [0] where Ψ is diagonal."""
    used: Tensor
    """* points."""
    log_evidence: Tensor
    """Σ log Z at temperature 1: the free energy."""
    rows: Tensor
    """Points."""


@dataclass(frozen=True, kw_only=True)
class GSC(Truncated):
    """Spike-and-slab sparse coding: atoms are off, or on with a Gaussian coefficient; Gaussian noise."""

    h_prime: int = 6
    """Candidate atoms per datapoint (H'); all atoms where there are fewer."""
    gamma: int = 4
    """Most active atoms in an evaluated state (γ)."""
    anneal_prior: bool = True
    """Whether the temperature also flattens the prior."""
    slab: Literal["diagonal", "full"] = "diagonal"
    """Whether coefficients of different atoms are correlated: Ψ is `psi` [H], or [H, H]."""
    noise: Literal["scalar", "diagonal", "full"] = "scalar"
    """Noise: `sigma` [], `sigma` [D] (standard deviations), or `noise_covariance` [D, D]."""
    renormalise: bool = True
    """Whether atoms are brought to norm 1, their length moving into μ and Ψ."""

    def __post_init__(self) -> None:
        Truncated.__post_init__(self)
        for name, choices in (("slab", ("diagonal", "full")), ("noise", ("scalar", "diagonal", "full"))):
            if getattr(self, name) not in choices:
                raise ModelError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")
        if self.missing and self.noise == "full":
            raise ModelError("noise='full' cannot be combined with missing=True: choose scalar or diagonal noise")
        if self.multi_states > MOST_STATES:
            raise ModelError(
                f"h_prime={self.h_prime}, gamma={self.gamma} make {self.multi_states:,} states per point, "
                f"over {MOST_STATES:,}; lower one"
            )

    def usual_schedule(self) -> Schedule:
        """100 passes, cooled from T=2 to 1 over most of the run; no data cut."""
        return Schedule(passes=100, update_every="pass", batch_rows=4096, ramps={"T": ((0.0, 2.0), (0.7, 1.0))})

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """W at the data's mean (or at datapoints) plus noise; π, μ and ψ at random; the noise as strong as the data."""
        weights, spread = self.start_atoms(probe, generator)
        draw = lambda: torch.rand(self.atoms, generator=generator, dtype=torch.float64)  # noqa: E731
        params = {
            "W": weights,
            "pi": (0.95 * draw()).clamp(min=0.05),
            "mu": torch.randn(self.atoms, generator=generator, dtype=torch.float64),
            "psi": (2 * draw()).clamp(min=0.05),
            **noise.start(self.noise, probe, spread),
        }
        return {**params, "psi": torch.diag(params["psi"])} if self.slab == "full" else params

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """As `Truncated.adopt`; Ψ may be one variance, a diagonal or a matrix, whichever of these the model keeps.

        Raises:
            ModelError: Ψ is no covariance, or has correlations that a diagonal slab cannot hold.
        """
        return Truncated.adopt(self, name, start_slab(given, own) if name == "psi" else given, own)

    # -- E-step ----------------------------------------------------------------------------------------------------

    def posterior(
        self,
        params: Params,
        x: Tensor,
        stage: Stage | None = None,
        candidates: Tensor | None = None,
        *,
        moments: bool = True,
        states: bool = False,
    ) -> Posterior:
        """The truncated posterior of the rows `x` [n, D] (at temperature 1 without a stage), with what is asked for.

        `candidates` [n, H'] int64 are used where given, instead of choosing them.
        """
        # The imputed moments of a full Ψ are small differences of large numbers.
        x = x.double() if self.slab == "full" else x
        theta = self.theta(params, x.dtype)
        seen = masked.split(x, allowed=self.missing)
        scores = (seen.x if seen else x) @ theta.scaled
        if too_large(scores, float((theta.mu.abs() + theta.variance.sqrt()).max())):
            return self.posterior(params, x.double(), stage, candidates, moments=moments, states=states)
        part = Points(scores, theta.gram.diagonal() if not seen else seen.seen @ theta.root.square(), scores, seen)
        chosen = candidates
        if chosen is None:
            chosen = self.alone(theta, part, prior=False).topk(self.candidates, dim=1).indices
        part = replace(part, chosen=chosen)
        rows = self._tile_rows()
        parts = [
            self._tile(theta, part.pick(slice(a, a + rows)), stage, moments, states)
            for a in range(0, max(len(x), 1), rows)
        ]
        found = parts[0] if len(parts) == 1 else stack(parts)
        beta, _ = temperatures(stage, self.anneal_prior)
        square = noise.squares(params, seen.x if seen else x)
        dims = seen.dims if seen else x.shape[1]
        log_det = noise.log_det_seen(params, seen.seen) if seen else noise.log_det(params, x.shape[1])
        return replace(
            found,
            # A point with fewer observed entries would rank higher: each takes 1/2 from the score on average.
            log_z=found.log_z - beta / 2 * (square + x.shape[1] - dims),
            log_evidence=found.log_evidence - square / 2 + theta.log_zero - 0.5 * log_det - dims / 2 * log(2 * pi),
        )

    def theta(self, params: Params, dtype: torch.dtype) -> Theta:
        """The parameters in the dtype of a batch."""
        scaled = noise.precise(params, params["W"])
        prior, psi = params["pi"].double(), params["psi"]
        return Theta(
            scaled=scaled.to(dtype),
            gram=(params["W"].T @ scaled).to(dtype),
            root=(noise.roots(params, params["W"]) if self.missing else scaled[:0]).to(dtype),
            logit=torch.logit(prior).to(dtype),
            mu=params["mu"].to(dtype),
            psi=psi.to(dtype),
            variance=(psi.diagonal() if psi.ndim == 2 else psi).to(dtype),
            log_zero=float(torch.log1p(-prior).sum()),
        )

    def alone(self, theta: Theta, part: Points, *, prior: bool) -> Tensor:
        """[n, H] log p(y | only atom h) - log p(y | 0), with the prior's logit where asked."""
        scores, energy, mu, psi = part.scores, part.energy, theta.mu, theta.variance
        b = 1 + psi * energy
        constant = -0.5 * (mu.square() * energy / b + b.log()) + (theta.logit if prior else 0.0)
        return torch.addcmul(constant, torch.addcmul(mu / b, scores, 0.5 * psi / b), scores)

    def _tile_rows(self) -> int:
        most = max([comb(self.candidates, g) for g in range(2, self.active + 1)], default=1)
        return max(64, TILE_ELEMENTS // most)

    def _tile(self, theta: Theta, part: Points, stage: Stage | None, moments: bool, states: bool) -> Posterior:
        scores, chosen = part.scores, part.chosen
        n, atoms = scores.shape
        at = chosen.T.contiguous()
        first, second = torch.triu_indices(self.candidates, self.candidates, device=scores.device)
        full = theta.psi.ndim == 2
        tile = Tile(
            scores=scores.gather(1, chosen).T.contiguous(),
            gram=part.gram(theta.gram, theta.root, first, second),
            mean=theta.mu[at],
            slab=theta.psi[at[first], at[second]] if full else theta.psi.sqrt()[at],
            full=full,
        )
        logit = theta.logit[at]
        classes = [size_class(m, self.candidates, scores.dtype, scores.device) for m in range(2, self.active + 1)]
        found = [state_moments(tile, size, wanted=moments) for size in classes]

        gain = scores.new_empty(n, 1 + atoms + self.multi_states)
        odds = scores.new_empty(n, 1 + atoms + self.multi_states)
        gain[:, 0] = odds[:, 0] = 0
        gain[:, 1 : atoms + 1] = self.alone(theta, part, prior=False)
        odds[:, 1 : atoms + 1] = theta.logit
        begin = atoms + 1
        for size, each in zip(classes, found):
            end = begin + each.gain.shape[0]
            gain[:, begin:end] = each.gain.T
            odds[:, begin:end] = sum(logit[w] for w in size.where).T  # pyright: ignore[reportAttributeAccessIssue]
            begin = end
        beta, heat = temperatures(stage, self.anneal_prior)
        plain = torch.logsumexp(gain + odds, 1).double() if beta != 1.0 else None
        weight, log_z = normalise(gain.mul_(beta).add_(odds, alpha=heat))
        evidence = log_z if plain is None else plain
        none = scores.new_zeros(n, 0)
        if not moments:
            return Posterior(chosen, log_z, evidence, none, none, Spread(none, none), none, None, none)
        collected = self._collect(theta, part, weight, log_z, evidence, found)
        return replace(collected, weight=weight) if states else collected

    def _collect(
        self,
        theta: Theta,
        part: Points,
        weight: Tensor,
        log_z: Tensor,
        evidence: Tensor,
        found: list[Moments],
    ) -> Posterior:
        """The posterior's moments: singletons in closed form, the other states added up by candidate."""
        scores, chosen, energy = part.scores, part.chosen, part.energy
        n, atoms = scores.shape
        full = theta.psi.ndim == 2
        cov = theta.variance / (1 + theta.variance * energy)
        one = weight[:, 1 : atoms + 1]
        kappa = torch.addcmul(theta.mu / (1 + theta.variance * energy), scores, cov)
        residual = scores - energy * kappa if full else scores[:, :0]
        pairs = self.candidates * (self.candidates + 1) // 2
        s, sz, t = (scores.new_zeros(self.candidates, n) for _ in range(3))
        zz, tt = (scores.new_zeros(pairs, n) for _ in range(2))
        begin = atoms + 1
        for size, each in enumerate(found, start=2):
            states = size_class(size, self.candidates, scores.dtype, scores.device)
            end = begin + each.gain.shape[0]
            q = weight[:, begin:end].T.contiguous()
            s.addmm_(states.to_single, q.repeat(size, 1))
            sz.addmm_(states.to_single, torch.cat([q * k for k in each.first]))
            zz.addmm_(states.to_pair, upper(each.second, q))
            if full:
                t.addmm_(states.to_single, torch.cat([q * k for k in each.imputed]))
                tt.addmm_(states.to_pair, upper(each.spread, q))
            begin = end
        on_diagonal = torch.triu_indices(self.candidates, self.candidates, device=scores.device)
        own = (on_diagonal[0] == on_diagonal[1]).nonzero()[:, 0]
        put = lambda single, multi: single.scatter_add(1, chosen, multi.T)  # noqa: E731
        alone = one * kappa
        square = torch.addcmul(one * cov, alone, kappa)
        imputed, spread = scores[:, :0], None
        if full:
            imputed = put(one * residual, t)
            flat = one * (residual.square() - energy + energy.square() * cov)
            spread = Spread(put(flat, tt[own]), tt.T)
        return Posterior(
            candidates=chosen,
            log_z=log_z,
            log_evidence=evidence,
            s=put(one, s),
            sz=put(alone, sz),
            zz=Spread(put(square, zz[own]), zz.T),
            imputed=imputed,
            spread=spread,
            weight=scores.new_zeros(n, 0),
        )

    # -- the contract ----------------------------------------------------------------------------------------------

    def scene(self, params: Params, stage: Stage | None, dim: int) -> Scene:
        """Landscapes of rows of `dim` dimensions, for sets of states."""
        from . import slab_sets

        return slab_sets.scene(self, params, stage, dim)

    def listed(self, params: Params, x: Tensor) -> Listed:
        """The posterior of the rows `x` [n, D] at temperature 1, state by state."""
        q = self.posterior(params, x, states=True)
        table = state_table(self.candidates, self.active, q.s.dtype, q.s.device)
        return Listed(q.weight, q.candidates, table.held, (1.0,), q.sz, q.s[:, None], q.log_evidence)

    def coefficients(self, params: Params, x: Tensor, atoms: Tensor, values: Tensor) -> Tensor:
        """[n, K, γ] E[z | s, y] of the active atoms, 0 where there is none."""
        del values
        theta, x = self.theta(params, torch.float64), x.double()
        seen, at = masked.split(x, allowed=self.missing), atoms.clamp(min=0)
        if seen is None:
            gram = theta.gram[at[..., :, None], at[..., None, :]]
        else:
            gram = torch.stack([masked.pair_products(theta.root, seen.seen, state) for state in at.unbind(1)], 1)
        return state_means((seen.x if seen else x) @ theta.scaled, gram, theta.mu, theta.psi, atoms)

    def log_z(self, params: Params, batch: Batch, stage: Stage) -> Tensor:
        """[n] float64: ranks points for the data cut."""
        if self._fuses(batch):
            return self._fused(params, batch.x, stage, moments=False).log_z
        joints = lambda c: self.posterior(params, batch.x, stage, c, moments=False)  # noqa: E731
        return settled(joints, batch, hysteresis=self.hysteresis).log_z

    def means(self, params: Params, x: Tensor) -> Tensor:
        """<s∘z> [n, H]."""
        if self.compiled(x):
            return self._fused(params, x, None).mean.to(x.dtype)
        return self.posterior(params, x).sz

    @property
    def has_kernel(self) -> bool:
        """For a diagonal Ψ and states of few atoms, where it was built."""
        return self.slab == "diagonal" and self.active <= MOST_ACTIVE and native.library() is not None

    def _fuses(self, batch: Batch) -> bool:
        """Whether the kernel does the batch's sums: it chooses candidates itself."""
        return self.fusible() and self.compiled(batch.x) and KEPT not in batch.memo

    def _fused(
        self, params: Params, x: Tensor, stage: Stage | None, *, use: Tensor | None = None, moments: bool = True
    ) -> Rows:
        """The posteriors of the rows through the compiled kernel."""
        found = slab_rows(self, params, self.theta(params, x.dtype), x, stage, use=use, moments=moments)
        return self._fused(params, x.double(), stage, use=use, moments=moments) if found is None else found

    def mass(self, params: Params) -> float:
        """P(|s| ≤ γ)."""
        return mass(params["pi"], self.atoms, self.active)

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> GSCStats:
        """Sums of the posterior moments; points below the data cut's threshold only count for the free energy.

        Where the batch's memo holds `candidates` [n, H'], the states are those over them.
        """
        if self.by_sets:
            from . import slab_sets

            return slab_sets.statistics(self, params, batch, stage)
        if self._fuses(batch):
            return self._fused_statistics(params, batch, stage)
        q = settled(lambda c: self.posterior(params, batch.x, stage, c), batch, hysteresis=self.hysteresis)
        use = self.used(q.log_z, batch, stage)
        everything = bool(use.all())
        pick = lambda t: t if everything else t[use]  # noqa: E731
        x, sz = pick(batch.x.to(q.sz.dtype)), pick(q.sz)
        seen = masked.split(x, allowed=self.missing)
        x = seen.x if seen else x
        add = lambda spread: scatter(pick(spread.diagonal), pick(spread.between), pick(q.candidates))  # noqa: E731
        empty = torch.zeros(0, dtype=torch.float64, device=x.device)
        stats = GSCStats(
            ys=(x.T @ sz).double(),
            zz=add(q.zz),
            s=pick(q.s).sum(0, dtype=torch.float64),
            sz=sz.sum(0, dtype=torch.float64),
            yy=noise.second_moment(self.noise, x),
            imputed=pick(q.imputed).sum(0, dtype=torch.float64),
            spread=empty if q.spread is None else add(q.spread),
            used=use.sum().double(),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(use.shape[0]), dtype=torch.float64, device=x.device),
        )
        if seen is None:
            return stats
        zz = Spread(pick(q.zz.diagonal), pick(q.zz.between))
        return self._completed(stats, params, seen, zz, pick(q.candidates))

    def _completed(self, stats: GSCStats, params: Params, seen: masked.Rows, zz: Spread, chosen: Tensor) -> GSCStats:
        """The sums with the expectations of the missing entries added."""
        first, second = torch.triu_indices(self.candidates, self.candidates, device=chosen.device)
        between = masked.between_pairs(zz.between, first, second, self.candidates)
        weights = params["W"].to(between.dtype)
        ys = masked.expected_products(weights, seen.gone, chosen, zz.diagonal, between)
        yy = noise.of_missing(self.noise, params, params["W"], ys, seen.gone)
        return replace(stats, ys=stats.ys + ys, yy=stats.yy + yy)

    def _fused_statistics(self, params: Params, batch: Batch, stage: Stage) -> GSCStats:
        use = self.rows_in_use(params, batch, stage)
        q = self._fused(params, batch.x, stage, use=use)
        x = batch.x.to(q.mean.dtype)
        empty = torch.zeros(0, dtype=torch.float64)
        return GSCStats(
            ys=(x.T @ q.mean).double(),
            zz=q.pairs + q.pairs.T + torch.diag(q.sums[2]),
            s=q.sums[0],
            sz=q.sums[1],
            yy=noise.second_moment(self.noise, x if use is None else x[use]),
            imputed=empty,
            spread=empty,
            used=torch.tensor(float(len(x) if use is None else use.sum()), dtype=torch.float64),
            log_evidence=q.log_evidence.sum(),
            rows=torch.tensor(float(len(x)), dtype=torch.float64),
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """The exact M-step: W by normal equations for its change, the noise from the new W, π, μ and Ψ."""
        assert isinstance(stats, GSCStats)
        used = float(stats.used)
        if used == 0:
            return params
        weights = params["W"]
        if "W" not in self.fixed:
            weights = weights + solve(stats.zz, stats.ys - weights @ stats.zz)
        frequency = stats.s / used
        if stage.get("ncut", 0.0) > 0:
            frequency = truncated_pis(frequency, self.active)
        new = {
            "W": weights,
            "pi": frequency.clamp(PI_BOUND, 1 - PI_BOUND),
            **(slab_update.full if self.slab == "full" else slab_update.diagonal)(params, stats, self.fixed),
            **noise.fit(self.noise, weights, stats.ys, stats.zz, stats.yy, stats.used),
        }
        made = self.learned(params, self.disturbed({**params, **new}, stage))
        keep = not self.renormalise or {"W", "mu", "psi"} & set(self.fixed)
        return made if keep else slab_update.renormalised(made)

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint (nats, at temperature 1), mean π, σ (root mean square over dimensions), mean
        active atoms, share of points in use."""
        assert isinstance(stats, GSCStats)
        rows, used = max(float(stats.rows), 1.0), max(float(stats.used), 1.0)
        return {
            "free_energy": float(stats.log_evidence) / rows,
            "pi": float(params["pi"].mean()),
            "sigma": noise.level(params),
            "active_atoms": float(stats.s.sum()) / used,
            "used_share": float(stats.used) / rows,
            **substitutions(stats, rows),
        }

    def memory(self, rows: int, dim: int) -> int:
        """Rows, scores, joints and moments of one batch, one tile's states, parameters and statistics in float64."""
        item = 8 if self.dtype == "float64" or self.slab == "full" else 4
        if self.fusible() and not self.missing:
            return working_bytes(self, rows, dim, item)
        pairs = self.candidates * (self.candidates + 1) // 2
        kinds = 2 if self.slab == "full" else 1
        own_gram = (3 * self.candidates + 6) * item if self.missing else 0
        per_row = dim * (2 * item + 16 + own_gram) + (12 * self.atoms + 4 * kinds * pairs) * item + 24 * pairs
        if self.hysteresis:
            # A second posterior, and the better of both.
            per_row += ((1 + 3 * kinds) * self.atoms + 3 * kinds * pairs) * item
        most = max([comb(self.candidates, g) for g in range(2, self.active + 1)], default=1)
        per_tile_row = (8 * most * self.active**2 + 3 * (self.atoms + self.multi_states)) * item
        fixed = 8 * (8 * dim * self.atoms + 8 * kinds * self.atoms**2 + (4 * dim**2 if self.noise == "full" else 0))
        if self.by_sets:
            from .slab_sets import row_bytes

            fixed = 2 * fixed + tile_memory(self.alphabet, self.sets, row_bytes(self, dim))
            return rows * (dim * (2 * item + 16) + Model.row_memory(self)) + fixed
        return rows * per_row + self._tile_rows() * per_tile_row + fixed

    def flops(self, dim: int) -> float:
        """Scores and Σ y<s∘z>ᵀ, and about m³ + 4 m² operations per state of m atoms."""
        sizes = range(2, self.active + 1)
        return 4.0 * dim * self.atoms + sum(comb(self.candidates, m) * (m**3 + 4.0 * m**2) for m in sizes)
