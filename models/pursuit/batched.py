"""Orthogonal matching pursuit on many signals at once, in torch: any device, real or complex.

Two equivalent inner loops. The Gram form keeps, for every signal, the correlations q_t of all atoms with its t-th
orthonormal direction (Zhu et al., arXiv 2407.06434, "v0"): correlations with the residual are then updated without the
signals. The residual form keeps the directions themselves and correlates the residual with all atoms in every step; it
needs no Gram matrix. Atoms must have length one or zero.

Shapes: B signals of a block, H atoms, k steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .problem import Status

PIVOT = 1e-6
"""Squared distance of a unit atom to the span of those chosen below which it counts as dependent."""


def silence(dtype: torch.dtype) -> float:
    """Correlation with the residual, relative to ‖x‖, below which nothing is left to find."""
    return 1e-6 if torch.finfo(dtype).bits == 32 else 1e-7


def margin(dtype: torch.dtype) -> float:
    """Relative error of ‖r‖² after all its subtractions: a stop on the error stays this far below it."""
    return 4e-6 if torch.finfo(dtype).bits == 32 else 1e-13


@dataclass(frozen=True, slots=True)
class Rule:
    """Which atoms join a code."""

    steps: int
    """k, the largest number of atoms."""
    ols: bool = False
    """Choose the atom that lowers the error most (optimised OMP), not the most correlated one."""
    least: float = 0.0
    """What an atom must lower ‖r‖² by to join."""


@dataclass(slots=True)
class _Block:
    """Signals that are still at work. Every field has one row per signal."""

    place: Tensor
    """[B] row of the result."""
    alpha: Tensor
    """[B, H] correlations of the atoms with the residual."""
    energy: Tensor
    """[B] ‖x‖²."""
    left: Tensor
    """[B] ‖r‖²."""
    allowed: Tensor
    """[B] the error at which to stop."""
    directions: Tensor
    """[B, k-1, H] q of the Gram form, or [B, k-1, D] the directions of the residual form."""
    factor: Tensor
    """[B, k, k] R of the QR factorisation of the chosen atoms."""
    weights: Tensor
    """[B, k] the signal along the directions."""
    chosen: Tensor
    """[B, k] atoms, -1 where none."""
    room: Tensor
    """[B, H] squared distance of the atoms to the span (rule "ols"), or [B, 0]."""
    residual: Tensor
    """[B, D] of the residual form, or [B, 0]."""

    def take(self, rows: Tensor) -> _Block:
        return _Block(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(slots=True)
class Greedy:
    """What a block's pursuit found: coefficients of unit atoms."""

    chosen: Tensor
    """[B, k] int64 in the order of choice, -1 where unused."""
    values: Tensor
    """[B, k]."""
    status: Tensor
    """[B] uint8."""
    error: Tensor
    """[B] ‖r‖²."""


def row_bytes(dim: int, atoms: int, steps: int, itemsize: int, *, gram: bool, ols: bool) -> int:
    """Scratch bytes per signal of `pursue`."""
    wide = atoms if gram else dim
    return itemsize * (max(0, steps - 1) * wide + (5 + ols) * atoms + 2 * steps * steps + 2 * dim)


def pursue(x: Tensor, atoms: Tensor, energy: Tensor, rule: Rule, *, allowed: Tensor, gram: Tensor | None) -> Greedy:
    """Pursue all signals of one block together.

    Args:
        x: [B, D].
        atoms: [D, H], unit or zero columns.
        energy: [B] ‖x‖².
        rule: which atoms join, and how many.
        allowed: [B] stop where ‖r‖² is at most this; negative for never.
        gram: [H, H], or None for the residual form.
    """
    steps = rule.steps
    out = Greedy(
        torch.full((len(x), steps), -1, dtype=torch.int64, device=x.device),
        x.new_zeros(len(x), steps),
        torch.full((len(x),), int(Status.FULL), dtype=torch.uint8, device=x.device),
        energy.clone(),
    )
    block = _begin(x, atoms, energy, allowed, rule, gram)
    out.status[energy == 0] = Status.ZERO
    out.status[(energy > 0) & (energy <= allowed)] = Status.REACHED
    alive = (energy > 0) & (energy > allowed)
    for t in range(steps):
        count = int(alive.sum())
        if count == 0:
            break
        if count < len(alive) / 2:
            _solve(block, t, out)
            block, alive = block.take(alive), alive[alive]
        alive = _step(block, t, alive, atoms, gram, out, rule)
    _solve(block, steps, out)
    return out


def _begin(x: Tensor, atoms: Tensor, energy: Tensor, allowed: Tensor, rule: Rule, gram: Tensor | None) -> _Block:
    steps, count, width = rule.steps, len(x), atoms.shape[1] if gram is not None else x.shape[1]
    squares = atoms.abs().square().sum(0)
    return _Block(
        place=torch.arange(count, device=x.device),
        alpha=x @ atoms.conj(),
        energy=energy,
        left=energy.clone(),
        allowed=allowed,
        directions=x.new_zeros(count, max(0, steps - 1), width),
        factor=torch.eye(steps, dtype=x.dtype, device=x.device).expand(count, steps, steps).clone(),
        weights=x.new_zeros(count, steps),
        chosen=torch.full((count, steps), -1, dtype=torch.int64, device=x.device),
        room=squares.expand(count, -1).clone() if rule.ols else energy.new_zeros(count, 0),
        residual=x.clone() if gram is None else x.new_zeros(count, 0),
    )


def _step(s: _Block, t: int, alive: Tensor, atoms: Tensor, gram: Tensor | None, out: Greedy, rule: Rule) -> Tensor:
    """One atom more for every signal that is alive; returns which are alive after it."""
    rows = torch.arange(len(alive), device=alive.device)
    j = _best(s)
    top = s.alpha[rows, j]
    over = alive & (top.abs() <= silence(top.dtype) * s.energy.sqrt())
    w, square = _projections(s, t, j, rows, atoms, gram)
    pivot = square - w.abs().square().sum(1)
    dependent = alive & ~over & (pivot <= PIVOT)
    over |= alive & ~dependent & (top.abs().square() < rule.least * pivot)
    out.status[s.place[over]] = Status.CONVERGED
    out.status[s.place[dependent]] = Status.DEPENDENT
    alive = alive & ~over & ~dependent
    root = torch.where(alive, pivot, 1).sqrt()
    rho = torch.where(alive, top / root, 0)
    s.chosen[:, t] = torch.where(alive, j, -1)
    s.factor[:, :t, t] = torch.where(alive[:, None], w, 0)
    s.factor[:, t, t] = root.to(w.dtype)
    s.weights[:, t] = rho
    s.left -= rho.abs().square()
    out.error[s.place] = s.left.clamp(min=0)
    reached = alive & (s.left <= s.allowed - margin(s.left.dtype) * s.energy)
    out.status[s.place[reached]] = Status.REACHED
    alive = alive & ~reached
    if t + 1 < rule.steps:
        _advance(s, t, j, w, root, rho, atoms, gram)
    return alive


def _best(s: _Block) -> Tensor:
    score = s.alpha.abs()
    if s.room.shape[1]:
        score = torch.where(s.room > PIVOT, score.square() / s.room.clamp(min=PIVOT), 0)
    # Of equal entries argmax takes the first.
    return score.argmax(1)


def _projections(
    s: _Block, t: int, j: Tensor, rows: Tensor, atoms: Tensor, gram: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The chosen atom along the directions so far, [B, t], and its squared length, [B]."""
    if gram is not None:
        return s.directions[rows, :t, j].conj().resolve_conj(), gram.diagonal().real[j]
    atom = atoms[:, j].mT
    return (s.directions[:, :t].conj() @ atom[:, :, None])[:, :, 0], atom.abs().square().sum(1)


def _advance(
    s: _Block, t: int, j: Tensor, w: Tensor, root: Tensor, rho: Tensor, atoms: Tensor, gram: Tensor | None
) -> None:
    """The next direction and the correlations with the new residual."""
    start = atoms[:, j].mT if gram is None else gram[j].conj().resolve_conj()
    new = torch.baddbmm(start[:, None], w[:, None], s.directions[:, :t], alpha=-1)[:, 0] / root[:, None]
    s.directions[:, t] = new
    if gram is None:
        s.residual -= rho[:, None] * new
        torch.matmul(s.residual, atoms.conj(), out=s.alpha)
        along = new @ atoms.conj() if s.room.shape[1] else new
    else:
        s.alpha -= rho[:, None] * new
        along = new
    chosen = s.chosen[:, : t + 1].clamp(min=0)
    keep = torch.where(s.chosen[:, : t + 1] >= 0, 0, s.alpha.gather(1, chosen))
    s.alpha.scatter_(1, chosen, keep)
    if s.room.shape[1]:
        s.room -= torch.where(rho == 0, 0, 1)[:, None] * along.abs().square()


def _solve(s: _Block, t: int, out: Greedy) -> None:
    """Coefficients of all signals of the block from their triangular factors; unused steps give zeros."""
    factor, weights = s.factor[:, :t, :t], s.weights[:, :t, None]
    values = torch.linalg.solve_triangular(factor, weights, upper=True)[:, :, 0]
    out.values[s.place, :t] = values
    out.chosen[s.place, :t] = s.chosen[:, :t]
