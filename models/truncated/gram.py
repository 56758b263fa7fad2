"""The Gram matrix of a dictionary: computed once for the parameters of an update, used by all its batches."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT: MutableMapping[Tensor, dict[torch.dtype, tuple[int, Tensor, Tensor]]] = WeakTensorKeyDictionary()


def gram_of(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W [D, H] in `dtype`, and WᵀW [H, H] of that; kept as long as `weights` is, and not changed in place."""
    kept = _KEPT.setdefault(weights, {})
    if dtype not in kept or kept[dtype][0] != weights._version:
        cast = weights.to(dtype).contiguous()
        kept[dtype] = (weights._version, cast, cast.T @ cast)
    return kept[dtype][1:]
