"""TSC and DSC: the priors of the discrete linear models; BSC is in `bsc.py`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from .expectation import PI_BOUND
from .linear import Linear, LinearStats
from .prior import mass, truncated_pi, truncated_pis

LEAST_VALUE_PROBABILITY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Tied(Linear):
    """One probability of being active per model (or per atom), shared evenly by the non-zero values."""

    def start_prior(self, generator: torch.Generator) -> Params:
        """π = 1/H."""
        del generator
        start = torch.tensor(min(1 / self.atoms, 0.5), dtype=torch.float64)
        return {"pi": start.repeat(self.atoms) if self.individual_priors else start}

    def log_prior(self, params: Params) -> tuple[Tensor, float]:
        """log (π/L)/(1-π) [L, H], and Σ_h log(1-π)."""
        pi = params["pi"].double().expand(self.atoms)
        zero = torch.log1p(-pi)
        return ((pi / self.levels).log() - zero).expand(self.levels, -1), float(zero.sum())

    def fit_prior(self, params: Params, stats: LinearStats, cut: bool) -> Tensor:
        """π as the share of active atoms, corrected for the cut."""
        del params
        frequency = stats.counts.sum(0) / stats.used
        if self.individual_priors:
            found = truncated_pis(frequency, self.active) if cut else frequency
        else:
            mean = float(frequency.sum())
            found = frequency.new_tensor(truncated_pi(mean, self.atoms, self.active) if cut else mean / self.atoms)
        return found.clamp(PI_BOUND, 1 - PI_BOUND)

    def activity(self, params: Params) -> Tensor:
        """π."""
        return params["pi"]

    def mass(self, params: Params) -> float:
        """P(|s| ≤ γ)."""
        return mass(params["pi"], self.atoms, self.active)


@dataclass(frozen=True, kw_only=True)
class TSC(Tied):
    """Ternary sparse coding: atoms are added, subtracted or off; π is the probability of either sign together."""

    h_prime: int = 6
    """Candidate atoms per datapoint (H'); all atoms where there are fewer."""
    gamma: int = 4
    """Most active atoms in an evaluated state (γ)."""

    @property
    def support(self) -> tuple[float, ...]:
        """-1 and 1."""
        return (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DSC(Linear):
    """Discrete sparse coding: atoms are multiplied by one of a few given values, whose probabilities are learned.

    The parameter `pi` [K] (per atom: [H, K]) holds the values' probabilities in the order of `values`; `values` is
    handed on among the parameters so that a published dictionary says what its probabilities belong to.
    """

    values: tuple[float, ...] = (0.0, 1.0, 2.0)
    """Values of a latent; 0 must be one of them."""
    h_prime: int = 5
    """Candidate atoms per datapoint (H'); all atoms where there are fewer."""
    gamma: int = 4
    """Most active atoms in an evaluated state (γ)."""

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in self.values):
            raise ModelError(f"values={list(self.values)}: every value must be finite")
        if self.values.count(0) != 1 or len(set(self.values)) != len(self.values) or len(self.values) < 2:
            raise ModelError(f"values={list(self.values)}: give 0 once and at least one other value, each once")
        Linear.__post_init__(self)

    @property
    def support(self) -> tuple[float, ...]:
        """The values other than 0, in their order."""
        return tuple(v for v in self.values if v != 0)

    @property
    def _zero(self) -> int:
        return self.values.index(0)

    def start_prior(self, generator: torch.Generator) -> Params:
        """p(0) = 1 - 1/H, the rest split at random."""
        active = min(1 / self.atoms, 0.5)
        share = torch.rand(self.levels, generator=generator, dtype=torch.float64) + 0.1
        pi = self._with_zero(active * share / share.sum())
        given = torch.tensor(self.values, dtype=torch.float64)
        return {"pi": pi.repeat(self.atoms, 1) if self.individual_priors else pi, "values": given}

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """As `Truncated.adopt`.

        Raises:
            ModelError: π does not add up to 1.
        """
        found = Linear.adopt(self, name, given, own)
        if name == "pi" and bool(((given.sum(-1) - 1).abs() > 1e-3).any()):
            raise ModelError(f"pi adds up to {float(given.sum(-1).max()):g}: give a probability for each of `values`")
        return self._bounded(found) if name == "pi" else found

    def log_prior(self, params: Params) -> tuple[Tensor, float]:
        """log p(v)/p(0) [L, H], and Σ_h log p(0).

        Raises:
            ModelError: the parameters belong to other values than the settings name.
        """
        if tuple(params["values"].tolist()) != self.values:
            raise ModelError(
                f"values={list(self.values)}, but these parameters belong to {params['values'].tolist()}; use those"
            )
        logs = params["pi"].double().log().expand(self.atoms, -1)
        zero = logs[:, self._zero]
        return (self._without_zero(logs) - zero[:, None]).T, float(zero.sum())

    def fit_prior(self, params: Params, stats: LinearStats, cut: bool) -> Tensor:
        """The values' shares; with the cut the mass of the non-zero ones is corrected, their proportions stay."""
        del params
        frequency = stats.counts / stats.used
        share = frequency.T if self.individual_priors else frequency.mean(1)
        active = share.sum(-1, keepdim=True)
        corrected = active
        if cut and self.individual_priors:
            corrected = truncated_pis(active[:, 0], self.active)[:, None]
        elif cut:
            corrected = active.new_tensor([truncated_pi(float(active) * self.atoms, self.atoms, self.active)])
        return self._bounded(self._with_zero(share * (corrected / active.clamp(min=1e-300))))

    def disturbed_pi(self, pi: Tensor, scale: float, draw: Tensor) -> Tensor:
        """Probabilities with uniform noise in [0, scale) added, normalised."""
        uniform = torch.special.ndtr(draw)
        return self._bounded(pi + scale * uniform)

    def activity(self, params: Params) -> Tensor:
        """1 - p(0), [] or [H]."""
        return 1 - params["pi"][..., self._zero]

    def mass(self, params: Params) -> float:
        """P(|s| ≤ γ)."""
        return mass(self.activity(params).clamp(PI_BOUND, 1 - PI_BOUND), self.atoms, self.active)

    def _with_zero(self, share: Tensor) -> Tensor:
        """[…, L] probabilities of the non-zero values -> […, K] of all."""
        rest = (1 - share.sum(-1, keepdim=True)).clamp(min=0)
        return torch.cat([share[..., : self._zero], rest, share[..., self._zero :]], -1)

    def _without_zero(self, all_: Tensor) -> Tensor:
        return torch.cat([all_[..., : self._zero], all_[..., self._zero + 1 :]], -1)

    def _bounded(self, pi: Tensor) -> Tensor:
        pi = pi.clamp(min=LEAST_VALUE_PROBABILITY)
        return pi / pi.sum(-1, keepdim=True)
