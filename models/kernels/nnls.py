"""Non-negative least squares in the Gram domain."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def nnls(scores: Tensor, gram: Tensor, limits: Tensor, sweeps: int) -> Tensor:
    """The g >= 0 [n, H] that minimise ½ gᵀ G g - bᵀ g for every row b of `scores`, by coordinate descent from 0.

    Args:
        scores: [n, H] b, float32 or float64.
        gram: [H, H] G, positive semi-definite; coordinates with G_jj = 0 stay 0.
        limits: [n] a row is done when no coordinate moves by more than this, times √G_jj, in a sweep over all.
        sweeps: At most so many.
    """
    if native.usable(scores, gram, limits):
        codes = torch.empty_like(scores, memory_format=torch.contiguous_format)
        parts = scores.contiguous(), gram.contiguous(), limits.contiguous()
        native.call("nnls", *parts, *scores.shape, sweeps, codes)
        return codes
    own = gram.diagonal()
    norms = own.sqrt()
    result = torch.zeros_like(scores)
    place = torch.arange(len(scores), device=scores.device)
    code, slope = result.clone(), scores.clone()
    for _ in range(sweeps):
        moved = torch.zeros_like(limits)
        for j in (own > 0).nonzero().flatten().tolist():
            step = (code[:, j] + slope[:, j] / own[j]).clamp(min=0) - code[:, j]
            code[:, j] += step
            slope -= step[:, None] * gram[j]
            moved = torch.maximum(moved, step.abs() * norms[j])
        result[place] = code
        # A row that is done no longer changes, whatever the others need.
        going = moved > limits
        if not bool(going.any()):
            break
        place, code, slope, limits = place[going], code[going], slope[going], limits[going]
    return result
