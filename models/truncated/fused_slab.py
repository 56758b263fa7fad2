"""The E-step of the spike-and-slab model with a diagonal slab on CPUs, block by block through the compiled kernel.

Shapes: n rows of a batch, D observed, H atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Params
from ..kernels.slab import SlabRows
from ..schedule import Stage
from . import noise
from .expectation import temperatures, too_large
from .fused import block_rows

if TYPE_CHECKING:
    from .gsc import GSC
    from .slab_posterior import Theta


@dataclass(frozen=True, slots=True)
class Rows:
    """Truncated posteriors of n rows and what they add up to; moments are zero where only joints were wanted."""

    mean: Tensor
    """[n, H] <s∘z>, 0 for rows that are not in use; without moments the scores."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out)."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""
    pairs: Tensor
    """[H, H] float64, Σ <s_i z_i s_j z_j> over rows in use, each pair of candidates once."""
    sums: Tensor
    """[3, H] float64, Σ <s>, Σ <s∘z> and Σ <(s∘z)²> over rows in use."""


def slab_rows(
    model: GSC,
    params: Params,
    theta: Theta,
    x: Tensor,
    stage: Stage | None,
    *,
    use: Tensor | None = None,
    moments: bool = True,
) -> Rows | None:
    """The posteriors of the rows `x` [n, D] on the CPU; None where float32 cannot hold their joints.

    Args:
        model: Its states and how it is annealed.
        params: Its parameters.
        theta: The same in the dtype of the rows, the noise applied.
        x: The rows.
        stage: Names the temperature; 1 without.
        use: [n] bool, rows that count for the moments; all by default.
        moments: Whether means and sums are wanted.
    """
    (n, dim), atoms = x.shape, model.atoms
    beta, heat = temperatures(stage, model.anneal_prior)
    kernel = SlabRows(theta.gram, theta.logit, theta.mu, theta.variance, model.candidates, model.active, beta, heat)
    factor = float((theta.mu.abs() + theta.variance.sqrt()).max())
    scores = x.new_empty(n, atoms)
    log_z, log_evidence = torch.empty(2, n, dtype=torch.float64).unbind()
    pairs = torch.zeros(atoms, atoms, dtype=torch.float64)
    sums = torch.zeros(3, atoms, dtype=torch.float64)
    used = None if use is None else use.to(torch.uint8)
    size = block_rows(dim + atoms, x.element_size())
    for a in range(0, n, size):
        rows = slice(a, min(a + size, n))
        torch.mm(x[rows], theta.scaled, out=scores[rows])
        if too_large(scores[rows], factor):
            return None
        part = None if used is None else used[rows]
        sums += kernel.run(scores[rows], log_z[rows], log_evidence[rows], use=part, pairs=pairs if moments else None)
    half = noise.squares(params, x) / 2
    constant = theta.log_zero - 0.5 * noise.log_det(params, dim) - dim / 2 * log(2 * pi)
    return Rows(scores, log_z - beta * half, log_evidence - half + constant, pairs, sums)


def working_bytes(model: GSC, rows: int, dim: int, item: int) -> int:
    """Bytes of a batch of `rows` rows of `dim` numbers of `item` bytes: they, their squares and means, one block, the
    states of one group of rows per thread, parameters and statistics."""
    atoms, candidates = model.atoms, model.candidates
    per_row = dim * (2 * item + 16) + atoms * item + 8 * 8
    block = block_rows(dim + atoms, item) * (8 + item * candidates) * candidates
    stored = sum(comb(candidates, m) * (2 + m + m * (m + 1) // 2) for m in range(2, model.active + 1))
    per_thread = 64 * (20 * (atoms // 8 + 2) + 6 * candidates + 3 * candidates**2 + stored)
    square = 4 * dim**2 if model.noise == "full" else 0
    fixed = 8 * (8 * dim * atoms + 9 * atoms**2 + square)
    return rows * per_row + block + torch.get_num_threads() * per_thread + fixed
