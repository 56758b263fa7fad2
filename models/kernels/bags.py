"""Products with sparse codes, and their gradients, without a dense [n, H] code and without autograd.

A code of n rows over M atoms is given as `indices` [n, w] int64 and `values` [n, w], each atom at most once a row. A
slot of value 0 is empty, whatever its index: it has not fired, and no gradient passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums over rows of the gradient with respect to the atoms' weights, dense in all M of them."""

    decoder: Tensor
    """[M, E]"""
    encoder: Tensor
    """[M, D]"""
    bias: Tensor
    """[M], of the encoder."""


def decode(indices: Tensor, values: Tensor, decoder: Tensor) -> Tensor:
    """The sums of atoms that the codes stand for, [n, E], for `decoder` [M, E]."""
    if native.usable(values, decoder):
        n, width = values.shape
        out = values.new_empty(n, decoder.shape[1])
        code = values.contiguous(), indices.contiguous()
        native.call("decode", *code, n, width, decoder.contiguous(), decoder.shape[1], out)
        return out
    # It takes no slices of wider codes.
    return F.embedding_bag(indices.contiguous(), decoder, per_sample_weights=values.contiguous(), mode="sum")


def add_gradients(
    into: Gradients,
    indices: Tensor,
    values: Tensor,
    decoder: Tensor,
    upstream: Tensor,
    inputs: Tensor,
    slope: float = 0.0,
) -> None:
    """Add the gradients of a loss, in place, for a code that is inputs @ encoder.T + bias in its slots.

    Args:
        into: contiguous; may hold gradients already.
        indices: [n, w] int64, of the code.
        values: [n, w], of the code.
        decoder: [M, E].
        upstream: [n, E], the loss's derivative by the decoded rows.
        inputs: [n, D].
        slope: the loss's derivative by a value itself, beside what comes through the decoder.
    """
    if not native.usable(values, decoder, upstream, inputs):
        _add_gradients(into, indices, values, decoder, upstream, inputs, slope)
        return
    n, width = values.shape
    atoms, dim = decoder.shape
    ends = torch.empty(atoms + 1, dtype=torch.int64)
    at_row, at_value = torch.empty(n * width, dtype=torch.int32), values.new_empty(n * width)
    native.call(
        "code_gradients",
        *(values.contiguous(), indices.contiguous(), n, width, atoms),
        *(decoder.contiguous(), upstream.contiguous(), inputs.contiguous(), dim, inputs.shape[1], float(slope)),
        *(ends, at_row, at_value, into.decoder, into.encoder, into.bias),
    )


def _add_gradients(
    into: Gradients, indices: Tensor, values: Tensor, decoder: Tensor, upstream: Tensor, inputs: Tensor, slope: float
) -> None:
    flat = indices.flatten()
    # The inverse of decoding: the entries ordered by atom, so that an atom's gradient is one bag of rows.
    order = torch.sort(flat, stable=True).indices
    ends = torch.bincount(flat, minlength=decoder.shape[0]).cumsum(0)
    starts = F.pad(ends[:-1], (1, 0))
    rows = order // indices.shape[1]

    def per_atom(weights: Tensor, of: Tensor) -> Tensor:
        return F.embedding_bag(rows, of, starts, per_sample_weights=weights.flatten()[order], mode="sum")

    delta = inner_products(indices, decoder, upstream).add_(slope).masked_fill_(values == 0, 0)
    into.bias.index_add_(0, flat, delta.flatten())
    into.decoder.add_(per_atom(values, upstream))
    into.encoder.add_(per_atom(delta, inputs))


def inner_products(indices: Tensor, decoder: Tensor, rows: Tensor) -> Tensor:
    """<decoder[indices[i, j]], rows[i]>, [n, w], without the [n, w, E] tensor of gathered atoms."""
    n, k = indices.shape
    bags = torch.arange(n, device=indices.device)
    # The backward of embedding_bag with respect to its weights; called by name since it spares the forward's graph.
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, decoder, indices.contiguous().flatten(), bags * k, bags.repeat_interleave(k), 0
    )
    return flat.view(n, k)
