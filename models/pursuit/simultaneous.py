"""Simultaneous orthogonal matching pursuit: signals of a group share their atoms (Tropp, Gilbert & Strauss 2006).

In every step the atom joins whose correlations with all residuals of the group are largest together, then every signal
is fitted again on the atoms that its group has. One atom for many noisy signals is told more safely than one for each:
the antennas of an array, the frames of a film, the bands of a spectrum.

Any device, real or complex. Works on residuals, not on a Gram matrix. Shapes: n signals, M groups, H atoms, k steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from .batched import PIVOT, margin, silence
from .omp import check_error, check_steps
from .problem import BUDGET, Pursued, Status, blocks, check_problem, energies, unit


def simultaneous_omp(
    x: Tensor,
    atoms: Tensor,
    *,
    groups: Tensor | int | None = None,
    nonzeros: int | None = None,
    error: Tensor | float | None = None,
    norm: Literal["l1", "l2"] = "l2",
    budget: int = BUDGET,
) -> Pursued:
    """Sparse codes whose atoms are those of the signal's group.

    Args:
        x: [n, D] signals, float32, float64 or complex.
        atoms: [D, H], of the same type; of any length, normalised inside. Those of length zero are never chosen.
        groups: [n] integers >= 0, the group of each signal; or how many consecutive signals make a group (the last may
            be smaller); by default all signals are one.
        nonzeros: k, most atoms of a group; by default min(D, H), which needs `error`.
        error: a group stops where ‖x - D a‖² of each of its signals is at most this: a number, or [n].
        norm: correlations of a group add by magnitude (l1) or by square (l2).
        budget: bytes of scratch memory besides residuals and directions.

    Returns:
        Codes with k columns in the order of choice, the same atoms for all of a group; zero signals have empty codes.
        Status as of the group.

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, atoms)
    steps = check_steps(nonzeros, atoms, error)
    if norm not in ("l1", "l2"):
        raise ModelError(f"norm={norm!r}: choose l1 or l2")
    allowed, energy = check_error(error, x), energies(x)
    member, count = _groups(groups, x)
    directions, _, scale = unit(atoms)
    found = _Groups(x, directions, member, count, steps, power=1 if norm == "l1" else 2, budget=budget)
    status = found.run(energy, allowed)
    chosen = found.chosen[member]
    values = torch.where(chosen >= 0, found.values() * scale[chosen.clamp(min=0)], 0)
    codes = Codes(torch.where(values != 0, chosen, -1).to(torch.int32), values)
    status = torch.where(energy == 0, int(Status.ZERO), status[member]).to(torch.uint8)
    return Pursued(codes, status, found.residual.abs().square().sum(1))


def _groups(groups: Tensor | int | None, x: Tensor) -> tuple[Tensor, int]:
    """The group of each signal [n] int64, and how many groups there may be."""
    if groups is None:
        groups = max(1, len(x))
    if isinstance(groups, int):
        if groups < 1:
            raise ModelError(f"groups={groups}: at least one signal makes a group")
        member = torch.arange(len(x), device=x.device) // groups
    else:
        if groups.shape != (len(x),) or groups.is_floating_point() or groups.is_complex():
            raise ModelError(
                f"groups are {groups.dtype} {tuple(groups.shape)}; give an integer for each of {len(x)} signals"
            )
        member = groups.to(x.device, torch.int64)
        if len(member) and int(member.min()) < 0:
            raise ModelError("groups must not be negative")
        # However the groups are numbered, only those there are get memory.
        member = member.unique(return_inverse=True)[1]
    return member, int(member.max()) + 1 if len(member) else 0


class _Groups:
    """All groups at work. Their atoms are D_I = U R with orthonormal U, one for each step."""

    def __init__(
        self, x: Tensor, atoms: Tensor, member: Tensor, count: int, steps: int, *, power: int, budget: int
    ) -> None:
        self.x, self.atoms, self.member, self.power, self.budget = x, atoms, member, power, budget
        self.residual = x.clone()
        self.chosen = torch.full((count, steps), -1, dtype=torch.int64, device=x.device)
        self.directions = x.new_zeros(count, steps, x.shape[1])
        self.factor = torch.eye(steps, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
        self.weights = x.new_zeros(len(x), steps)

    def run(self, energy: Tensor, allowed: Tensor) -> Tensor:
        """Status [M] of the groups, after all steps."""
        count, steps = self.chosen.shape
        length = self._summed(energy.sqrt() if self.power == 1 else energy)
        status = torch.full((count,), int(Status.FULL), dtype=torch.uint8, device=self.x.device)
        reached = self._all(energy <= allowed)
        status[reached] = Status.REACHED
        alive = ~reached & (length > 0)
        for t in range(steps):
            if not bool(alive.any()):
                break
            score = self._scores()
            score = _without(score, self.chosen[:, :t])
            # Of equal entries argmax takes the first.
            top, j = score.max(1).values, score.argmax(1)
            quiet = silence(top.dtype) ** self.power * length
            over = alive & (top <= quiet)
            status[over] = Status.CONVERGED
            dependent = self._append(t, j, alive & ~over)
            status[dependent] = Status.DEPENDENT
            alive = alive & ~over & ~dependent
            self._project(t, alive)
            left = self.residual.abs().square().sum(1)
            reached = alive & self._all(left <= allowed - margin(left.dtype) * energy)
            status[reached] = Status.REACHED
            alive = alive & ~reached
        return status

    def values(self) -> Tensor:
        """Coefficients of unit atoms [n, k]."""
        steps = self.weights.shape[1]
        out = torch.empty_like(self.weights)
        for rows in blocks(len(out), 2 * steps * steps * out.itemsize, self.budget):
            factor = self.factor[self.member[rows]]
            out[rows] = torch.linalg.solve_triangular(factor, self.weights[rows, :, None], upper=True)[:, :, 0]
        return out

    def _scores(self) -> Tensor:
        """[M, H] how the atoms correlate with the residuals of each group."""
        real = self.residual.real.dtype
        out = torch.zeros(len(self.chosen), self.atoms.shape[1], dtype=real, device=self.x.device)
        for rows in blocks(len(self.x), 3 * self.atoms.shape[1] * self.x.itemsize, self.budget):
            size = (self.residual[rows] @ self.atoms.conj()).abs()
            out.index_add_(0, self.member[rows], size if self.power == 1 else size.square())
        return out

    def _append(self, t: int, j: Tensor, alive: Tensor) -> Tensor:
        """Add atom j [M] to the groups that are alive; returns in which [M] it depends on the atoms before."""
        atom = self.atoms[:, j].mT
        before = self.directions[:, :t]
        along = torch.zeros(len(j), t, dtype=atom.dtype, device=atom.device)
        new = atom
        # Twice is enough: what the first subtraction leaves by rounding, the second takes.
        for _ in range(2):
            more = (before.conj() @ new[:, :, None])[:, :, 0]
            new = new - (before.mT @ more[:, :, None])[:, :, 0]
            along = along + more
        square = new.abs().square().sum(1)
        dependent = alive & (square <= PIVOT)
        taken = alive & ~dependent
        root = torch.where(taken, square, 1).sqrt()
        self.chosen[:, t] = torch.where(taken, j, -1)
        self.factor[:, :t, t] = torch.where(taken[:, None], along, 0)
        self.factor[:, t, t] = root.to(atom.dtype)
        self.directions[:, t] = torch.where(taken[:, None], new / root[:, None], 0)
        return dependent

    def _project(self, t: int, alive: Tensor) -> None:
        """Take the new direction out of the residuals of the groups that are alive."""
        for rows in blocks(len(self.x), 3 * self.x.shape[1] * self.x.itemsize, self.budget):
            own = self.directions[self.member[rows], t]
            weight = (self.residual[rows] * own.conj()).sum(1)
            weight = torch.where(alive[self.member[rows]], weight, 0)
            self.weights[rows, t] = weight
            self.residual[rows] -= weight[:, None] * own

    def _summed(self, of: Tensor) -> Tensor:
        return torch.zeros(len(self.chosen), dtype=of.dtype, device=of.device).index_add_(0, self.member, of)

    def _all(self, holds: Tensor) -> Tensor:
        """[M] whether it holds for all signals of the group."""
        return self._summed((~holds).to(torch.int64)) == 0


def _without(score: Tensor, chosen: Tensor) -> Tensor:
    """The scores with 0 for atoms that are at hand; an unused place writes into a column that is cut off again."""
    wide = torch.nn.functional.pad(score, (0, 1))
    return wide.scatter(1, torch.where(chosen >= 0, chosen, score.shape[1]), 0.0)[:, :-1]
