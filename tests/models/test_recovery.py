"""Pairing learned atoms with true ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import ModelError
from sparsefleet.models.recovery import recover


def atoms(seed: int, dim: int = 12, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(dim, count))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), extra=st.integers(0, 3), signs=st.booleans())
def test_a_shuffled_dictionary_is_recovered(seed, extra, signs):
    rng, truth = np.random.default_rng(seed), atoms(seed)
    order = rng.permutation(5 + extra)
    turn = rng.choice([-1, 1], size=5) if signs else np.ones(5)
    learned = np.concatenate([truth * turn * 3.0, rng.normal(size=(12, extra))], 1)[:, order]
    found = recover(learned, truth, signs=signs)
    assert found.found == 5
    np.testing.assert_allclose(found.cosines, 1)
    np.testing.assert_array_equal(order[found.partners], np.arange(5))
    np.testing.assert_allclose(found.atoms, 3 * truth)
    assert found.error(truth) == pytest.approx(2)
    assert found.error(truth, unit=True) == pytest.approx(0, abs=1e-12)


def test_every_true_atom_needs_a_partner_of_its_own():
    truth = np.eye(4)[:, :2]
    twice = np.repeat(truth[:, :1], 2, 1)
    assert recover(twice, truth).found == 1


def test_the_best_assignment_is_not_the_greedy_one():
    # Greedy would pair the first true atom with the second learned one and leave the second with cosine 0.
    truth = np.array([[1.0, 0.8], [0.0, 0.6]])
    learned = np.array([[0.9, 1.0], [-0.436, 0.05]])
    np.testing.assert_array_equal(recover(learned, truth).partners, [0, 1])


@pytest.mark.parametrize("shape", [(12, 4), (11, 5), (12,)])
def test_what_cannot_be_paired_is_refused(shape):
    with pytest.raises(ModelError):
        recover(np.ones(shape), atoms(0))


def test_a_dead_atom_is_not_found():
    truth = atoms(0)
    learned = truth.copy()
    learned[:, 2] = 0
    found = recover(learned, truth)
    assert found.found == 4
    assert np.isfinite(found.cosines).all()
