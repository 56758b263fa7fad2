"""From rows to the entries of their codes, holding the pre-activations of a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import kernels
from ..kernels import native


def pre_activations(inputs: Tensor, encoder: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """u = inputs @ encoder.T + bias of all rows, piece by piece: (which rows, u [m, H]).

    The caller may overwrite u, which is only valid until the next piece. At least one piece, even of no rows.
    """
    n, atoms = inputs.shape[0], encoder.shape[0]
    size = chunk_rows(n, atoms, inputs.element_size(), inputs.device)
    buffer = inputs.new_empty(size, atoms)
    for start in range(0, max(n, 1), size):
        rows = slice(start, min(start + size, n))
        piece = inputs[rows]
        yield rows, torch.addmm(bias, piece, encoder.T, out=buffer[: piece.shape[0]])


def top_k(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices, [n, k] each, of the k largest entries of each row of `u` [n, H], largest first."""
    if native.usable(u):
        return kernels.top_k(u, k)
    values, indices = top_k_by_blocks(u, k)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


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


def keep(scores: Tensor, indices: Tensor, u: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The (indices, values) that u [n, H] has at `indices` [n, k]: as they are if `signed`, else at least 0."""
    if not signed:
        return indices, scores.clamp_(min=0)
    return indices, u.gather(1, indices)


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pieces of (indices, values) one below the other, filled up with empty slots to the same width."""
    if len(parts) == 1:
        return parts[0]
    width = max(indices.shape[1] for indices, _ in parts)
    columns = zip(*parts, strict=True)
    indices, values = (torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in c]) for c in columns)
    return indices, values


def chunk_rows(rows: int, atoms: int, itemsize: int, device: torch.device) -> int:
    """Rows whose [rows, H] pre-activations are held at once, never more than 256 MB of them (or one row). On a CPU a
    buffer that stays in the cache, but no fewer than 1024 rows where they take up to 128 MB: a matrix product of few
    rows spends its time on packing the weights."""
    row = atoms * itemsize
    limit = (256 << 20) // row
    best = limit if device.type != "cpu" else max((16 << 20) // row, min(1024, (128 << 20) // row))
    return max(1, min(rows, best, limit))
