"""From rows to the entries of their codes, holding the pre-activations of a few rows at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ModelError
from ..kernels import inner_products, top_k
from ..peers import Peers

Precision = Literal["tf32", "bfloat16"]
"""Of the encoder's product, where it is not that of its factors."""
_ONE_AT_A_TIME = Lock()
"""torch has one precision of products for the process."""


def check_precision(precision: str | None, *, target: str | None, selection: str) -> None:
    """Refuse a precision that is none, or that the other settings do not go with.

    Args:
        precision: as a user gives it.
        target: of a transcoder.
        selection: the name of a class that selects in its own way, or empty.

    Raises:
        ModelError: it is refused.
    """
    if precision is None:
        return
    if precision not in get_args(Precision):
        raise ModelError(f"encoder_precision={precision!r}: choose bfloat16, tf32 or null")
    if selection:
        raise ModelError(
            f"encoder_precision={precision!r}: {selection} selects in its own way, which rounded values might change; "
            "leave encoder_precision out"
        )
    if target:
        raise ModelError(
            f"encoder_precision={precision!r} with target={target!r}: a transcoder's inputs are not centred, and "
            "rounding would lose what is small beside their mean; leave encoder_precision out"
        )


def pre_activations(
    inputs: Tensor, encoder: Tensor, bias: Tensor, precision: Precision | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """u = inputs @ encoder.T + bias of all rows, piece by piece: (which rows, u [m, H]).

    The caller may overwrite u, which is only valid until the next piece. At least one piece, even of no rows.
    """
    n, atoms = inputs.shape[0], encoder.shape[0]
    size = chunk_rows(n, atoms, inputs.element_size(), inputs.device)
    buffer = inputs.new_empty(size, atoms)
    factor = encoder.bfloat16() if precision == "bfloat16" else encoder
    for start in range(0, max(n, 1), size):
        rows = slice(start, min(start + size, n))
        yield rows, _product(inputs[rows], factor, bias, precision, buffer)


def product(inputs: Tensor, encoder: Tensor, bias: Tensor, precision: Precision | None) -> Tensor:
    """u [n, H] of all rows at once."""
    factor = encoder.bfloat16() if precision == "bfloat16" else encoder
    return _product(inputs, factor, bias, precision, inputs.new_empty(inputs.shape[0], encoder.shape[0]))


def _product(inputs: Tensor, encoder: Tensor, bias: Tensor, precision: Precision | None, buffer: Tensor) -> Tensor:
    out = buffer[: inputs.shape[0]]
    if precision == "bfloat16":
        return torch.add(inputs.bfloat16() @ encoder.T, bias, out=out)
    if precision == "tf32":
        with _tf32():
            return torch.addmm(bias, inputs, encoder.T, out=out)
    return torch.addmm(bias, inputs, encoder.T, out=out)


@contextmanager
def _tf32() -> Generator[None]:
    with _ONE_AT_A_TIME:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def candidate_count(k: int, atoms: int, precision: Precision | None) -> int:
    """How many entries of a row to take so that the k largest are among them.

    With a `precision` they are ordered by rounded values. Rounding moves an entry by some thousandths of their spread
    where inputs are centred; the k-th and the 3/2 k-th largest of many lie much farther apart.
    """
    return min(atoms, k if precision is None else k + max(16, k // 2))


def exact(
    indices: Tensor, inputs: Tensor, encoder: Tensor, bias: Tensor, k: int, *, signed: bool, empty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The (indices, values), [n, k] each, of the k largest of some entries in the precision of `inputs`, largest first.

    Args:
        indices: [n, w] the entries.
        inputs: [n, D]
        encoder: [H, D]
        bias: [H]
        k: at most w are left.
        signed: whether by magnitude; else values are at least 0.
        empty: [n, w] bool: slots whose value is 0 whatever their index.
    """
    u = inner_products(indices, encoder, inputs).add_(bias[indices])
    u = u if empty is None else u.masked_fill_(empty, 0)
    places, values = largest(u, min(k, indices.shape[1]), signed=signed)
    return indices.gather(1, places), values


def largest(u: Tensor, k: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The (indices, values), [n, k] each, of the k largest entries of each row of u [n, H], largest first: of largest
    magnitude with their signs if `signed`, else at least 0."""
    values, indices = top_k(u.abs() if signed else u, k)
    return indices, u.gather(1, indices) if signed else values.clamp_(min=0)


def elected(peers: Peers, values: Tensor, k: int, *, signed: bool) -> Tensor:
    """`values` [n, w] with those left that are among the k largest of a row over all peers (`signed`: of largest
    magnitude), 0 elsewhere.

    Exact where a row's values, in falling order, are this peer's k largest, or all that it has and zeros: the k largest
    of all are among the k largest of each. Of equal ones those of the lower latent are taken, as on one worker, because
    the peers' latents follow one another. Every peer needs the same w; their w together are at least k.
    """
    if peers.size == 1 or values.numel() == 0:
        return values
    n, width = values.shape
    scores = (values.abs() if signed else values).contiguous()
    # Which latents they are does not matter to the others.
    offered = peers.allgather(scores.view(-1)).view(peers.size, n, width).transpose(0, 1).reshape(n, -1)
    _, places = top_k(offered, k)
    first = peers.rank * width
    mine = ((places >= first) & (places < first + width)).sum(1, keepdim=True)
    # They are a row's first, since the order is falling.
    return values.masked_fill(torch.arange(width, device=values.device) >= mine, 0)


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
