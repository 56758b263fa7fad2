"""Is a field Gabor-like or globular? Gabor functions and differences of Gaussians fitted to small pictures.

A field counts as globular when a difference of Gaussians explains it better than a Gabor function does (Bornschein,
Henniges & Lücke, PLOS Computational Biology 9, 2013, classify receptive fields of V1 models so).

    Gabor(x, y) = exp(-u²/2σ_u² - v²/2σ_v²) (a cos 2πfu + b sin 2πfu), (u, v) = (x, y) - centre, rotated by θ
    DoG(x, y)   = a exp(-r²/2σ_1²) + b exp(-r²/2σ_2²)

a and b follow from the other parameters by least squares (variable projection, Golub & Pereyra 1973), so that the
search has six dimensions and four. Shapes: P = height × width pixels of a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError

Array = NDArray[np.float64]
Basis = Callable[[Array], tuple[Array, Array]]
EVALUATIONS = 60
"""At most so many steps from each start."""


@dataclass(frozen=True)
class FieldFit:
    """The better of the two fits to a field."""

    kind: str
    """`gabor` or `dog`; `none` for a field that is zero everywhere."""
    gabor: float
    """Share of the field's energy that the Gabor function explains."""
    dog: float
    """Share that the difference of Gaussians explains."""
    frequency: float
    """Cycles per pixel of the Gabor function."""
    orientation: float
    """Of the Gabor function's wave vector, radians in [0, π)."""
    fitted: Array
    """[height, width] the better fit, at the field's scale."""

    @property
    def globular(self) -> bool:
        """Whether the difference of Gaussians explains more."""
        return self.kind == "dog"


def fit_field(field: NDArray[np.floating]) -> FieldFit:
    """Fits both functions to `field` [height, width] and says which explains it better.

    Raises:
        ModelError: the field is no picture of at least 4 × 4 finite numbers.
        ImportError: scipy is missing.
    """
    picture = np.asarray(field, np.float64)
    if picture.ndim != 2 or min(picture.shape) < 4 or not np.isfinite(picture).all():
        raise ModelError(f"a field of shape {list(picture.shape)} cannot be fitted: at least 4 × 4 finite numbers")
    energy = float(np.square(picture).sum())
    if energy <= 0:
        return FieldFit("none", 0.0, 0.0, 0.0, 0.0, np.zeros_like(picture))
    y, x = np.indices(picture.shape).reshape(2, -1).astype(np.float64)
    target = picture.reshape(-1) / np.sqrt(energy)
    side = float(max(picture.shape))
    gabor_at = lambda p: _gabor(p, x, y)  # noqa: E731
    dog_at = lambda p: _dog(p, x, y)  # noqa: E731
    gabor, found = _best(target, gabor_at, _gabor_starts(picture), _gabor_bounds(picture.shape, side))
    dog, centred = _best(target, dog_at, _dog_starts(picture), _dog_bounds(picture.shape, side))
    turn = float(np.mod(found[2] + (np.pi if found[5] < 0 else 0), np.pi))
    pair = dog_at(centred) if dog > gabor else gabor_at(found)
    fitted = (np.sqrt(energy) * (target - _residual(target, pair))).reshape(picture.shape)
    return FieldFit("dog" if dog > gabor else "gabor", gabor, dog, abs(float(found[5])), turn, fitted)


def _gabor(p: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Both phases [P] of the Gabor function at centre p0, p1, angle p2, widths exp(p3), exp(p4), frequency p5."""
    dx, dy = x - p[0], y - p[1]
    u, v = dx * np.cos(p[2]) + dy * np.sin(p[2]), dy * np.cos(p[2]) - dx * np.sin(p[2])
    envelope = np.exp(-(u**2) / (2 * np.exp(2 * p[3])) - v**2 / (2 * np.exp(2 * p[4])))
    wave = 2 * np.pi * p[5] * u
    return envelope * np.cos(wave), envelope * np.sin(wave)


def _dog(p: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Centre and surround [P] at p0, p1 with widths exp(p2) and exp(p2) (1 + exp(p3))."""
    square = (x - p[0]) ** 2 + (y - p[1]) ** 2
    inner = np.exp(p[2])
    outer = inner * (1 + np.exp(p[3]))
    return np.exp(-square / (2 * inner**2)), np.exp(-square / (2 * outer**2))


def _best(target: Array, basis: Basis, starts: Iterator[Array], bounds: tuple[Array, Array]) -> tuple[float, Array]:
    """Explained share of the best fit over all starts, and its parameters."""
    try:
        from scipy.optimize import least_squares
    except ImportError as err:
        raise ImportError("fitting fields needs scipy: pip install 'sparsefleet[science]'") from err
    best, found = -1.0, np.zeros(len(bounds[0]))
    for start in starts:
        inside = np.clip(start, bounds[0] + 1e-6, bounds[1] - 1e-6)
        fit: Any = least_squares(
            lambda p: _residual(target, basis(p)), inside, bounds=bounds, x_scale="jac", max_nfev=EVALUATIONS
        )
        share = 1 - 2 * float(fit.cost)
        if share > best:
            best, found = share, fit.x
    return max(best, 0.0), found


def _residual(target: Array, pair: tuple[Array, Array]) -> Array:
    """`target` [P] minus its projection on the two functions."""
    a, b = pair
    aa, bb, ab = a @ a + 1e-12, b @ b + 1e-12, a @ b
    ta, tb = target @ a, target @ b
    # One function may nearly be the other (no frequency, equal widths): a little ridge decides for both halves.
    det = aa * bb - ab**2 + 1e-9 * aa * bb
    return target - ((ta * bb - tb * ab) / det) * a - ((tb * aa - ta * ab) / det) * b


def _centre(picture: Array) -> tuple[float, float]:
    """Where the energy is, (x, y)."""
    weight = np.square(picture)
    y, x = np.indices(picture.shape)
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


def _gabor_starts(picture: Array) -> Iterator[Array]:
    """From the three strongest frequencies that are not neighbours, with two widths each."""
    x, y = _centre(picture)
    padded = [2 * n for n in picture.shape]
    power = np.abs(np.fft.fft2(picture, padded))
    fy, fx = np.meshgrid(np.fft.fftfreq(padded[0]), np.fft.fftfreq(padded[1]), indexing="ij")
    power[fx < 0] = 0
    for _ in range(3):
        at = np.unravel_index(int(power.argmax()), power.shape)
        frequency, angle = float(np.hypot(fx[at], fy[at])), float(np.arctan2(fy[at], fx[at]))
        for width in (1.5, 3.0):
            yield np.array([x, y, angle, np.log(width), np.log(width), max(frequency, 0.02)])
        power[np.hypot(fx - fx[at], fy - fy[at]) < 2.5 / min(padded)] = 0


def _dog_starts(picture: Array) -> Iterator[Array]:
    """From the centre of energy and from the strongest pixel, with two widths each."""
    row, column = np.unravel_index(int(np.abs(picture).argmax()), picture.shape)
    for x, y in (_centre(picture), (float(column), float(row))):
        for width in (1.0, 2.5):
            yield np.array([x, y, np.log(width), 0.0])


def _gabor_bounds(shape: tuple[int, ...], side: float) -> tuple[Array, Array]:
    low, high = np.log(0.4), np.log(2 * side)
    return (
        np.array([-1.0, -1.0, -2 * np.pi, low, low, -0.7]),
        np.array([shape[1], shape[0], 2 * np.pi, high, high, 0.7]),
    )


def _dog_bounds(shape: tuple[int, ...], side: float) -> tuple[Array, Array]:
    return (
        np.array([-1.0, -1.0, np.log(0.4), -4.0]),
        np.array([shape[1], shape[0], np.log(2 * side), 3.0]),
    )
