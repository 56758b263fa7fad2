"""The k largest pre-activations of every row."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_k(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
    _, best = top_k(u[:, : size * blocks].view(n, size, blocks).amax(1), k)
    columns = (best[:, None, :] + torch.arange(0, size * blocks, blocks, device=u.device)[:, None]).flatten(1)
    if size * blocks < width:
        rest = torch.arange(size * blocks, width, device=u.device)
        columns = torch.cat([columns, rest.expand(n, -1)], dim=1)
    values, at = top_k(u.gather(1, columns), k)
    return values, columns.gather(1, at)


def chunk_rows(rows: int, atoms: int, itemsize: int, device: torch.device) -> int:
    """Rows whose [rows, H] pre-activations are held at once: a buffer that stays in a CPU's cache where the matrix
    product is still efficient, and never more than 256 MB (or one row)."""
    row = atoms * itemsize
    limit = (256 << 20) // row
    best = limit if device.type != "cpu" else max(256, (16 << 20) // row)
    return max(1, min(rows, best, limit))
