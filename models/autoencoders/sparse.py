"""Products with sparse codes and their gradients, without a dense [n, H] code and without autograd.

A code of n rows over M atoms is given as `indices` [n, k] int64 and `values` [n, k] >= 0. An entry of value 0 is
padding: it has not fired, and no gradient passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums over rows of the gradient with respect to the atoms' weights, dense in all M of them."""

    decoder: Tensor
    """[M, D]"""
    encoder: Tensor
    """[M, D]"""
    bias: Tensor
    """[M], of the encoder."""


class Code(Protocol):
    """A batch of codes that can be decoded and differentiated."""

    def decode(self, decoder: Tensor) -> Tensor:
        """The sum of atoms, [n, D], for `decoder` [M, D]."""
        ...

    def gradients(self, decoder: Tensor, upstream: Tensor, inputs: Tensor) -> Gradients:
        """Gradients of a loss whose derivative by the decoded rows is `upstream` [n, D], for a code that is
        relu(inputs @ encoder.T + bias) at its kept entries; `inputs` [n, D]."""
        ...


def make_code(indices: Tensor, values: Tensor, atoms: int) -> Code:
    """The representation that is faster for a code of k entries among `atoms`."""
    # Gathering a row costs several times what a dense product spends on it.
    return DenseCode(indices, values, atoms) if atoms <= 6 * indices.shape[1] else SparseCode(indices, values, atoms)


class DenseCode:
    """For codes with few zeros: plain matrix products."""

    def __init__(self, indices: Tensor, values: Tensor, atoms: int) -> None:
        self.z = values.new_zeros(values.shape[0], atoms).scatter_add_(1, indices, values)

    def decode(self, decoder: Tensor) -> Tensor:
        """See `Code`."""
        return self.z @ decoder

    def gradients(self, decoder: Tensor, upstream: Tensor, inputs: Tensor) -> Gradients:
        """See `Code`."""
        delta = (upstream @ decoder.T).masked_fill_(self.z <= 0, 0)
        return Gradients(self.z.T @ upstream, delta.T @ inputs, delta.sum(0))


class SparseCode:
    """For codes with many zeros: every product is a weighted sum of gathered rows (an embedding bag)."""

    def __init__(self, indices: Tensor, values: Tensor, atoms: int) -> None:
        self.indices, self.values, self.atoms = indices, values, atoms

    def decode(self, decoder: Tensor) -> Tensor:
        """See `Code`."""
        return F.embedding_bag(self.indices, decoder, per_sample_weights=self.values, mode="sum")

    def gradients(self, decoder: Tensor, upstream: Tensor, inputs: Tensor) -> Gradients:
        """See `Code`."""
        flat = self.indices.flatten()
        # The inverse of decoding: the entries ordered by atom, so that an atom's gradient is one bag of rows.
        order = torch.sort(flat, stable=True).indices
        ends = torch.bincount(flat, minlength=self.atoms).cumsum(0)
        starts = F.pad(ends[:-1], (1, 0))
        rows = order // self.indices.shape[1]

        def per_atom(weights: Tensor, of: Tensor) -> Tensor:
            return F.embedding_bag(rows, of, starts, per_sample_weights=weights.flatten()[order], mode="sum")

        delta = inner_products(self.indices, decoder, upstream).masked_fill_(self.values <= 0, 0)
        bias = delta.new_zeros(self.atoms).index_add_(0, flat, delta.flatten())
        return Gradients(per_atom(self.values, upstream), per_atom(delta, inputs), bias)


def inner_products(indices: Tensor, decoder: Tensor, rows: Tensor) -> Tensor:
    """<decoder[indices[i, j]], rows[i]>, [n, k], without the [n, k, D] tensor of gathered atoms."""
    n, k = indices.shape
    bags = torch.arange(n, device=indices.device)
    # The backward of embedding_bag with respect to its weights; called by name since it spares the forward's graph.
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, decoder, indices.flatten(), bags * k, bags.repeat_interleave(k), 0
    )
    return flat.view(n, k)
