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
from .names import DEAD, RESIDUAL, SILENT
from .selection import chunk_rows, largest, pre_activations
from .sparse import make_code
from .sums import GradientSums, Rows


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The term that the parameters imply."""

    dead: Tensor
    """[M] int64, latents."""
    k: int
    factor: float
    """min(M / aux_k, 1) / variance of the residual."""


def auxiliary(params: Params, aux_k: int) -> Auxiliary | None:
    """The term, or None where it is 0."""
    dead = (params[SILENT] >= params[DEAD]).nonzero().flatten()
    variance = float(params[RESIDUAL])
    if dead.numel() == 0 or not variance > 0:
        return None
    return Auxiliary(dead, min(aux_k, dead.numel()), min(dead.numel() / aux_k, 1.0) / variance)


def add_auxiliary(
    sums: GradientSums, params: Params, term: Auxiliary, rows: Rows, error: Tensor, coefficient: float, *, signed: bool
) -> None:
    """Add the term's gradients and its squared error to `sums`; `error` [n, E] is reconstruction - target, not changed.

    With `signed` the dead latents of largest magnitude are taken, else the largest above 0.
    """
    encoder, decoder, bias = params["W_enc"][term.dead], params["W_dec"][term.dead], params["b_enc"][term.dead]
    found = pre_activations(rows.inputs, encoder, bias)
    parts = [largest(u, term.k, signed=signed) for _, u in found]
    indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
    code = make_code(indices, values, term.dead.numel())
    left = code.decode(decoder).add_(error)
    into = Gradients(torch.zeros_like(decoder), torch.zeros_like(encoder), torch.zeros_like(bias))
    code.add_gradients(into, decoder, left * (2 * coefficient * term.factor), rows.inputs)
    sums.encoder.index_add_(0, term.dead, into.encoder)
    sums.decoder.index_add_(0, term.dead, into.decoder)
    sums.encoder_bias.index_add_(0, term.dead, into.bias)
    sums.auxiliary.add_(left.square_().sum())


def auxiliary_bytes(rows: int, atoms: int, aux_k: int, item: int) -> int:
    """Memory of the term at its worst: as many dead latents as atoms."""
    return rows * min(aux_k, atoms) * (16 + 3 * item) + chunk_rows(rows, atoms, item, torch.device("cpu")) * item
