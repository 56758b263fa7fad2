"""Evolutionary states of the discrete linear models: joints and moments of any states through the Gram matrix.

A state costs as many look-ups as it has pairs of active atoms, whatever D and H are:

    log p(y | s) = Σ_{i ∈ s} (v_i b_i - ½ v_i² G_ii)/σ² - Σ_{i<j ∈ s} v_i v_j G_ij/σ² + const.

Shapes: n points, S states of a point, A slots for active atoms, L levels (non-zero values), H atoms, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import log, pi

import torch
from torch import Tensor

from ..base import Batch, Params
from ..schedule import Stage
from .evolution import Landscape, Scene, Sets, code_weights, evolved, weights
from .expectation import temperatures, too_large
from .linear import Linear, LinearStats


@dataclass(frozen=True, slots=True)
class EvolvedStats(LinearStats):
    """Sums over datapoints of a model whose states evolve."""

    substituted: Tensor
    """States replaced in this E-step."""


@dataclass(frozen=True)
class _Theta:
    """Parameters as every tile needs them, float64."""

    weights: Tensor
    gram: Tensor
    """[(H+1)²] G/σ², 0 for the empty slot's atom H."""
    value: Tensor
    """[L·H+1] the value of each code, 0 for none."""
    odds: Tensor
    """[L·H+1] log p(v)/p(0) of each code, 0 for none."""
    log_zero: float
    sigma: float
    wanted: float
    """Σ π."""
    offset: Tensor
    """[D], or zero []."""


class LinearLandscape(Landscape):
    """Joints of states of n points, relative to the zero state."""

    def __init__(self, model: Linear, theta: _Theta, x: Tensor, stage: Stage | None) -> None:
        self._model, self._theta, self.support = model, theta, model.support
        x = x - theta.offset.to(x.dtype)
        self.beta, self.heat = temperatures(stage, model.anneal_prior)
        scores, factor = x @ theta.weights.to(x.dtype), max(abs(v) for v in model.support) / theta.sigma**2
        if too_large(scores, factor):
            x = x.double()
            scores = x @ theta.weights
            too_large(scores, factor)
        super().__init__(model.alphabet, x)
        self.x, self.scores = x, scores
        """Rows [n, D] without the offset, and their products with the atoms [n, H]."""
        self.square = x.double().square().sum(1)
        log_normal = x.shape[1] / 2 * log(2 * pi * theta.sigma**2)
        self.constant = theta.log_zero - log_normal - self.square / (2 * theta.sigma**2)
        self._gram, self._value, self._odds = (t.to(x.dtype) for t in (theta.gram, theta.value, theta.odds))
        energy = self._gram.view(model.atoms + 1, -1).diagonal()[: model.atoms]
        levels = [(v / theta.sigma**2) * scores - (v**2 / 2) * energy for v in model.support]
        self._own = torch.cat([*levels, scores.new_zeros(len(x), 1)], 1)
        self.wanted = theta.wanted

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        alphabet = self.alphabet
        used = int(alphabet.size(states).max()) if states.numel() else 0
        gain = self._own.new_zeros(states.shape[1:])
        odds = torch.zeros_like(gain)
        atoms: list[Tensor] = []
        values: list[Tensor] = []
        for codes in states[:used]:
            gain += self._own.gather(1, codes)
            odds += self._odds[codes]
            atom = alphabet.atom(codes)
            for i, other in enumerate(atoms):
                crossed = self._gram[other * (alphabet.atoms + 1) + atom]
                if self._model.support != (1.0,):
                    crossed *= values[i] * self._value[codes]
                gain -= crossed
            atoms.append(atom)
            values.append(self._value[codes])
        return gain, odds

    def candidates(self, count: int) -> Tensor:
        model, theta = self._model, self._theta
        energy = self._gram.view(model.atoms + 1, -1).diagonal()[: model.atoms]
        odds = self._odds[:-1].view(model.levels, model.atoms)
        return model._choose(self.scores, energy, odds, theta.sigma)[:, :count]  # pyright: ignore[reportPrivateUsage]

    def means(self, states: Tensor, q: Tensor) -> Tensor:
        """<s>."""
        levels = q.new_tensor(self._model.support)
        found = code_weights(states, q, self.alphabet.none).unflatten(1, (len(levels), -1))
        return torch.einsum("nlh,l->nh", found, levels)

    def expected(self, states: Tensor, q: Tensor) -> Tensor:
        """<W s + offset>."""
        return self.means(states, q) @ self._theta.weights.T.to(q.dtype) + self._theta.offset.to(q.dtype)


def scene(model: Linear, params: Params, stage: Stage | None, dim: int) -> Scene:
    """Landscapes of rows of `dim` dimensions."""
    theta = _theta(model, params)
    return Scene(lambda x: LinearLandscape(model, theta, x, stage), row_bytes(model, dim))


def statistics(model: Linear, params: Params, batch: Batch, stage: Stage) -> EvolvedStats:
    """One E-step on the batch's sets, and the sums of their moments."""
    theta, tiles = _theta(model, params), scene(model, params, stage, batch.x.shape[1])
    use = model.used(batch.x.new_zeros(len(batch.x), dtype=torch.float64), batch, stage)
    parts = (_moments(model, theta, land, sets, use[at]) for at, _, land, sets in evolved(batch, stage, model, tiles))
    return reduce(lambda a, b: a + b, parts)


def row_bytes(model: Linear, dim: int) -> int:
    """Bytes of a point's rows, scores and probabilities of values."""
    return 8 * (dim + (1 + 2 * model.levels) * model.atoms)


def _theta(model: Linear, params: Params) -> _Theta:
    weights_, sigma = params["W"], float(params["sigma"])
    gram = torch.nn.functional.pad((weights_.T @ weights_) / sigma**2, (0, 1, 0, 1))
    odds, log_zero = model.log_prior(params)
    none = odds.new_zeros(1)
    support = odds.new_tensor(model.support)
    value = torch.cat([support.repeat_interleave(model.atoms), none])
    wanted = model.atoms * float(model.activity(params).mean())
    offset = params["offset"] if model.offset else none.sum()
    return _Theta(weights_, gram.flatten(), value, torch.cat([odds.flatten(), none]), log_zero, sigma, wanted, offset)


def _moments(model: Linear, theta: _Theta, land: Landscape, sets: Sets, use: Tensor) -> EvolvedStats:
    """The sums of one tile; points outside of `use` [n] only count for the free energy."""
    assert isinstance(land, LinearLandscape)
    alphabet, atoms, x = model.alphabet, model.atoms, land.x
    q, evidence = weights(land, sets)
    q = q * use[:, None]
    used = int(alphabet.size(sets.states).max()) if len(x) else 0
    per_code = q.new_zeros(len(x), alphabet.none + 1)
    flat = torch.zeros((atoms + 1) ** 2, dtype=torch.float64, device=x.device)
    value = theta.value.to(q.dtype)
    seen: list[tuple[Tensor, Tensor]] = []
    for codes in sets.states[:used]:
        per_code.scatter_add_(1, codes, q)
        atom, here = alphabet.atom(codes), q * value[codes]
        for other, there in seen:
            place, weight = other * (atoms + 1) + atom, there * here
            flat += torch.bincount(place.flatten(), weight.flatten().double(), (atoms + 1) ** 2)
        seen.append((atom, value[codes]))
    per_code = per_code[:, :-1].unflatten(1, (model.levels, atoms))
    levels = per_code.new_tensor(model.support)
    mean = torch.einsum("nlh,l->nh", per_code, levels)
    counts = per_code.sum(0, dtype=torch.float64)
    upper = flat.view(atoms + 1, -1)[:atoms, :atoms]
    kept = x * use[:, None]
    return EvolvedStats(
        ys=(kept.T @ mean).double(),
        y=kept.sum(0, dtype=torch.float64) if model.offset else upper.new_zeros(x.shape[1]),
        ss=upper + upper.T + torch.diag(levels.double().square() @ counts),
        s=levels.double() @ counts,
        counts=counts,
        yy=(land.square * use).sum(),
        used=use.sum().double(),
        log_evidence=(evidence + land.constant).sum(),
        rows=torch.tensor(float(len(x)), dtype=torch.float64, device=x.device),
        substituted=sets.substituted.sum().double(),
    )
