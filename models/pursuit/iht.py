"""Iterative hard thresholding, batched in torch on any device: a <- the k largest entries of a + mu Dᵀ(x - D a).

Fixed step (Blumensath & Davies 2009), normalised step (NIHT, 2010), accelerated by double over-relaxation (AIHT, 2012).
Two products per iteration, however large k is.

Shapes: B signals of a block, H atoms, k entries of a code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from ..kernels import top_k
from .fista import largest_eigenvalue
from .omp import check_steps
from .problem import BUDGET, Pursued, Status, blocks, check_problem, energies, joined, real, unit
from .staged import least_squares

Step = Literal["fixed", "normalised", "accelerated"]
STEPS = ("fixed", "normalised", "accelerated")
SLACK = 0.01
"""c of NIHT: how far below the safe step a new support must stay."""
HALVINGS = 40


def iht(
    x: Tensor,
    atoms: Tensor,
    *,
    nonzeros: int,
    step: Step = "accelerated",
    iterations: int = 100,
    tolerance: float = 1e-6,
    budget: int = BUDGET,
) -> Pursued:
    """Sparse codes with k non-zeros by iterative hard thresholding, least squares on the support at the end.

    Args:
        x: [n, D] signals, float32 or float64.
        atoms: [D, H]; of any length, normalised inside.
        nonzeros: k.
        step: "fixed" (1/λmax, never raises the error), "normalised", or "accelerated".
        iterations: at most so many.
        tolerance: a signal is done where an iteration lowers ‖r‖² by less than this share of ‖x‖².
        budget: bytes of scratch memory.

    Returns:
        Codes with k columns, largest first; status CONVERGED, or UNFINISHED where the iterations ran out.

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, real(atoms))
    if step not in STEPS:
        raise ModelError(f"step={step!r}: choose one of {', '.join(STEPS)}")
    if iterations < 1 or not tolerance > 0:
        raise ModelError(f"iterations={iterations}, tolerance={tolerance}: must be positive")
    k = check_steps(nonzeros, atoms)
    directions, _, scale = unit(atoms)
    # The largest eigenvalue of the smaller of the two Gram matrices.
    small = directions @ directions.mT if atoms.shape[0] < atoms.shape[1] else directions.mT @ directions
    safe = 1 / max(largest_eigenvalue(small), 1e-30)
    energy = energies(x)
    parts: list[Pursued] = []
    for rows in blocks(
        len(x), (6 * atoms.shape[1] + 8 * atoms.shape[0] + k * (atoms.shape[0] + k)) * x.itemsize, budget
    ):
        parts.append(_run(x[rows], energy[rows], directions, k, step, safe, iterations, tolerance, scale))
    return joined(parts, k, x)


def _run(
    x: Tensor,
    energy: Tensor,
    atoms: Tensor,
    k: int,
    step: Step,
    safe: float,
    iterations: int,
    tolerance: float,
    scale: Tensor,
) -> Pursued:
    a = torch.zeros(len(x), atoms.shape[1], dtype=x.dtype, device=x.device)
    fit, left, before = torch.zeros_like(x), energy, a
    done = energy == 0
    for i in range(iterations):
        gradient = (x - fit) @ atoms
        if step == "fixed":
            new = keep_largest(a + safe * gradient, k)
        else:
            new = _normalised(a, gradient, atoms, k, first=i == 0)
        new_fit = new @ atoms.mT
        new_left = (x - new_fit).square().sum(1)
        if step == "accelerated" and i > 0:
            new, new_fit, new_left = _relaxed(new, new_fit, new_left, a, before, x, atoms, k)
        worse = done | (new_left > left)
        before = a
        gain = left - new_left
        a = torch.where(worse[:, None], a, new)
        fit = torch.where(worse[:, None], fit, new_fit)
        left = torch.where(worse, left, new_left)
        done |= gain <= tolerance * energy
        if bool(done.all()):
            break
    return _refitted(x, atoms, a, k, done, energy, scale)


def keep_largest(a: Tensor, k: int) -> Tensor:
    """`a` [B, H] with all but the k largest entries of each row in magnitude set to zero."""
    _, at = top_k(a.abs(), k)
    return torch.zeros_like(a).scatter_(1, at, a.gather(1, at))


def _normalised(a: Tensor, gradient: Tensor, atoms: Tensor, k: int, *, first: bool) -> Tensor:
    """A step as long as the curvature along the support allows, halved while a new support makes it unsafe."""
    support = keep_largest(gradient, k) != 0 if first else a != 0
    along = torch.where(support, gradient, 0)
    mu = along.square().sum(1) / (along @ atoms.mT).square().sum(1).clamp(min=1e-30)
    new = keep_largest(a + mu[:, None] * gradient, k)
    for _ in range(HALVINGS):
        change = new - a
        limit = change.square().sum(1) / (change @ atoms.mT).square().sum(1).clamp(min=1e-30)
        unsafe = ((new != 0) != support).any(1) & (mu > (1 - SLACK) * limit) & (change != 0).any(1)
        if not bool(unsafe.any()):
            break
        mu = torch.where(unsafe, mu / 2, mu)
        new = torch.where(unsafe[:, None], keep_largest(a + mu[:, None] * gradient, k), new)
    return new


def _relaxed(
    new: Tensor, fit: Tensor, left: Tensor, a: Tensor, before: Tensor, x: Tensor, atoms: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Go on along the last one and then the last two changes, each as far as is best; kept where the error falls."""
    moved, moved_fit = new, fit
    for past in (a, before):
        way = moved - past
        way_fit = way @ atoms.mT
        far = ((x - moved_fit) * way_fit).sum(1) / way_fit.square().sum(1).clamp(min=1e-30)
        moved, moved_fit = moved + far[:, None] * way, moved_fit + far[:, None] * way_fit
    moved = keep_largest(moved, k)
    moved_fit = moved @ atoms.mT
    moved_left = (x - moved_fit).square().sum(1)
    better = moved_left < left
    return (
        torch.where(better[:, None], moved, new),
        torch.where(better[:, None], moved_fit, fit),
        torch.where(better, moved_left, left),
    )


def _refitted(x: Tensor, atoms: Tensor, a: Tensor, k: int, done: Tensor, energy: Tensor, scale: Tensor) -> Pursued:
    strength, at = top_k(a.abs(), k)
    own = atoms.mT[at]
    # The Gram matrix and the correlations of each signal's own atoms only.
    values, kept = least_squares(own @ own.mT, (own @ x[:, :, None])[:, :, 0], strength > 0)
    chosen = torch.where(kept, at, -1)
    left = (x - (values[:, None] @ own)[:, 0]).square().sum(1)
    order = values.abs().argsort(dim=1, descending=True, stable=True)
    chosen, values = chosen.gather(1, order), values.gather(1, order)
    there = (chosen >= 0) & (values != 0)
    status = torch.where(done, int(Status.CONVERGED), int(Status.UNFINISHED))
    status[energy == 0] = Status.ZERO
    codes = Codes(
        torch.where(there, chosen, -1).to(torch.int32), torch.where(there, values * scale[chosen.clamp(min=0)], 0)
    )
    return Pursued(codes, status.to(torch.uint8), left)
