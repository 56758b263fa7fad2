"""Lasso and its kin on many signals at once: FISTA (Beck & Teboulle 2009) with a restart per signal (O'Donoghue &
Candès 2015), in torch on any device, and the duality gap that all lasso solvers stop on.

F(a) = ½‖x - D a‖² + Σ_j λ_j |a_j| + ½ λ₂ ‖a‖², optionally with a >= 0.

Shapes: B signals of a block, H atoms; G = DᵀD [H, H], b = x·D [B, H].
"""

from __future__ import annotations

import torch
from torch import Tensor

CHECK_EVERY = 10
"""Iterations between two looks at the duality gap."""


def shrink(v: Tensor, amount: Tensor, *, nonnegative: bool) -> Tensor:
    """The proximal step of the penalty: soft threshold, or one-sided for codes without negative entries."""
    if nonnegative:
        return (v - amount).clamp(min=0)
    return v - v.clamp(min=-amount, max=amount)


def duality_gap(
    a: Tensor, b: Tensor, ga: Tensor, energy: Tensor, penalty: Tensor, ridge: float, *, nonnegative: bool
) -> tuple[Tensor, Tensor]:
    """How far the objective is from its minimum at most, per signal, and ‖x - D a‖².

    With the residual r (the ridge counted as further rows of D), the dual point is r scaled until |d_jᵀr| <= λ_j.
    Sums are in float64.

    Args:
        a: [B, H] codes.
        b: [B, H] x·D.
        ga: [B, H] a·G, without the ridge.
        energy: [B] ‖x‖².
        penalty: [H] λ.
        ridge: λ₂.
        nonnegative: whether a >= 0 is demanded.

    Returns:
        gap [B] and error [B], float64.
    """
    wide, gradient = a.double(), (b - ga - ridge * a).double()
    ab, aga = (wide * b).sum(1), (wide * ga).sum(1)
    aa = ridge * wide.square().sum(1)
    energy = energy.double()
    error = (energy - 2 * ab + aga).clamp(min=0)
    square = error + aa
    # An atom without penalty must not correlate at all: the scale is 0 unless its gradient is.
    lam = penalty.double()
    up = gradient.clamp(min=0) if nonnegative else gradient.abs()
    scale = torch.where(up > lam, lam / up.clamp(min=1e-300), 1).amin(1)
    primal = 0.5 * square + (lam * wide.abs()).sum(1)
    # xᵀr for the rows of x extended by zeros for the ridge.
    dual = scale * (energy - ab) - 0.5 * scale.square() * square
    return (primal - dual).clamp(min=0), error


def largest_eigenvalue(gram: Tensor, iterations: int = 100) -> float:
    """An upper estimate of G's largest eigenvalue: power iterations, and 2 % more, for they come from below."""
    v = torch.ones(gram.shape[0], dtype=gram.dtype, device=gram.device)
    v += 0.1 * torch.linspace(-1, 1, gram.shape[0], dtype=gram.dtype, device=gram.device).square()
    value = 0.0
    for _ in range(iterations):
        v = gram @ (v / v.norm().clamp(min=1e-38))
        value = float(v.norm())
    return 1.02 * value


def fista(
    b: Tensor,
    gram: Tensor,
    energy: Tensor,
    penalty: Tensor,
    ridge: float,
    start: Tensor,
    *,
    nonnegative: bool,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise F for all signals of a block together.

    Args:
        b: [B, H] x·D.
        gram: [H, H].
        energy: [B] ‖x‖².
        penalty: [H] λ.
        ridge: λ₂.
        start: [B, H] codes to begin from.
        nonnegative: demand a >= 0.
        tolerance: stop a signal where its duality gap is at most this share of ½‖x‖².
        iterations: at most so many.

    Returns:
        codes [B, H], which of them reached the tolerance [B] bool, and ‖x - D a‖² [B].
    """
    bound = largest_eigenvalue(gram) + ridge
    result, reached = start.clone(), torch.zeros(len(b), dtype=torch.bool, device=b.device)
    error = energy.clone()
    place = torch.arange(len(b), device=b.device)
    a = y = start
    t = torch.ones(len(b), 1, dtype=b.dtype, device=b.device)
    for i in range(iterations + 1):
        if i % CHECK_EVERY == 0 or i == iterations:
            gap, left = duality_gap(a, b, a @ gram, energy, penalty, ridge, nonnegative=nonnegative)
            done = gap <= tolerance * 0.5 * energy
            result[place], error[place], reached[place] = a, left.to(error.dtype), done
            if bool(done.all()) or i == iterations or bound == 0:
                break
            # Those that are done go on with the rest until half of the block is done.
            if int(done.sum()) > len(done) // 2:
                keep = ~done
                a, y, b, t, energy, place = a[keep], y[keep], b[keep], t[keep], energy[keep], place[keep]
        new = shrink(y - (y @ gram + ridge * y - b) / bound, penalty / bound, nonnegative=nonnegative)
        step = new - a
        restart = ((y - new) * step).sum(1, keepdim=True) > 0
        following = torch.where(restart, 1, (1 + (1 + 4 * t * t).sqrt()) / 2)
        y = new + torch.where(restart, 0, (t - 1) / following) * step
        a, t = new, following
    return result, reached, error
