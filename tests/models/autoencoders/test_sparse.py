"""Sparse products and their gradients against autograd on dense ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models.autoencoders.sparse import DenseCode, SparseCode, inner_products, make_code


def problem(n: int, k: int, atoms: int, dim: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    encoder, decoder, bias, inputs, upstream = (
        draw(atoms, dim),
        draw(atoms, dim),
        draw(atoms),
        draw(n, dim),
        draw(n, dim),
    )
    values, indices = (inputs @ encoder.T + bias).topk(k, dim=1)
    return encoder, decoder, bias, inputs, upstream, indices, values.relu()


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 9), k=st.integers(1, 6), more=st.integers(0, 40), dim=st.integers(1, 7), seed=st.integers(0, 50)
)
def test_both_representations_equal_autograd(n, k, more, dim, seed):
    atoms = k + more
    encoder, decoder, bias, inputs, upstream, indices, values = problem(n, k, atoms, dim, seed)
    leaves = [t.clone().requires_grad_(True) for t in (decoder, encoder, bias)]
    u = inputs @ leaves[1].T + leaves[2]
    z = torch.zeros_like(u).scatter(1, indices, u.gather(1, indices).relu())
    decoded = z @ leaves[0]
    decoded.backward(upstream)
    for code in (SparseCode(indices, values, atoms), DenseCode(indices, values, atoms)):
        torch.testing.assert_close(code.decode(decoder), decoded.detach())
        found = code.gradients(decoder, upstream, inputs)
        for gradient, leaf in zip((found.decoder, found.encoder, found.bias), leaves, strict=True):
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products(dtype):
    generator = torch.Generator().manual_seed(1)
    decoder, rows = torch.randn(30, 5, generator=generator).to(dtype), torch.randn(8, 5, generator=generator).to(dtype)
    indices = torch.randint(0, 30, (8, 4), generator=generator)
    expected = torch.einsum("nkd,nd->nk", decoder[indices], rows)
    torch.testing.assert_close(inner_products(indices, decoder, rows), expected)


def test_padding_of_value_zero_may_repeat_an_atom():
    indices, values = torch.tensor([[2, 0, 0], [0, 0, 1]]), torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    decoder = torch.eye(4)
    for kind in (SparseCode, DenseCode):
        assert kind(indices, values, 4).decode(decoder).tolist() == [[3, 0, 1, 0], [0, 2, 0, 0]]
        found = kind(indices, values, 4).gradients(decoder, torch.ones(2, 4), torch.ones(2, 4))
        assert found.bias.tolist() == [1, 1, 1, 0]


def test_few_zeros_are_stored_densely():
    indices, values = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    assert isinstance(make_code(indices, values, 10), DenseCode)
    assert isinstance(make_code(indices, values, 1000), SparseCode)
