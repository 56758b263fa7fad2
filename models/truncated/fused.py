"""The E-step of the discrete linear models on CPUs, block by block through the compiled kernel.

Only scores and means are ever held for all rows of a batch; joints and posteriors live in the cache.

Shapes: n rows of a batch, D observed, H atoms, H' candidates, L non-zero values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Params
from ..kernels.linear import Joints, LinearRows
from ..schedule import Stage
from .expectation import temperatures, too_large
from .gram import gram_of

if TYPE_CHECKING:
    from .linear import Linear

BLOCK_BYTES = 1 << 20
"""Rows and scores of a block: what a core's second cache holds."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Truncated posteriors of n rows and what they add up to; moments are zero where only joints were wanted."""

    mean: Tensor
    """[n, H] <s>, 0 for rows that are not in use; without moments the scores."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out)."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""
    square: Tensor
    """[n] float64, ‖y‖²."""
    pairs: Tensor
    """[H, H] float64, Σ <s_i s_j> over rows in use, each pair of candidates once."""
    counts: Tensor
    """[L, H] float64, Σ q(s_h = v) over rows in use."""


def posterior_rows(
    model: Linear,
    params: Params,
    x: Tensor,
    stage: Stage | None,
    *,
    candidates: Tensor | None = None,
    use: Tensor | None = None,
    moments: bool = True,
) -> Rows:
    """The posteriors of the rows `x` [n, D] (less the offset) on the CPU, at temperature 1 without a stage.

    Args:
        model: Its priors, values and selection.
        params: Its parameters.
        x: The rows, float32 or float64.
        stage: Names the temperature.
        candidates: [n, H'] int64, used instead of choosing them.
        use: [n] bool, rows that count for the moments; all by default.
        moments: Whether means and sums are wanted.
    """
    n, dim = x.shape
    kernel, weights, log_zero = _kernel(model, params, x.dtype, stage)
    sigma, levels = float(params["sigma"]), len(kernel.values)
    beta = kernel.beta
    factor = max(abs(v) for v in model.support) / sigma**2
    scores = x.new_empty(n, model.atoms)
    log_z, log_evidence, square = torch.empty(3, n, dtype=torch.float64).unbind()
    pairs = torch.zeros(model.atoms, model.atoms, dtype=torch.float64)
    counts = torch.zeros(levels, model.atoms, dtype=torch.float64)
    chosen = torch.empty(n, model.candidates, dtype=torch.int64) if candidates is None else candidates.contiguous()
    used = None if use is None else use.to(torch.uint8)
    size = block_rows(dim + model.atoms, x.element_size())
    for a in range(0, n, size):
        rows = slice(a, min(a + size, n))
        torch.mm(x[rows], weights, out=scores[rows])
        square[rows] = torch.linalg.vector_norm(x[rows], dim=1, dtype=torch.float64).square_()
        if too_large(scores[rows], factor):
            few = None if candidates is None else candidates[rows]
            found = posterior_rows(
                model,
                params,
                x[rows].double(),
                stage,
                candidates=few,
                use=None if use is None else use[rows],
                moments=moments,
            )
            scores[rows], log_z[rows], log_evidence[rows] = found.mean.to(x.dtype), found.log_z, found.log_evidence
            pairs += found.pairs
            counts += found.counts
            continue
        counts += kernel.run(
            scores[rows],
            chosen[rows],
            log_z[rows],
            log_evidence[rows],
            given=candidates is not None,
            use=None if used is None else used[rows],
            pairs=pairs if moments else None,
        )
        log_z[rows] -= (beta / (2 * sigma**2)) * square[rows]
        log_evidence[rows] -= square[rows] / (2 * sigma**2) - (log_zero - dim / 2 * log(2 * pi * sigma**2))
    return Rows(scores, log_z, log_evidence, square, pairs, counts)


def block_rows(width: int, item: int) -> int:
    """Rows of `width` numbers of `item` bytes that are worked on at once: what the caches of all threads hold."""
    rows = BLOCK_BYTES // (width * item) // 64 * 64
    return max(128, rows) * torch.get_num_threads()


def working_bytes(model: Linear, rows: int, dim: int, item: int) -> int:
    """Bytes of a batch of `rows` rows of `dim` numbers of `item` bytes: they, their means and what goes with each row,
    one block, and the states of one group of rows per thread."""
    per_row = dim * (item + (8 + item if model.offset else 0)) + model.atoms * item + 8 * (model.candidates + 6)
    block = block_rows(dim + model.atoms, item) * (8 * dim + 4 * model.candidates**2 * item)
    per_thread = 64 * (3 * (model.multi_states + 1) + 17 * (model.levels + 1) * (model.atoms // 8 + 8))
    return rows * per_row + block + torch.get_num_threads() * per_thread


def _kernel(model: Linear, params: Params, dtype: torch.dtype, stage: Stage | None) -> tuple[LinearRows, Tensor, float]:
    """The kernel for these parameters, W in `dtype` and log p(s = 0)."""
    sigma = float(params["sigma"])
    weights, gram = gram_of(params["W"], dtype)
    gram = gram / sigma**2
    beta, heat = temperatures(stage, model.anneal_prior)
    odds, log_zero = model.log_prior(params)
    odds, energy = odds.to(dtype), gram.diagonal()
    values = gram.new_tensor(model.support)
    own = lambda b, h: Joints(h * odds - torch.outer(b / 2 * values.square(), energy), b * values / sigma**2)  # noqa: E731
    plain = own(1.0, 1.0)
    kernel = LinearRows(
        gram=gram,
        values=values,
        tempered=own(beta, heat),
        plain=None if beta == 1.0 else plain,
        rules=_rules(model, energy, plain),
        candidates=model.candidates,
        active=model.active,
        beta=beta,
    )
    return kernel, weights, log_zero


def _rules(model: Linear, energy: Tensor, plain: Joints) -> tuple[Tensor, Tensor]:
    """What candidates are ranked by: the largest joint of one atom alone, or the cosine (of either sign)."""
    if model.select == "singleton":
        return plain.constant, plain.slope[:, None].expand_as(plain.constant)
    cosine = energy.clamp(min=1e-24).rsqrt()
    signs = [sign for sign in (1.0, -1.0) if any(v * sign > 0 for v in model.support)]
    slopes = torch.stack([sign * cosine for sign in signs])
    return torch.zeros_like(slopes), slopes
