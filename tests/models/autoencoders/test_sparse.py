"""Sparse products and their gradients against autograd on dense ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparsefleet.models.autoencoders.sparse import DenseCode, SparseCode, make_code
from sparsefleet.models.kernels import Gradients, inner_products, native


def codes(indices, values, atoms):
    """Both representations of a code."""
    return SparseCode(indices, values), DenseCode(values.new_zeros(len(values), atoms).scatter_add_(1, indices, values))


def gradients(code, decoder, upstream, inputs, slope=0.0):
    into = Gradients(torch.zeros_like(decoder), inputs.new_zeros(len(decoder), inputs.shape[1]), decoder[:, 0] * 0)
    code.add_gradients(into, decoder, upstream, inputs, slope)
    return into


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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 9), k=st.integers(1, 6), more=st.integers(0, 40), dim=st.integers(1, 7), seed=st.integers(0, 50)
)
def test_both_representations_equal_autograd(twin, n, k, more, dim, seed):
    atoms = k + more
    encoder, decoder, bias, inputs, upstream, indices, values = problem(n, k, atoms, dim, seed)
    leaves = [t.clone().requires_grad_(True) for t in (decoder, encoder, bias)]
    u = inputs @ leaves[1].T + leaves[2]
    z = torch.zeros_like(u).scatter(1, indices, u.gather(1, indices).relu())
    decoded = z @ leaves[0]
    decoded.backward(upstream)
    for code in codes(indices, values, atoms):
        torch.testing.assert_close(code.decode(decoder), decoded.detach())
        found = gradients(code, decoder, upstream, inputs)
        for gradient, leaf in zip((found.decoder, found.encoder, found.bias), leaves, strict=True):
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products(dtype):
    generator = torch.Generator().manual_seed(1)
    decoder, rows = torch.randn(30, 5, generator=generator).to(dtype), torch.randn(8, 5, generator=generator).to(dtype)
    indices = torch.randint(0, 30, (8, 4), generator=generator)
    expected = torch.einsum("nkd,nd->nk", decoder[indices], rows)
    torch.testing.assert_close(inner_products(indices, decoder, rows), expected)


def test_padding_of_value_zero_may_repeat_an_atom(twin):
    indices, values = torch.tensor([[2, 0, 0], [0, 0, 1]]), torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    decoder = torch.eye(4)
    for code in codes(indices, values, 4):
        assert code.decode(decoder).tolist() == [[3, 0, 1, 0], [0, 2, 0, 0]]
        found = gradients(code, decoder, torch.ones(2, 4), torch.ones(2, 4))
        assert found.bias.tolist() == [1, 1, 1, 0]


def test_values_below_zero_are_active(twin):
    indices, values = torch.tensor([[2, 0], [0, 1]]), torch.tensor([[1.0, -3.0], [-0.5, 0.0]])
    for code in codes(indices, values, 4):
        fired, negative = torch.zeros(4), torch.zeros(4)
        assert float(code.count(fired, negative)) == 4.5
        assert fired.tolist() == [2, 0, 1, 0] and negative.tolist() == [2, 0, 0, 0]
        found = gradients(code, torch.eye(4), torch.ones(2, 4), torch.ones(2, 3), slope=0.25)
        assert found.bias.tolist() == [2.5, 0, 1.25, 0]
        assert found.encoder.tolist() == [[2.5] * 3, [0] * 3, [1.25] * 3, [0] * 3]
        assert found.decoder[0].tolist() == [-3.5] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k", "atoms", "dim"), [(300, 9, 70, 33), (5, 1, 1, 64), (64, 16, 500, 100)])
def test_compiled_kernels_equal_their_twins(monkeypatch, dtype, n, k, atoms, dim):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    decoder, upstream, inputs, u = draw(atoms, dim), draw(n, dim), draw(n, dim + 3), draw(n, atoms)
    values, indices = u.topk(min(k, atoms), dim=1)
    values = values * (values > 0.3)
    fast = (
        SparseCode(indices, values).decode(decoder),
        gradients(SparseCode(indices, values), decoder, upstream, inputs),
    )
    monkeypatch.setattr(native, "usable", lambda *_: False)
    slow = (
        SparseCode(indices, values).decode(decoder),
        gradients(SparseCode(indices, values), decoder, upstream, inputs),
    )
    torch.testing.assert_close(fast[0], slow[0])
    for name in ("decoder", "encoder", "bias"):
        torch.testing.assert_close(getattr(fast[1], name), getattr(slow[1], name), rtol=1e-4, atol=1e-4)


def test_gradients_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    decoder, upstream, u = (torch.randn(*s, generator=generator) for s in ((900, 40), (500, 40), (500, 900)))
    values, indices = u.topk(12, dim=1)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(gradients(SparseCode(indices, values), decoder, upstream, upstream))
    assert torch.equal(found[0].decoder, found[1].decoder) and torch.equal(found[0].bias, found[1].bias)


def test_few_zeros_are_stored_densely():
    indices, values = torch.arange(4)[None], torch.ones(1, 4)
    assert isinstance(make_code(indices, values, 10), DenseCode)
    assert isinstance(make_code(indices, values * 0, 10), SparseCode)
    assert isinstance(make_code(indices, values, 1000), SparseCode)
