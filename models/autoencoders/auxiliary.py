"""AuxK (Gao et al. 2024): latents that have not fired for long predict the residual, which revives them.

Dead latents reconstruct e = target - reconstruction, held constant, with their own k largest pre-activations and
without the decoder's bias. The term is min(M / aux_k, 1) |e - e'|^2 / V for M dead latents and V the variance of e.
Gradients reach encoder and decoder. V comes from the previous update and the set of dead latents is the one before the
batch, so that the gradients of rows add.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Params
from ..kernels import Gradients
from ..peers import ALONE, Peers, total
from .names import DEAD, RESIDUAL, SILENT
from .selection import chunk_rows, elected, largest, pre_activations
from .sparse import make_code
from .sums import GradientSums, Rows


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The term that the parameters imply."""

    dead: Tensor
    """[m] int64, those of this worker's latents; M over all peers."""
    k: int
    """Of a row."""
    offered: int
    """How many of a row each peer offers."""
    factor: float
    """min(M / aux_k, 1) / variance of the residual."""


def auxiliary(params: Params, aux_k: int, peers: Peers = ALONE) -> Auxiliary | None:
    """The term, or None where it is 0."""
    dead = (params[SILENT] >= params[DEAD]).nonzero().flatten()
    each = peers.allgather(dead.new_full((1,), dead.numel()))
    all_dead, variance = int(each.sum()), float(params[RESIDUAL])
    if all_dead == 0 or not variance > 0:
        return None
    k = min(aux_k, all_dead)
    return Auxiliary(dead, k, min(k, int(each.max())), min(all_dead / aux_k, 1.0) / variance)


def add_auxiliary(
    sums: GradientSums,
    params: Params,
    term: Auxiliary,
    rows: Rows,
    error: Tensor,
    coefficient: float,
    peers: Peers = ALONE,
    *,
    signed: bool,
) -> None:
    """Add the term's gradients and its squared error to `sums`; `error` [n, E] is reconstruction - target, not changed.

    With `signed` the dead latents of largest magnitude are taken, else the largest above 0.
    """
    mine = term.dead.numel()
    encoder, decoder, bias = params["W_enc"][term.dead], params["W_dec"][term.dead], params["b_enc"][term.dead]
    n, k = len(rows.inputs), min(term.k, mine)
    indices, values = rows.inputs.new_zeros(n, k, dtype=torch.int64), rows.inputs.new_zeros(n, k)
    if mine:
        found = pre_activations(rows.inputs, encoder, bias)
        parts = [largest(u, k, signed=signed) for _, u in found]
        indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
    offers = torch.nn.functional.pad(values, (0, term.offered - k))
    values = elected(peers, offers, term.k, signed=signed)[:, :k]
    code = make_code(indices, values, mine) if mine else None
    left = total(peers, code.decode(decoder) if code else torch.zeros_like(error)).add_(error)
    if code:
        into = Gradients(torch.zeros_like(decoder), torch.zeros_like(encoder), torch.zeros_like(bias))
        code.add_gradients(into, decoder, left * (2 * coefficient * term.factor), rows.inputs)
        sums.encoder.index_add_(0, term.dead, into.encoder)
        sums.decoder.index_add_(0, term.dead, into.decoder)
        sums.encoder_bias.index_add_(0, term.dead, into.bias)
    sums.auxiliary.add_(left.square_().sum())


def auxiliary_bytes(rows: int, atoms: int, aux_k: int, item: int) -> int:
    """Memory of the term at its worst: as many dead latents as atoms."""
    return rows * min(aux_k, atoms) * (16 + 3 * item) + chunk_rows(rows, atoms, item, torch.device("cpu")) * item
