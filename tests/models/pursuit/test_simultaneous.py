"""Simultaneous OMP: equal to its definition, shared supports, stops, odd input."""

import numpy as np
import pytest
import torch
from sparsefleet.models import ModelError
from sparsefleet.models.pursuit import Status, batch_omp, simultaneous_omp, squared_errors


def shared(groups: int, rows: int, noise: float = 0.0, complex_: bool = False, seed: int = 0):
    """Signals [groups · rows, 32] whose atoms (3 of 64) are those of their group, the atoms, and the supports."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_ else 0)  # noqa: E731
    d = normal(32, 64)
    d /= np.linalg.norm(d, axis=0)
    supports = np.array([rng.choice(64, 3, replace=False) for _ in range(groups)])
    x = np.concatenate([normal(rows, 3) @ d[:, s].T for s in supports])
    return torch.from_numpy(x + noise * normal(*x.shape)), torch.from_numpy(d), supports


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_is_what_the_definition_says(reference, norm, power, complex_):
    x, d, _ = shared(6, 5, noise=0.3, complex_=complex_)
    found = simultaneous_omp(x, d, groups=5, nonzeros=4, norm=norm)
    for g in range(6):
        rows = slice(5 * g, 5 * g + 5)
        support, values = reference.somp(x[rows].numpy(), d.numpy(), 4, power)
        assert found.codes.indices[rows].tolist() == [support] * 5
        np.testing.assert_allclose(found.codes.values[rows].numpy(), values, atol=1e-10)
    torch.testing.assert_close(found.error, squared_errors(x, d, found.codes))
    assert (found.status == Status.FULL).all()


def test_a_group_of_one_is_omp(reference):
    x, d = map(torch.from_numpy, reference.problem(100, 24, 64, 4, noise=0.1)[:2])
    alone, omp = simultaneous_omp(x, d, groups=1, nonzeros=5), batch_omp(x, d, nonzeros=5)
    assert torch.equal(alone.codes.indices, omp.codes.indices)
    torch.testing.assert_close(alone.codes.values, omp.codes.values)


def test_groups_see_what_single_signals_cannot():
    x, d, supports = shared(40, 12, noise=0.35)
    together, alone = simultaneous_omp(x, d, groups=12, nonzeros=3), batch_omp(x, d, nonzeros=3)
    truth = np.repeat(np.sort(supports, 1), 12, axis=0)
    right = [(np.sort(f.codes.indices.numpy(), 1) == truth).all(1).mean() for f in (together, alone)]
    assert right[0] > 0.95 and right[1] < 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_allowed_is_never_exceeded(dtype):
    x, d, _ = shared(10, 4, noise=0.1)
    x, d = x.to(dtype), d.to(dtype)
    found = simultaneous_omp(x, d, groups=4, error=0.3)
    assert (squared_errors(x, d, found.codes) <= 0.3).all() and (found.status == Status.REACHED).all()
    assert found.nonzeros.max() < 32


def test_groups_by_number_in_any_order_and_little_memory():
    x, d, _ = shared(8, 4, noise=0.2)
    whole = simultaneous_omp(x, d, groups=4, nonzeros=3)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    numbers = 10**12 * (torch.arange(32) // 4)
    mixed = simultaneous_omp(x[order], d, groups=numbers[order], nonzeros=3, budget=4096)
    assert torch.equal(mixed.codes.indices, whole.codes.indices[order])
    torch.testing.assert_close(mixed.codes.values, whole.codes.values[order])
    one = simultaneous_omp(x, d, nonzeros=3)
    assert (one.codes.indices == one.codes.indices[0]).all()


def test_atoms_of_any_length_zero_atoms_and_twins():
    x, d, _ = shared(5, 4)
    d[:, 1] = d[:, 0]
    lengths = torch.rand(64).double() * 10 + 0.1
    lengths[7] = 0
    unit = simultaneous_omp(x, d.clone().index_fill_(1, torch.tensor([7]), 0), groups=4, nonzeros=3)
    found = simultaneous_omp(x, d * lengths, groups=4, nonzeros=3)
    assert torch.equal(found.codes.indices, unit.codes.indices) and not (found.codes.indices == 7).any()
    back = found.codes.values * lengths[found.codes.indices.clamp(min=0).long()]
    torch.testing.assert_close(back, unit.codes.values)


def test_a_dictionary_of_low_rank_and_silence():
    rng = torch.Generator().manual_seed(0)
    d = torch.randn(8, 2, generator=rng).double() @ torch.randn(2, 20, generator=rng).double()
    x = torch.randn(6, 8, generator=rng).double()
    found = simultaneous_omp(x, d, groups=3, nonzeros=5)
    assert found.codes.values.isfinite().all() and (found.nonzeros <= 2).all()
    assert set(found.status.tolist()) <= {Status.CONVERGED, Status.DEPENDENT}
    x[:3], x[4] = 0, 0
    found = simultaneous_omp(x, d, groups=3, nonzeros=2)
    assert (found.status[[0, 1, 2, 4]] == Status.ZERO).all()
    assert (found.codes.indices[[0, 1, 2, 4]] == -1).all() and (found.nonzeros[[3, 5]] == 2).all()
    assert simultaneous_omp(x[:0], d, nonzeros=2).codes.indices.shape == (0, 2)


def test_more_atoms_than_can_be_independent_are_cut():
    x, d, _ = shared(2, 4)
    with pytest.warns(UserWarning, match="nonzeros=50 is more than can be independent"):
        assert simultaneous_omp(x, d, nonzeros=50).codes.indices.shape == (8, 32)


BAD = {
    "neither": ({}, "both missing"),
    "norm": ({"nonzeros": 2, "norm": "l3"}, "norm='l3'"),
    "no group": ({"nonzeros": 2, "groups": 0}, "groups=0"),
    "groups of another length": ({"nonzeros": 2, "groups": torch.zeros(3, dtype=torch.int64)}, "each of 8 signals"),
    "groups that are no integers": ({"nonzeros": 2, "groups": torch.zeros(8)}, "float32"),
    "negative groups": ({"nonzeros": 2, "groups": torch.arange(8) - 1}, "negative"),
    "error": ({"error": -1.0}, "must not be negative"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    x, d, _ = shared(2, 4)
    options, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        simultaneous_omp(x, d, **options)
    with pytest.raises(ModelError, match="signal 3"):
        simultaneous_omp(x.index_fill(0, torch.tensor([3]), torch.nan), d, nonzeros=2)
