"""Gabor functions are recognised as such, and so are differences of Gaussians."""

import numpy as np
import pytest
from sparsefleet.models import ModelError
from sparsefleet.models.receptive import fit_field

Y, X = np.mgrid[:14, :16].astype(float)


def gabor(frequency: float, angle: float, phase: float = 0.7, x: float = 8.3, y: float = 6.1) -> np.ndarray:
    u = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
    v = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
    return np.exp(-(u**2) / (2 * 1.8**2) - v**2 / (2 * 2.6**2)) * np.cos(2 * np.pi * frequency * u + phase)


def centre_surround(width: float, strength: float, x: float = 7.4, y: float = 6.8) -> np.ndarray:
    square = (X - x) ** 2 + (Y - y) ** 2
    return np.exp(-square / (2 * width**2)) - strength / 4 * np.exp(-square / (8 * width**2))


def noisy(field: np.ndarray, scale: float) -> np.ndarray:
    size = scale * np.sqrt(np.mean(field**2))
    return field + np.random.default_rng(0).normal(0, size, field.shape)


@pytest.mark.parametrize("frequency", [0.1, 0.17, 0.24])
@pytest.mark.parametrize("angle", [0.0, 0.6, 1.9])
def test_gabor_functions(frequency, angle):
    fit = fit_field(gabor(frequency, angle))
    assert fit.kind == "gabor"
    assert fit.gabor > 0.9999
    assert fit.frequency == pytest.approx(frequency, abs=1e-3)
    assert min(abs(fit.orientation - angle), np.pi - abs(fit.orientation - angle)) < 0.01
    assert not fit.globular
    np.testing.assert_allclose(fit.fitted, gabor(frequency, angle), atol=0.02)


@pytest.mark.parametrize("width", [0.9, 1.6])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sign", [-3.0, 1e-4])
def test_differences_of_gaussians(width, strength, sign):
    fit = fit_field(sign * centre_surround(width, strength))
    assert fit.globular
    assert fit.dog > 0.9999
    assert fit.gabor < fit.dog


def test_both_are_told_apart_under_noise():
    for seed in range(4):
        turn = 0.4 + 0.7 * seed
        assert fit_field(noisy(gabor(0.15, turn), 0.3)).kind == "gabor"
        assert fit_field(noisy(centre_surround(1.2 + 0.2 * seed, 0.9), 0.3)).kind == "dog"


def test_no_field_and_no_picture():
    assert fit_field(np.zeros((8, 8))).kind == "none"
    with pytest.raises(ModelError):
        fit_field(np.full((8, 8), np.nan))
    with pytest.raises(ModelError):
        fit_field(np.ones(64))
