"""Pictures, looked at as arrays."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sparsefleet.pipelines import report


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@given(count=st.integers(1, 450), height=st.integers(1, 9), width=st.integers(1, 9), color=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_patches_make_a_picture(count, height, width, color):
    shape = (height, width, 3) if color else (height, width)
    atoms = np.random.default_rng(0).normal(size=(int(np.prod(shape)), count))
    page = pixels(report.atoms_picture(atoms, shape))
    assert page.ndim == (3 if color else 2)
    assert page.max() == 255


def test_zero_is_grey_and_every_atom_has_its_own_scale():
    atoms = np.array([[1.0, 1000.0], [0.0, 0.0], [-1.0, 500.0], [0.0, 0.0]])
    page = pixels(report.atoms_picture(atoms, (2, 2)))
    values = set(np.unique(page))
    assert values == {0, 128, 191, 255}


def test_a_silent_atom_is_grey():
    page = pixels(report.atoms_picture(np.zeros((4, 1)), (2, 2)))
    assert set(np.unique(page)) == {128, 255}


def test_the_most_used_atoms_come_first():
    atoms = np.eye(4)
    by_usage = report.atoms_picture(atoms, (2, 2), np.array([0.1, 0.4, 0.3, 0.2]))
    assert by_usage == report.atoms_picture(atoms[:, [1, 2, 3, 0]], (2, 2))


@pytest.mark.parametrize("shape", [(30, 5), (30, 40), (1, 8), (7, 1)])
def test_rows_that_are_no_patches_are_plotted(shape):
    assert pixels(report.atoms_picture(np.random.default_rng(0).normal(size=shape), None)).shape[0] > 50


def test_convergence_leaves_out_what_cannot_be_drawn():
    history = {"free_energy": np.array([1.0, 2.0]), "odd": np.array([np.nan, np.nan]), "one": np.array([1.0])}
    assert report.convergence_picture(history) is not None
    assert report.convergence_picture({"one": np.array([1.0]), "seconds": np.arange(3.0)}) is None


def test_usage_is_found_among_the_parameters():
    assert report.usage_of({"W": np.zeros((3, 2)), "pi": np.array(0.1)}, 2) is None
    assert list(report.usage_of({"pi": np.array([0.1, 0.2])}, 2)) == [0.1, 0.2]


def test_codes_picture_is_for_patches_only():
    rows = np.random.default_rng(0).normal(size=(3, 4))
    assert report.codes_picture(rows, rows, None) is None
    assert pixels(report.codes_picture(rows, rows, (2, 2))).ndim == 2
