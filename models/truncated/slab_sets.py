"""Evolutionary states of the spike-and-slab model: joints and moments of any states in their active dimensions.

States are sorted by their number of active atoms m; those of one m are one call of `slab.state_moments`, each of them
the state in which all of m candidates are active.

Shapes: n points, S states of a point, q states of m atoms among all of theirs, A slots for active atoms, H atoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import log, pi

import torch
from torch import Tensor

from ..base import Batch, Params
from ..schedule import Stage
from . import noise
from .evolution import Landscape, Scene, Sets, evolved, weights
from .expectation import temperatures, too_large
from .gsc import GSC, GSCStats
from .slab import Moments, Points, Tile, size_class, state_moments


@dataclass(frozen=True, slots=True)
class EvolvedStats(GSCStats):
    """Sums over datapoints of a model whose states evolve."""

    substituted: Tensor
    """States replaced in this E-step."""


class SlabLandscape(Landscape):
    """Joints of states of n points, relative to the zero state."""

    def __init__(self, model: GSC, params: Params, x: Tensor, stage: Stage | None) -> None:
        self._model = model
        self.beta, self.heat = temperatures(stage, model.anneal_prior)
        x = x.double() if model.slab == "full" else x
        theta = model.theta(params, x.dtype)
        scores = x @ theta.scaled
        factor = float((theta.mu.abs() + theta.variance.sqrt()).max())
        if too_large(scores, factor):
            x = x.double()
            theta = model.theta(params, x.dtype)
            scores = x @ theta.scaled
            too_large(scores, factor)
        super().__init__(model.alphabet, x)
        self.theta, self.scores, self._weights = theta, scores, params["W"]
        log_normal = 0.5 * noise.log_det(params, x.shape[1]) + x.shape[1] / 2 * log(2 * pi)
        self.constant = theta.log_zero - log_normal - noise.squares(params, x) / 2
        self.wanted = float(params["pi"].sum())

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        gain = self.scores.new_zeros(states.shape[1:])
        logit = torch.cat([self.theta.logit, self.theta.logit.new_zeros(1)])
        odds = logit[states].sum(0)
        for which, _, found in self.by_size(states, wanted=False):
            gain.view(-1)[which] = found.gain[0]
        return gain, odds

    def candidates(self, count: int) -> Tensor:
        part = Points(self.scores, self.theta.gram.diagonal(), self.scores, None)
        return self._model.alone(self.theta, part, prior=False).topk(count, dim=1).indices

    def means(self, states: Tensor, q: Tensor) -> Tensor:
        """<s∘z>."""
        atoms = self.alphabet.atoms
        out = torch.zeros(len(q) * atoms, dtype=torch.float64, device=q.device)
        for which, at, found in self.by_size(states, wanted=True):
            weight, point = q.flatten()[which], which // states.shape[2]
            for i in range(len(at)):
                out += _added(point * atoms + at[i], weight * found.first[i][0], out)
        return out.view(-1, atoms)

    def expected(self, states: Tensor, q: Tensor) -> Tensor:
        """<W (s∘z)>."""
        return self.means(states, q) @ self._weights.T.double()

    def by_size(self, states: Tensor, *, wanted: bool) -> Iterator[tuple[Tensor, Tensor, Moments]]:
        """For every number m ≥ 1 of active atoms: the places [q] of its states in [n·S], their atoms [m, q], and their
        moments (all of them where `wanted`)."""
        size = self.alphabet.size(states).flatten()
        flat = states.reshape(len(states), -1)
        for m in range(1, int(size.max()) + 1 if size.numel() else 1):
            which = (size == m).nonzero()[:, 0]
            if not len(which):
                continue
            atoms = flat[:m, which]
            first, second = torch.triu_indices(m, m, device=atoms.device)
            theta, full = self.theta, self.theta.psi.ndim == 2
            tile = Tile(
                scores=self.scores[which // states.shape[2], atoms],
                gram=theta.gram[atoms[first], atoms[second]],
                mean=theta.mu[atoms],
                slab=theta.psi[atoms[first], atoms[second]] if full else theta.psi.sqrt()[atoms],
                full=full,
            )
            yield which, atoms, state_moments(tile, size_class(m, m, self.dtype, atoms.device), wanted=wanted)


def scene(model: GSC, params: Params, stage: Stage | None, dim: int) -> Scene:
    """Landscapes of rows of `dim` dimensions."""
    return Scene(lambda x: SlabLandscape(model, params, x, stage), row_bytes(model, dim))


def statistics(model: GSC, params: Params, batch: Batch, stage: Stage) -> EvolvedStats:
    """One E-step on the batch's sets, and the sums of their moments."""
    use = model.used(batch.x.new_zeros(len(batch.x), dtype=torch.float64), batch, stage)
    tiles = scene(model, params, stage, batch.x.shape[1])
    parts = (_sums(model, x, land, sets, use[at]) for at, x, land, sets in evolved(batch, stage, model, tiles))
    return reduce(lambda a, b: a + b, parts)


def row_bytes(model: GSC, dim: int) -> int:
    """Bytes of a point's rows, scores, and matrices of all states."""
    states = model.sets.size + model.sets.offspring
    kinds = 2 if model.slab == "full" else 1
    return 8 * (dim + 3 * model.atoms + kinds * states * model.alphabet.slots**2)


def _sums(model: GSC, x: Tensor, land: Landscape, sets: Sets, use: Tensor) -> EvolvedStats:
    """The sums of one tile; points outside of `use` [n] only count for the free energy."""
    assert isinstance(land, SlabLandscape)
    atoms, full = model.atoms, model.slab == "full"
    q, evidence = weights(land, sets)
    q = (q * use[:, None]).flatten()
    zero = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=x.device)  # noqa: E731
    s, imputed, sz = zero(atoms), zero(atoms if full else 0), zero(len(x) * atoms)
    zz, spread = zero(atoms**2), zero(atoms**2 if full else 0)
    for which, at, found in land.by_size(sets.states, wanted=True):
        weight, point = q[which], which // sets.states.shape[2]
        for i in range(len(at)):
            s += _added(at[i], weight, s)
            sz += _added(point * atoms + at[i], weight * found.first[i][0], sz)
            if full:
                imputed += _added(at[i], weight * found.imputed[i][0], imputed)
            for j in range(i, len(at)):
                place = at[i] * atoms + at[j]
                zz += _added(place, weight * found.second[i][j][0], zz)
                if full:
                    spread += _added(place, weight * found.spread[i][j][0], spread)
    kept = x * use[:, None]
    return EvolvedStats(
        ys=(kept.double().T @ sz.view(-1, atoms)),
        zz=_symmetric(zz, atoms),
        s=s,
        sz=sz.view(-1, atoms).sum(0),
        yy=noise.second_moment(model.noise, kept),
        imputed=imputed,
        spread=_symmetric(spread, atoms) if full else spread,
        used=use.sum().double(),
        log_evidence=(evidence + land.constant).sum(),
        rows=torch.tensor(float(len(x)), dtype=torch.float64, device=x.device),
        substituted=sets.substituted.sum().double(),
    )


def _added(place: Tensor, value: Tensor, like: Tensor) -> Tensor:
    """Values added up by place."""
    return torch.bincount(place, value.double(), len(like))


def _symmetric(upper: Tensor, atoms: int) -> Tensor:
    """[H, H] from sums over pairs (i, j), each in one of its two places."""
    square = upper.view(atoms, atoms)
    return square + square.T - torch.diag(square.diagonal())
