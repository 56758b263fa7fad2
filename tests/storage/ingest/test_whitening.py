"""Whitening: unit covariance on what is kept, an exact way back, the same from any split of the data."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.storage import BadData
from sparsefleet.storage.ingest.whitening import MAX_DIM, Moments, check_dim, learn_whitening


def rows(count: int = 3000, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Correlated rows with variances from 1 to 1e-4 and a mean."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.normal(size=(dim, dim)))[0] * np.logspace(0, -2, dim)
    return rng.normal(size=(count, dim)) @ mix.T + rng.normal(size=dim)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 299), max_size=5), offset=st.floats(-1e4, 1e4))
def test_moments_add(cuts: list[int], offset: float) -> None:
    x = rows(300, 5) + offset
    edges = sorted({0, *cuts, 300})
    parts = [Moments.of(x[a:b], scatter=True) for a, b in pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == 300
    np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.scatter / 299, np.cov(x.T), rtol=1e-6, atol=1e-10)


def test_moments_of_float32_are_float64() -> None:
    x = (rows(20_000, 3) * 1e-2 + 1e3).astype(np.float32)
    moments = Moments.of(x, scatter=True)
    np.testing.assert_allclose(moments.scatter / (len(x) - 1), np.cov(x.T.astype(np.float64)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["zca", "pca"])
@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_covariance_is_the_identity_on_what_is_kept(kind: str, keep: float) -> None:
    x = rows()
    white = learn_whitening(Moments.of(x, scatter=True), kind, keep=keep, epsilon=0)  # pyright: ignore
    y = white(x.copy())
    values, vectors = np.linalg.eigh(np.cov(x.T))
    share = np.cumsum(values[::-1]) / values.sum()
    kept = 12 if keep == 1 else int((share < keep).sum()) + 1
    basis = vectors[:, ::-1][:, :kept]
    expected = basis @ basis.T if kind == "zca" else np.eye(kept)
    np.testing.assert_allclose(np.cov(y.T), expected, atol=1e-8)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    projected = (x - x.mean(0)) @ basis @ basis.T + x.mean(0)
    assert white.unwhiten is not None
    np.testing.assert_allclose(y @ white.unwhiten + white.mean, projected, atol=1e-10)
    assert white.dim == (12 if kind == "zca" else kept)


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_epsilon_damps_weak_directions_and_keeps_the_scale(kind: str) -> None:
    x = rows()
    white = learn_whitening(Moments.of(x, scatter=True), kind, keep=1.0, epsilon=0.5)  # pyright: ignore
    variances = np.linalg.eigvalsh(np.cov(white(x.copy()).T))[::-1]
    np.testing.assert_allclose(variances.mean(), 1)
    assert variances[0] > 1 > variances[-1]
    assert white.unwhiten is not None
    np.testing.assert_allclose(white(x.copy()) @ white.unwhiten + white.mean, x, atol=1e-9)


def test_directions_without_variance_are_dropped() -> None:
    x = rows()
    x -= x.mean(axis=1, keepdims=True)  # as the DC of patches
    white = learn_whitening(Moments.of(x, scatter=True), "pca", keep=1.0, epsilon=0)
    assert white.dim == 11


def test_what_cannot_be_whitened_is_refused() -> None:
    with pytest.raises(BadData, match="all rows are equal"):
        learn_whitening(Moments.of(np.ones((5, 3)), scatter=True), "zca", keep=1, epsilon=0)
    with pytest.raises(BadData, match="at least 2 rows"):
        learn_whitening(Moments.of(rows(1), scatter=True), "zca", keep=1, epsilon=0)
    with pytest.raises(BadData, match=r"covariance of 0\.5 GB"):
        check_dim(MAX_DIM + 1, "zca")
    check_dim(MAX_DIM + 1, "none")
