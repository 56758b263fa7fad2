"""A batch of codes in the representation that is cheaper to compute with.

Signs are free: an entry is active when it is not 0. Fired, counted and differentiated are the active entries alone.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..kernels import Gradients, add_gradients, decode

DENSE_FROM = 8
"""An entry of a sparse code costs as much as this many of a dense one."""


class Code(Protocol):
    """n codes over M atoms that can be decoded, differentiated and counted."""

    def decode(self, decoder: Tensor) -> Tensor:
        """The sums of atoms, [n, E], for `decoder` [M, E]."""
        ...

    def add_gradients(
        self, into: Gradients, decoder: Tensor, upstream: Tensor, inputs: Tensor, slope: float = 0.0
    ) -> None:
        """Add to `into` the gradients of a loss whose derivative by the decoded rows is `upstream` [n, E] and, beside
        that, `slope` by every active value, for a code that is inputs @ encoder.T + bias where it is active; `inputs`
        is [n, D]."""
        ...

    def count(self, fired: Tensor, negative: Tensor) -> Tensor:
        """Add to [M] vectors in how many rows a latent is active, and in how many below 0; returns Σ |value|."""
        ...


def make_code(indices: Tensor, values: Tensor, atoms: int) -> Code:
    """The code with `indices` [n, w] int64 and `values` [n, w] in its slots (0: empty)."""
    if atoms <= DENSE_FROM * values.shape[1] and DENSE_FROM * int(values.count_nonzero()) >= atoms * values.shape[0]:
        return DenseCode(values.new_zeros(values.shape[0], atoms).scatter_add_(1, indices, values))
    return SparseCode(indices, values)


class DenseCode:
    """For codes with few zeros, `z` [n, M]: plain matrix products."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def decode(self, decoder: Tensor) -> Tensor:
        """See `Code`."""
        return self.z @ decoder

    def add_gradients(
        self, into: Gradients, decoder: Tensor, upstream: Tensor, inputs: Tensor, slope: float = 0.0
    ) -> None:
        """See `Code`."""
        delta = (upstream @ decoder.T).add_(slope).masked_fill_(self.z == 0, 0)
        into.decoder.addmm_(self.z.T, upstream)
        into.encoder.addmm_(delta.T, inputs)
        into.bias.add_(delta.sum(0))

    def count(self, fired: Tensor, negative: Tensor) -> Tensor:
        """See `Code`."""
        fired.add_((self.z != 0).sum(0))
        negative.add_((self.z < 0).sum(0))
        return self.z.abs().sum()


class SparseCode:
    """For codes with many zeros: every product is a weighted sum of gathered rows."""

    def __init__(self, indices: Tensor, values: Tensor) -> None:
        self.indices, self.values = indices, values

    def decode(self, decoder: Tensor) -> Tensor:
        """See `Code`."""
        return decode(self.indices, self.values, decoder)

    def add_gradients(
        self, into: Gradients, decoder: Tensor, upstream: Tensor, inputs: Tensor, slope: float = 0.0
    ) -> None:
        """See `Code`."""
        add_gradients(into, self.indices, self.values, decoder, upstream, inputs, slope)

    def count(self, fired: Tensor, negative: Tensor) -> Tensor:
        """See `Code`."""
        at = self.indices.flatten()
        fired.index_add_(0, at, (self.values != 0).to(fired.dtype).flatten())
        if bool((self.values < 0).any()):
            negative.index_add_(0, at, (self.values < 0).to(negative.dtype).flatten())
        return self.values.abs().sum()
