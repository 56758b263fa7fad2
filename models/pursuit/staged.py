"""Pursuits that add or exchange several atoms at a time, batched in torch on any device.

    gomp    the L most correlated atoms join per stage (Wang, Kwon & Shim 2012)
    nnomp   like OMP with codes >= 0 (Bruckstein, Elad & Zibulevsky 2008)
    stomp   all atoms above a threshold join (Donoho et al. 2012)
    cosamp  the 2k most correlated atoms compete with the k at hand (Needell & Tropp 2009)
    sp      subspace pursuit: k compete with k (Dai & Milenkovic 2009)
    mp      matching pursuit: no other coefficient is fitted again (Mallat & Zhang 1993)

Each stage proposes atoms; least squares on all of them follows, where atoms that depend on those before are left out.
Inside, atoms have length one or zero, as in `batch_omp`.

Shapes: B signals of a block, H atoms, w atoms at hand (-1: none).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from .batched import PIVOT, margin, silence
from .omp import check_error, check_steps
from .problem import BUDGET, Pursued, Status, blocks, check_problem, energies, gram_matrix, joined, real, unit

Rule = Literal["gomp", "nnomp", "stomp", "cosamp", "sp", "mp"]
RULES = ("gomp", "nnomp", "stomp", "cosamp", "sp", "mp")


@dataclass(slots=True)
class _State:
    chosen: Tensor
    """[B, w] int64, -1 where none."""
    values: Tensor
    """[B, w]."""
    alpha: Tensor
    """[B, H] correlations with the residual."""
    left: Tensor
    """[B] ‖r‖²."""


@dataclass(frozen=True, slots=True)
class _Problem:
    b: Tensor
    gram: Tensor
    energy: Tensor
    allowed: Tensor
    rule: Rule
    k: int
    dim: int
    group: int
    strictness: float


def staged(
    x: Tensor,
    atoms: Tensor,
    rule: Rule,
    *,
    nonzeros: int,
    error: Tensor | float | None = None,
    group: int = 3,
    strictness: float = 2.5,
    stages: int | None = None,
    gram: Tensor | None = None,
    trust_gram: bool = False,
    budget: int = BUDGET,
) -> Pursued:
    """Sparse codes by one of the pursuits above.

    Args:
        x: [n, D] signals, float32 or float64.
        atoms: [D, H]; of any length, normalised inside.
        rule: which pursuit.
        nonzeros: k, most entries of a code.
        error: stop where ‖x - D a‖² is at most this: a number, or [n].
        group: L of gomp.
        strictness: t of stomp: atoms join whose correlation exceeds t·‖r‖/√D.
        stages: at most so many; by default k for gomp, 2 k for nnomp, 10 for stomp, 30 for cosamp and sp, 10 k for mp.
        gram: atomsᵀ atoms [H, H], where it is at hand.
        trust_gram: leave out the look for NaN and infinite values in `gram`.
        budget: bytes of scratch memory besides the Gram matrix.

    Returns:
        Codes with k columns, largest first; status UNFINISHED where the stages ran out: for gomp, nnomp and stomp with
        room left, for the others while the error still fell.

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, real(atoms), gram, trust_gram=trust_gram)
    if rule not in RULES:
        raise ModelError(f"rule={rule!r}: choose one of {', '.join(RULES)}")
    if group < 1 or not strictness > 0 or (stages is not None and stages < 1):
        raise ModelError(f"group={group}, strictness={strictness}, stages={stages}: must be positive")
    k = check_steps(nonzeros, atoms)
    default = {"gomp": k, "nnomp": 2 * k, "stomp": 10, "mp": 10 * k}.get(rule, 30)
    allowed, energy = check_error(error, x), energies(x)
    directions, gram, scale = unit(atoms, gram)
    gram = gram_matrix(directions) if gram is None else gram
    dim, count = atoms.shape
    # What may be at hand in a stage, and the rows of the Gram matrix that are gathered for it.
    room = min(count, {"cosamp": 3 * k, "sp": 2 * k, "stomp": max(k, dim // 2)}.get(rule, k + 1))
    parts: list[Pursued] = []
    for rows in blocks(len(x), ((room + 6) * count + 3 * room * room) * x.itemsize, budget):
        problem = _Problem(
            x[rows] @ directions, gram, energy[rows], allowed[rows], rule, k, dim, min(group, count), strictness
        )
        parts.append(_run(problem, stages or default, scale))
    return joined(parts, k, x)


def refit(gram: Tensor, b: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares on the atoms at hand, in their order; those that depend on the ones before are left out.

    Args:
        gram: [H, H] of unit atoms.
        b: [B, H].
        chosen: [B, w], distinct, -1 where none.

    Returns:
        chosen with -1 for what was left out, and values [B, w], 0 there.
    """
    at = chosen.clamp(min=0)
    values, kept = least_squares(gram[at[:, :, None], at[:, None, :]], b.gather(1, at), chosen >= 0)
    return torch.where(kept, chosen, -1), values


def least_squares(gram: Tensor, b: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Solve many small least-squares problems by Cholesky, leaving out what depends on the columns before.

    Args:
        gram: [B, w, w] of unit columns.
        b: [B, w].
        there: [B, w] which columns take part.

    Returns:
        values [B, w], 0 for columns left out, and which were kept [B, w].
    """
    rest, target, kept = gram, b, there.clone()
    factor, z = torch.zeros_like(gram), torch.zeros_like(b)
    width = b.shape[1]
    for i in range(width):
        pivot = rest[:, i, i]
        kept[:, i] &= pivot > PIVOT
        root = torch.where(kept[:, i], pivot, 1).sqrt()
        column = torch.where(kept[:, i, None], rest[:, :, i] / root[:, None], 0)
        column[:, :i] = 0
        factor[:, :, i] = column
        factor[:, i, i] = root
        z[:, i] = torch.where(kept[:, i], target[:, i] / root, 0)
        target = target - column * z[:, i, None]
        rest = rest - column[:, :, None] * column[:, None, :]
    # What was left out has no row in the triangle either.
    whole = torch.eye(width, dtype=torch.bool, device=b.device)
    factor = torch.where(kept[:, :, None] | whole, factor, 0)
    values = torch.linalg.solve_triangular(factor.mT, z[:, :, None], upper=True)[:, :, 0]
    return torch.where(kept, values, 0), kept


def _run(p: _Problem, stages: int, scale: Tensor) -> Pursued:
    status = torch.full((len(p.b),), int(Status.FULL), dtype=torch.uint8, device=p.b.device)
    status[p.energy <= p.allowed] = Status.REACHED
    status[p.energy == 0] = Status.ZERO
    alive = (p.energy > p.allowed) & (p.energy > 0)
    empty = torch.empty(len(p.b), 0, dtype=torch.int64, device=p.b.device)
    s = _State(empty, p.b[:, :0], p.b, p.energy)
    for _ in range(stages):
        if not bool(alive.any()):
            break
        proposed = torch.where(alive[:, None], _propose(p, s), -1)
        idle = alive & (proposed < 0).all(1)
        full = idle & ((s.chosen >= 0).sum(1) >= p.k)
        status[idle & ~full] = Status.CONVERGED
        alive = alive & ~idle
        new = _exchange(p, s, proposed)
        better = alive & (new.left < s.left - margin(s.left.dtype) * p.energy)
        # A stage that does not lower the error ends the pursuit, and is not kept.
        stuck = alive & ~better
        status[stuck] = Status.CONVERGED if p.rule in ("cosamp", "sp", "mp", "nnomp") else Status.DEPENDENT
        s = _merge(s, new, better)
        reached = better & (s.left <= p.allowed - margin(s.left.dtype) * p.energy)
        status[reached] = Status.REACHED
        alive = better & ~reached
    # With k atoms cosamp, sp and mp could still have gone on; the others could not.
    room = p.rule in ("cosamp", "sp", "mp") or (s.chosen >= 0).sum(1) < p.k
    status[alive & room] = Status.UNFINISHED
    return _result(p, s, status, scale)


def _propose(p: _Problem, s: _State) -> Tensor:
    """Atoms that shall join, [B, …], -1 where none."""
    score = s.alpha if p.rule == "nnomp" else s.alpha.abs()
    if p.rule != "mp":
        score = _without(score, s.chosen)
    count = (s.chosen >= 0).sum(1, keepdim=True)
    floor = silence(score.dtype) * p.energy.sqrt()[:, None]
    if p.rule == "stomp":
        floor = torch.maximum(floor, p.strictness * s.left.sqrt()[:, None] / p.dim**0.5)
    few = {"gomp": p.group, "nnomp": 1, "mp": 1, "cosamp": 2 * p.k, "sp": p.k}.get(p.rule, max(1, p.dim // 2))
    # A stable sort: of equal scores the lowest atom comes first.
    best = score.sort(dim=1, descending=True, stable=True)
    at, value = best.indices[:, :few], best.values[:, :few]
    good = value > floor
    if p.rule in ("gomp", "nnomp", "stomp"):
        most = max(p.k, p.dim // 2) if p.rule == "stomp" else p.k
        good &= count + torch.arange(at.shape[1], device=at.device) < most
    if p.rule == "mp":
        known = (s.chosen[:, None] == at[:, :, None]).any(2)
        good &= known | (count < p.k)
    return torch.where(good, at, -1)


def _exchange(p: _Problem, s: _State, proposed: Tensor) -> _State:
    """The state with the proposed atoms and the coefficients that follow."""
    if p.rule == "mp":
        return _add(p, s, proposed)
    chosen = _packed(torch.cat([s.chosen, proposed], 1))
    chosen, values = refit(p.gram, p.b, chosen)
    if p.rule in ("cosamp", "sp"):
        kept = values.abs().topk(min(p.k, values.shape[1]), dim=1).indices
        chosen, values = refit(p.gram, p.b, _packed(chosen.gather(1, kept)))
    while p.rule == "nnomp" and bool(((values <= 0) & (chosen >= 0)).any()):
        chosen, values = refit(p.gram, p.b, torch.where(values > 0, chosen, -1))
    return _state(p, chosen, values)


def _add(p: _Problem, s: _State, proposed: Tensor) -> _State:
    """One step of matching pursuit: the atom's own correlation is added to its coefficient."""
    j = proposed.clamp(min=0)
    step = torch.where(proposed >= 0, s.alpha.gather(1, j), 0)
    same = s.chosen == proposed
    values = s.values + torch.where(same & (proposed >= 0), step, 0)
    new = (proposed >= 0) & ~same.any(1, keepdim=True)
    chosen = torch.cat([s.chosen, torch.where(new, proposed, -1)], 1)
    return _state(p, chosen, torch.cat([values, torch.where(new, step, 0)], 1))


def _state(p: _Problem, chosen: Tensor, values: Tensor) -> _State:
    order = (chosen < 0).to(torch.uint8).argsort(dim=1, stable=True)
    width = int((chosen >= 0).sum(1).max()) if len(chosen) else 0
    chosen, values = chosen.gather(1, order)[:, :width], values.gather(1, order)[:, :width]
    used = values[:, None]
    ga = (used @ p.gram[chosen.clamp(min=0)])[:, 0] if width else torch.zeros_like(p.b)
    alpha = p.b - ga
    fitted = values * (p.b + alpha).gather(1, chosen.clamp(min=0))
    return _State(chosen, values, alpha, (p.energy - fitted.sum(1)).clamp(min=0))


def _merge(old: _State, new: _State, take: Tensor) -> _State:
    width = max(old.chosen.shape[1], new.chosen.shape[1])
    wide = lambda m, fill: torch.nn.functional.pad(m, (0, width - m.shape[1]), value=fill)  # noqa: E731
    which = take[:, None]
    return _State(
        torch.where(which, wide(new.chosen, -1), wide(old.chosen, -1)),
        torch.where(which, wide(new.values, 0), wide(old.values, 0)),
        torch.where(which, new.alpha, old.alpha),
        torch.where(take, new.left, old.left),
    )


def _without(score: Tensor, chosen: Tensor) -> Tensor:
    """The scores with 0 for the chosen atoms; an unused place writes into a column that is cut off again."""
    wide = torch.nn.functional.pad(score, (0, 1))
    at = torch.where(chosen >= 0, chosen, score.shape[1])
    return wide.scatter(1, at, 0.0)[:, :-1]


def _packed(chosen: Tensor) -> Tensor:
    """The same atoms with the unused places last, and no column that is unused everywhere."""
    order = (chosen < 0).to(torch.uint8).argsort(dim=1, stable=True)
    width = int((chosen >= 0).sum(1).max()) if len(chosen) else 0
    return chosen.gather(1, order)[:, :width]


def _result(p: _Problem, s: _State, status: Tensor, scale: Tensor) -> Pursued:
    chosen, values = s.chosen, s.values
    if chosen.shape[1] > p.k:
        # stomp takes what passes its threshold: of too many atoms the largest are fitted once more.
        kept = values.abs().topk(p.k, dim=1).indices
        chosen, values = refit(p.gram, p.b, _packed(chosen.gather(1, kept)))
        s = _state(p, chosen, values)
        chosen, values = s.chosen, s.values
    order = values.abs().argsort(dim=1, descending=True, stable=True)
    chosen, values = chosen.gather(1, order), values.gather(1, order)
    there = (chosen >= 0) & (values != 0)
    values = torch.where(there, values * scale[chosen.clamp(min=0)], 0)
    return Pursued(Codes(torch.where(there, chosen, -1).to(torch.int32), values), status, s.left)
