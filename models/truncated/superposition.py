"""States whose atoms are superposed by a maximum: their predictions, and the share of each atom in them.

MCA takes the largest of the active atoms in every dimension, MMCA the one of largest magnitude. Annealed, they are
smoothed: with exponent ρ, ȳ = (Σ_h s_h W_h^ρ)^{1/ρ} (signed for MMCA), whose derivative A_h = (W_h/ȳ)^{ρ-1} says how
far atom h explains that dimension. In the limit A is the indicator of the maximum; ties are split evenly.

States of m atoms are kept in colexicographic order. Then those whose last candidate is h are the states of m-1 atoms
among the first h candidates, which come first among theirs, with h added: every state is one operation away from a
smaller one, and whole groups of states are contiguous slices.

Shapes: C_m = C(H', m) states of m atoms, p pixels of a tile (points × dimensions), H' candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

# Beyond this range of powers float32 sums lose the smaller atoms of a state.
FLOAT32_RANGE = 1e-30


@dataclass(frozen=True, slots=True)
class Group:
    """States of `size` atoms whose last candidate is `last`: `parents` first states of size-1 with it added."""

    size: int
    last: int
    parents: slice
    states: slice


def groups(candidates: int, active: int) -> Iterator[Group]:
    """All groups of states of two or more atoms, smaller states first."""
    for size in range(2, active + 1):
        for last in range(size - 1, candidates):
            first = comb(last, size)
            count = comb(last, size - 1)
            yield Group(size, last, slice(0, count), slice(first, first + count))


@lru_cache(maxsize=32)
def holders(candidates: int, size: int) -> list[Tensor]:
    """For every candidate the states of `size` atoms that hold it, [C(H'-1, m-1)] int64 each."""
    rows = sorted(combinations(range(candidates), size), key=lambda c: c[::-1])
    return [torch.tensor([i for i, row in enumerate(rows) if h in row]) for h in range(candidates)]


def state_sizes(candidates: int, active: int) -> list[int]:
    """Atoms of every multi-atom state, in the order of the states."""
    return [m for m in range(2, active + 1) for _ in range(comb(candidates, m))]


def build(atoms: Tensor, active: int, join: Callable[[Tensor, Tensor, Tensor], object]) -> list[Tensor]:
    """[C_m, p] for m = 1 … γ from `atoms` [H', p]; `join(parents, atom, out)` adds an atom to states."""
    candidates = atoms.shape[0]
    levels = [atoms] + [atoms.new_empty(comb(candidates, m), atoms.shape[1]) for m in range(2, active + 1)]
    for g in groups(candidates, active):
        join(levels[g.size - 2][g.parents], atoms[g.last], levels[g.size - 1][g.states])
    return levels


def exact_predictions(atoms: Tensor, active: int, *, signed: bool) -> list[Tensor]:
    """ȳ of the states of 2 … γ atoms, [C_m, p] each: the maximum, or the value of largest magnitude."""
    if not signed:
        return build(atoms, active, lambda parents, atom, out: torch.maximum(parents, atom, out=out))[1:]
    sizes = build(atoms.abs(), active, lambda parents, atom, out: torch.maximum(parents, atom, out=out))
    levels = [atoms] + [torch.empty_like(level) for level in sizes[1:]]
    for g in groups(atoms.shape[0], active):
        stays = sizes[g.size - 2][g.parents] >= atoms[g.last].abs()
        parents = levels[g.size - 2][g.parents]
        torch.where(stays, parents, atoms[g.last], out=levels[g.size - 1][g.states])
    return levels[1:]


def exact_shares(atoms: Tensor, weights: list[Tensor], points: int, *, signed: bool) -> Tensor:
    """Σ_s q(s) A_h(s), [H', p], of the states of 2 … γ atoms with probabilities `weights`, [C_m, points] each."""
    atoms = atoms.abs() if signed else atoms
    active = len(weights) + 1
    levels = build(atoms, active, lambda parents, atom, out: torch.maximum(parents, atom, out=out))
    tied = [torch.ones_like(atoms)] + [torch.empty_like(level) for level in levels[1:]]
    wins, stays = ([torch.empty_like(level) for level in levels] for _ in range(2))
    for g in groups(atoms.shape[0], active):
        parents, here = levels[g.size - 2][g.parents], (g.size - 1, g.states)
        win = torch.ge(atoms[g.last], parents, out=wins[here[0]][here[1]])
        stay = torch.le(atoms[g.last], parents, out=stays[here[0]][here[1]])
        torch.addcmul(win, tied[g.size - 2][g.parents], stay, out=tied[here[0]][here[1]])
    # Each state gives its probability evenly to the atoms that attain its maximum, larger states through their parents.
    given = [torch.zeros_like(atoms)]
    for q, count in zip(weights, tied[1:]):
        shape = (len(q), points, -1)
        given.append(torch.div(q[:, :, None], count.view(shape), out=count.view(shape)).view(len(q), -1))
    shares = torch.zeros_like(atoms)
    for g in reversed(list(groups(atoms.shape[0], active))):
        passed = given[g.size - 1][g.states]
        given[g.size - 2][g.parents].addcmul_(passed, stays[g.size - 1][g.states])
        shares[g.last] += wins[g.size - 1][g.states].mul_(passed).sum(0)
    return shares + given[0]


@dataclass(frozen=True, slots=True)
class Powers:
    """Sums of powers of the states' atoms, relative to the candidates' largest magnitude."""

    top: Tensor
    """[p] largest magnitude of a candidate."""
    atoms: Tensor
    """[H', p] sgn(W) (|W|/top)^ρ."""
    sums: list[Tensor]
    """[C_m, p] for m = 2 … γ."""
    rho: float


def narrow(weights: Tensor, rho: float | None) -> bool:
    """Whether sums of powers of these weights, with exponent ρ (None: the maximum itself), need float64 and are not."""
    if rho is None or weights.dtype == torch.float64:
        return False
    size = weights.abs()
    return float(size.min() / size.max().clamp(min=1e-30)) ** rho < FLOAT32_RANGE


def powers(atoms: Tensor, active: int, rho: float) -> Powers:
    """Sums of powers; all zero where every candidate is."""
    top = atoms.abs().amax(0)
    relative = atoms / top.clamp(min=torch.finfo(atoms.dtype).tiny)
    raised = relative.sign() * relative.abs().pow(rho)
    sums = build(raised, active, lambda parents, atom, out: torch.add(parents, atom, out=out))
    return Powers(top, raised, sums[1:], rho)


def smooth_predictions(found: Powers) -> list[Tensor]:
    """ȳ of the states of 2 … γ atoms, [C_m, p] each."""
    return [s.sign() * s.abs().pow_(1 / found.rho) * found.top for s in found.sums]


def smooth_shares(found: Powers, weights: list[Tensor], points: int, *, signed: bool) -> Tensor:
    """Σ_s q(s) A_h(s), [H', p]. Signed sums may cancel, so that A is cut at 1 there."""
    least = torch.finfo(found.atoms.dtype).tiny
    exponent = (found.rho - 1) / found.rho
    own = found.atoms.abs().pow(exponent)
    inverse = [s.abs().clamp_(min=least).pow_(-exponent) for s in found.sums]
    weigh = lambda q, i: (q[:, :, None] * i.view(len(q), points, -1)).view(len(q), -1)  # noqa: E731
    if not signed:
        given = [torch.zeros_like(own)] + [weigh(q, i) for q, i in zip(weights, inverse)]
        shares = torch.zeros_like(own)
        for g in reversed(list(groups(own.shape[0], len(weights) + 1))):
            passed = given[g.size - 1][g.states]
            given[g.size - 2][g.parents] += passed
            shares[g.last] += passed.sum(0)
        return (shares + given[0]).mul_(own)
    shares = torch.zeros_like(own)
    for size, (q, i) in enumerate(zip(weights, inverse), start=2):
        for h, rows in enumerate(holders(own.shape[0], size)):
            rows = rows.to(own.device)
            shares[h] += weigh(q[rows], i[rows].mul_(own[h]).clamp_(max=1)).sum(0)
    return shares
