"""Selection along the rows of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import native


def top_k(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, largest first; of equal entries the one with the lower index comes first.

    Args:
        u: [n, H]. A row with NaN gives indices that exist, in no particular order, and maybe NaN for its values.
        k: Entries to keep, from 1 to H.

    Returns:
        values [n, k] and indices [n, k] int64.
    """
    if not native.usable(u):
        return _top_k(u, k)
    u = u.contiguous()
    values = u.new_empty(u.shape[0], k)
    indices = torch.empty(u.shape[0], k, dtype=torch.int64)
    native.call("top_k", u, u.shape[0], u.shape[1], k, values, indices)
    return values, indices


def _top_k(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = top_k_by_blocks(u, k)
    # Where more entries equal the least one than were wanted, the search may have met those of higher index.
    tied = (u >= values.amin(1, keepdim=True)).sum(1) > k
    indices = indices.sort(1).values
    values, order = u.gather(1, indices).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    if bool(tied.any()):
        found = u[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = found.values[:, :k], found.indices[:, :k]
    return values, indices


def top_k_by_blocks(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in no particular order.

    Exact: an entry among the k largest lies in a block whose maximum is among the k largest block maxima. So the rows
    are searched block by block, which costs one cheap pass over `u` and two searches of a few hundred entries.

    Args:
        u: [n, H] with k <= H.
        k: Entries to keep.

    Returns:
        values [n, k] and indices [n, k] int64.
    """
    n, width = u.shape
    if width < max(4 * k, 64):
        values, indices = u.topk(k, dim=1, sorted=False)
        return values, indices
    # A block size of sqrt(H / k) balances the two searches.
    size = 1 << round(math.log2(math.sqrt(width / k)))
    blocks = width // size
    # Block j holds the columns j, j + blocks, …: maxima over the middle axis run along memory.
    _, best = top_k_by_blocks(u[:, : size * blocks].view(n, size, blocks).amax(1), k)
    columns = (best[:, None, :] + torch.arange(0, size * blocks, blocks, device=u.device)[:, None]).flatten(1)
    if size * blocks < width:
        rest = torch.arange(size * blocks, width, device=u.device)
        columns = torch.cat([columns, rest.expand(n, -1)], dim=1)
    values, at = top_k_by_blocks(u.gather(1, columns), k)
    return values, columns.gather(1, at)


def pack(u: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The entries above 0 of each row (`signed`: other than 0) in slots, as many as the fullest row needs (at least 1).

    Args:
        u: [n, H] without NaN.
        signed: whether entries below 0 are kept.

    Returns:
        values [n, w], 0 in empty slots, and indices [n, w] int64, 0 there; both in the order of the columns.
    """
    n, width = u.shape
    if native.usable(u) and u.numel():
        u = u.contiguous()
        counts = torch.empty(n, dtype=torch.int64)
        native.call("count", u, n, width, int(signed), counts)
        slots = max(1, int(counts.max()))
        values, indices = u.new_empty(n, slots), torch.empty(n, slots, dtype=torch.int64)
        native.call("pack", u, n, width, slots, int(signed), values, indices)
        return values, indices
    kept = u != 0 if signed else u > 0
    counts = kept.sum(1)
    slots = max(1, int(counts.max())) if n else 1
    row, column = kept.nonzero(as_tuple=True)
    slot = torch.arange(row.numel(), device=u.device) - (counts.cumsum(0) - counts)[row]
    values, indices = u.new_zeros(n, slots), torch.zeros(n, slots, dtype=torch.int64, device=u.device)
    values[row, slot], indices[row, slot] = u[row, column], column
    return values, indices
