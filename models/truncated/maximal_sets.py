"""Evolutionary states of the models whose atoms are superposed by a maximum: predictions of any states, and shares.

Every state costs one row of W per active atom. While the maximum is smoothed, rows of powers are added instead,
relative to the largest magnitude of their dimension (see `superposition.py`).

Shapes: n points, S states of a point, A slots for active atoms, H atoms, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import log, log1p, pi

import torch
from torch import Tensor

from ..base import Batch, Params
from ..schedule import Stage
from .evolution import Landscape, Scene, Sets, code_weights, evolved, weights
from .expectation import temperatures, too_large
from .maximal import Maximal, MaximalStats
from .superposition import narrow


@dataclass(frozen=True, slots=True)
class EvolvedStats(MaximalStats):
    """Sums over datapoints of a model whose states evolve."""

    substituted: Tensor
    """States replaced in this E-step."""


class MaximalLandscape(Landscape):
    """Joints of states of n points, relative to the zero state."""

    def __init__(self, model: Maximal, params: Params, x: Tensor, stage: Stage | None) -> None:
        self._model = model
        self.beta, self.heat = temperatures(stage, model.anneal_prior)
        self.sigma, prior = float(params["sigma"]), float(params["pi"])
        self.logit, self.wanted = log(prior) - log1p(-prior), prior * model.atoms
        energy, factor = params["W"].square().sum(0), 0.5 / self.sigma**2
        if too_large(torch.cat([x.square().sum(1), energy.to(x.dtype)]), factor):
            x = x.double()
            too_large(torch.cat([x.square().sum(1), energy]), factor)
        super().__init__(model.alphabet, x)
        self.x, self.square, variance = x, x.double().square().sum(1), self.sigma**2
        log_normal = x.shape[1] / 2 * log(2 * pi * variance)
        self.constant = model.atoms * log1p(-prior) - log_normal - self.square / (2 * variance)
        self.weights = params["W"].to(x.dtype)
        self.rho = model.rho(stage)
        table = self.weights.T
        if self.rho is not None:
            table = table.double() if narrow(self.weights, self.rho) else table
            self.top = table.abs().amax(0).clamp(min=torch.finfo(table.dtype).tiny)
            relative = table / self.top
            table = relative.sign() * relative.abs().pow(self.rho)
        self.rows = torch.cat([table, table.new_zeros(1, table.shape[1])])
        """[H+1, D] atoms or their powers; 0 for the empty slot's atom H."""

    def superposed(self, states: Tensor) -> Tensor:
        """[n, C, D] the maximum of the states' rows, or the sum of their powers."""
        used = int(self.alphabet.size(states).max()) if states.numel() else 0
        out = self.rows[-1].expand(*states.shape[1:], -1).clone()
        for codes in states[:used]:
            row = self.rows[codes]
            if self.rho is not None:
                out += row
            elif self._model.signed:
                out = torch.where(row.abs() > out.abs(), row, out)
            else:
                torch.maximum(out, row, out=out)
        return out

    def predicted(self, states: Tensor) -> Tensor:
        """[n, C, D] the rows that states make, without noise."""
        found = self.superposed(states)
        if self.rho is not None:
            found = found.sign() * found.abs().pow_(1 / self.rho) * self.top
        return found.to(self.dtype)

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.linalg.vector_norm(self.predicted(states).sub_(self.x[:, None]), dim=2).square_()
        gain = (self.x.square().sum(1, keepdim=True) - error) / (2 * self.sigma**2)
        return gain, self.alphabet.size(states).to(self.dtype) * self.logit

    def candidates(self, count: int) -> Tensor:
        return self._model.choose(self.weights, self.x, self.x @ self.weights, self.weights.square().sum(0))[:, :count]

    def means(self, states: Tensor, q: Tensor) -> Tensor:
        """<s>."""
        return code_weights(states, q, self.alphabet.none)

    def expected(self, states: Tensor, q: Tensor) -> Tensor:
        """<ȳ>."""
        return torch.einsum("ns,nsd->nd", q, self.predicted(states))

    def shares(self, states: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Σ q A [H, D] and Σ q A y [H, D] over the states with probabilities `q` [n, S]."""
        whole = self.superposed(states)
        used = int(self.alphabet.size(states).max()) if states.numel() else 0
        if self.rho is None:
            total = sum((self._attains(codes, whole) for codes in states[:used]), torch.zeros_like(whole))
            given = q[:, :, None] / total.clamp(min=1)
        else:
            exponent = (self.rho - 1) / self.rho
            given = whole.abs().clamp_(min=torch.finfo(whole.dtype).tiny).pow_(-exponent)
        a, ay = (torch.zeros_like(self.rows) for _ in range(2))
        for codes in states[:used]:
            if self.rho is None:
                share = self._attains(codes, whole) * given
            else:
                share = self.rows[codes].abs().pow_((self.rho - 1) / self.rho) * given
                share = (share.clamp_(max=1) if self._model.signed else share) * q[:, :, None]
            a.index_add_(0, codes.flatten(), share.flatten(0, 1))
            ay.index_add_(0, codes.flatten(), (share * self.x[:, None]).flatten(0, 1))
        return a[:-1], ay[:-1]

    def _attains(self, codes: Tensor, whole: Tensor) -> Tensor:
        """[n, S, D] 1 where the atom's entry is the state's maximum."""
        row = self.rows[codes]
        hit = row.abs() == whole.abs() if self._model.signed else row == whole
        return (hit & (codes != self.alphabet.none)[:, :, None]).to(whole.dtype)


def scene(model: Maximal, params: Params, stage: Stage | None, dim: int) -> Scene:
    """Landscapes of rows of `dim` dimensions."""
    return Scene(lambda x: MaximalLandscape(model, params, x, stage), row_bytes(model, dim))


def statistics(model: Maximal, params: Params, batch: Batch, stage: Stage) -> EvolvedStats:
    """One E-step on the batch's sets, and the sums over them."""
    use = model.used(batch.x.new_zeros(len(batch.x), dtype=torch.float64), batch, stage)
    tiles = scene(model, params, stage, batch.x.shape[1])
    parts = (_sums(model, land, sets, use[at]) for at, _, land, sets in evolved(batch, stage, model, tiles))
    return reduce(lambda a, b: a + b, parts)


def row_bytes(model: Maximal, dim: int) -> int:
    """Bytes of a point's predictions in all states."""
    return 16 * dim * (model.sets.size + model.sets.offspring)


def _sums(model: Maximal, land: Landscape, sets: Sets, use: Tensor) -> EvolvedStats:
    """The sums of one tile; points outside of `use` [n] only count for the free energy."""
    assert isinstance(land, MaximalLandscape)
    q, evidence = weights(land, sets)
    explained = (q * sets.gain.masked_fill(~sets.gain.isfinite(), 0)).sum(1).double() * (2 * land.sigma**2)
    residual = (land.square - explained).clamp(min=0)
    q = q * use[:, None]
    a, ay = land.shares(sets.states, q.to(land.rows.dtype))
    return EvolvedStats(
        ay=ay.T.double().contiguous(),
        a=a.T.double().contiguous(),
        active=(q * model.alphabet.size(sets.states)).sum(dtype=torch.float64),
        residual=(residual * use).sum(),
        yy=(land.square * use).sum(),
        used=use.sum().double(),
        log_evidence=(evidence + land.constant).sum(),
        rows=torch.tensor(float(len(use)), dtype=torch.float64, device=use.device),
        substituted=sets.substituted.sum().double(),
    )
