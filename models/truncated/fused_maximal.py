"""The E-step of the maximum superpositions on CPUs, block by block through the compiled kernel.

Shapes: n rows of a batch, D observed, H atoms, H' candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Params
from ..kernels.maximal import MaximalRows
from ..schedule import Stage
from .expectation import temperatures, too_large
from .superposition import narrow

if TYPE_CHECKING:
    from .maximal import Maximal

BLOCK_BYTES = 1 << 20
"""Shares of a block's candidates."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Truncated posteriors of n rows, and their sums over rows in use; float64 but for `single`."""

    single: Tensor
    """[n, H] probabilities of the singletons, or (marginals) of all states with the atom."""
    log_z: Tensor
    """[n] log Σ of the tempered joints (constants of the likelihood left out)."""
    log_evidence: Tensor
    """[n] log Σ p(s, y) over the states."""
    a: Tensor
    """[H, D] Σ <A_hd> over states of several atoms."""
    ay: Tensor
    """[H, D] Σ <A_hd> y_d over states of several atoms."""
    residual: Tensor
    """[] Σ <‖y - ȳ‖²>."""
    active: Tensor
    """[] Σ <|s|>."""
    yy: Tensor
    """[] Σ ‖y‖²."""


def maximal_rows(
    model: Maximal,
    params: Params,
    x: Tensor,
    stage: Stage | None,
    *,
    candidates: Tensor | None = None,
    use: Tensor | None = None,
    shares: bool = False,
    marginals: bool = False,
) -> Rows | None:
    """The posteriors of the rows `x` [n, D] on the CPU; None where float32 cannot hold their joints.

    Args:
        model: Its superposition, its states and how it is annealed.
        params: Its parameters.
        x: The rows, float32 or float64.
        stage: Names the temperature; 1 without.
        candidates: [n, H'] int64, used instead of choosing them.
        use: [n] bool, rows that count for the sums; all by default.
        shares: Whether the atoms' shares are wanted.
        marginals: Whether the atoms' probabilities are wanted.
    """
    weights, sigma, prior = params["W"].to(x.dtype), float(params["sigma"]), float(params["pi"])
    rho = model.rho(stage)
    if too_large(weights.square().sum(0), 0.5 / sigma**2) or narrow(weights, rho):
        return None
    beta, heat = temperatures(stage, model.anneal_prior)
    kernel = MaximalRows(
        weights=weights,
        signed=model.signed,
        rho=rho,
        rank=model.rank(weights),
        candidates=model.candidates,
        active=model.active,
        precision=1 / sigma**2,
        logit=log(prior) - log1p(-prior),
        beta=beta,
        heat=heat,
    )
    x = x.contiguous()
    n, dim = x.shape
    scores = x.new_empty(n, model.atoms)
    log_z, log_evidence = torch.empty(2, n, dtype=torch.float64).unbind()
    a, ay = torch.zeros(2, model.atoms, dim, dtype=torch.float64).unbind()
    residual, active, yy = torch.zeros(3, dtype=torch.float64).unbind()
    constant = model.atoms * log1p(-prior) - dim / 2 * log(2 * pi * sigma**2)
    size = block_rows(model, dim, x.element_size())
    for at in range(0, n, size):
        rows = slice(at, min(at + size, n))
        torch.mm(x[rows], weights, out=scores[rows])
        part = None if use is None else use[rows]
        found = kernel.run(
            x[rows],
            scores[rows],
            candidates=None if candidates is None else candidates[rows],
            use=part,
            shares=(a, ay) if shares else None,
            marginals=marginals,
        )
        if too_large(found.square.to(x.dtype), 0.5 / sigma**2):
            return None
        half = found.square / (2 * sigma**2)
        log_z[rows] = found.log_z - beta * half
        log_evidence[rows] = found.log_evidence - half + constant
        residual += found.residual.sum()
        active += found.active.sum()
        yy += (found.square if part is None else found.square[part]).sum()
    return Rows(scores, log_z, log_evidence, a, ay, residual, active, yy)


def block_rows(model: Maximal, dim: int, item: int) -> int:
    """Rows that are worked on at once."""
    rows = BLOCK_BYTES // (model.candidates * (dim + 16) * item) // 16 * 16
    return max(64, rows) * torch.get_num_threads()


def working_bytes(model: Maximal, rows: int, dim: int, item: int) -> int:
    """Bytes of a batch of `rows` rows of `dim` numbers of `item` bytes: they and their probabilities, one block, the
    states in one vector of dimensions per thread, parameters and statistics."""
    per_row = (dim + model.atoms) * item + 8 * 8
    block = block_rows(model, dim, item) * model.candidates * ((dim + 16) * item + 8)
    per_thread = 64 * (6 * (model.multi_states + model.candidates + 1) + dim // 8 + model.atoms // 2 + 64)
    return rows * per_row + block + torch.get_num_threads() * per_thread + 8 * 13 * dim * model.atoms
