"""Pictures of what was learned: atoms as tiles (or a heat map), and how the run converged. All as PNG bytes.

Shapes: D observed dimensions, H atoms.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import PipelineError
from .metrics import LABELS, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILES = 400
"""Atoms shown at most: more cannot be told apart on a page."""
PICTURE_PIXELS = 900
PANELS = 8
LINES = 16
"""Up to so many atoms of rows that are no patches are drawn as lines, more as a heat map."""
INK = "#1f5aa6"


def atoms_picture(
    atoms: NDArray[np.floating], patch_shape: Sequence[int] | None, usage: NDArray[np.floating] | None = None
) -> bytes:
    """Atoms [D, H] as a PNG: tiles of their patches, or lines or a heat map where rows are no patches.

    Every atom has its own scale, symmetric about zero: mid grey is 0. With `usage` [H] the most used come first; of
    more than 400 atoms, 400 are shown.
    """
    order = np.argsort(-usage, kind="stable") if usage is not None else np.arange(atoms.shape[1])
    shown = np.asarray(atoms, dtype=np.float64)[:, order[:TILES]]
    if patch_shape is not None and int(np.prod(patch_shape)) == len(shown):
        return _tiles(shown, tuple(patch_shape))
    return _heat_map(shown) if len(order) > LINES or len(shown) == 1 else _lines(shown, order)


def convergence_picture(history: Mapping[str, NDArray[Any]]) -> bytes | None:
    """Every series of the history over the run's updates as a PNG; None where there is nothing to draw."""
    series = {n: np.asarray(v, dtype=np.float64) for n, v in history.items() if np.ndim(v) == 1 and np.size(v) > 1}
    for wall in ("step", "seconds"):
        series.pop(wall, None)
    names = [n for n in ordered(series) if np.isfinite(series[n]).any()][:PANELS]
    if not names:
        return None
    x = np.asarray(history["step"]) if "step" in history else None
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = _figure(4.6 * columns, 2.5 * rows)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        y = series[name]
        axes.plot(x if x is not None and len(x) == len(y) else np.arange(1, len(y) + 1), y, color=INK, lw=1.4)
        _dress(axes, LABELS.get(name, name.replace("_", " ")), "update" if i >= len(names) - columns else "")
    return _png(figure)


def codes_picture(
    rows: NDArray[np.floating], rebuilt: NDArray[np.floating], patch_shape: Sequence[int] | None
) -> bytes | None:
    """Rows [n, D] in the upper line, what their codes give back [n, D] below; None where rows are no patches."""
    if patch_shape is None or int(np.prod(patch_shape)) != rows.shape[1]:
        return None
    return _tiles(np.concatenate([rows, rebuilt]).T, tuple(patch_shape), columns=len(rows))


def fits_picture(fields: NDArray[np.floating], fitted: NDArray[np.floating]) -> bytes:
    """Fields [n, height, width] in the upper lines, what was fitted to them below, each at its own scale."""
    shape = fields.shape[1:]
    both = np.concatenate([fields, fitted]).reshape(2 * len(fields), -1).T
    return _tiles(np.asarray(both, np.float64), (shape[0], shape[1]), columns=len(fields))


def usage_picture(usage: NDArray[np.floating]) -> bytes:
    """Share of rows that use an atom [H], the most used first, on a logarithmic scale; and its histogram."""
    figure = _figure(9.2, 2.6)
    shares = np.sort(usage)[::-1]
    curve, bars = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    curve.semilogy(np.arange(1, len(shares) + 1), np.maximum(shares, 1e-6), color=INK, lw=1.4)
    bars.hist(shares, bins=min(40, max(len(shares) // 4, 5)), color=INK)
    _dress(curve, "share of rows that use an atom", "atom, by rank")
    _dress(bars, "atoms by use", "share of rows")
    return _png(figure)


def can_plot() -> bool:
    """Whether matplotlib is installed; tiles of patches do without it."""
    return find_spec("matplotlib") is not None


def usage_of(params: Mapping[str, NDArray[Any]], atoms: int) -> NDArray[np.floating] | None:
    """How often each atom is used [H], if the parameters tell."""
    for name in ("usage", "training/usage", "pi"):
        found = params.get(name)
        if found is not None and np.shape(found) == (atoms,):
            return np.asarray(found, dtype=np.float64)
    return None


def _tiles(atoms: NDArray[np.floating], shape: tuple[int, ...], columns: int | None = None) -> bytes:
    from PIL import Image

    height, width = shape[0], (shape[1] if len(shape) > 1 else 1)
    channels = 3 if len(shape) == 3 and shape[2] == 3 else 1
    count = atoms.shape[1]
    columns = columns or max(1, int(np.ceil(np.sqrt(count * height / width))))
    lines = -(-count // columns)
    zoom = max(1, min(8, PICTURE_PIXELS // (columns * (width + 1))))
    scale = np.abs(atoms).max(0)
    grey = 0.5 + 0.5 * atoms / np.where(scale > 0, scale, 1)
    patches = grey.T.reshape(count, height, width, -1)[..., :channels]
    patches = np.repeat(np.repeat(patches, zoom, 1), zoom, 2)
    gap = max(1, zoom // 2)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    page = np.ones((lines * step_y + gap, columns * step_x + gap, channels))
    for i, patch in enumerate(patches):
        y, x = gap + i // columns * step_y, gap + i % columns * step_x
        page[y : y + height * zoom, x : x + width * zoom] = patch
    pixels = (page * 255).round().astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(out, "png", optimize=True)
    return out.getvalue()


def _lines(atoms: NDArray[np.float64], names: NDArray[np.integer]) -> bytes:
    count = atoms.shape[1]
    columns = min(4, count)
    figure = _figure(2.6 * columns, 1.7 * -(-count // columns))
    for i in range(count):
        axes = figure.add_subplot(-(-count // columns), columns, i + 1)
        axes.plot(atoms[:, i], color=INK, lw=1)
        _dress(axes, f"atom {names[i]}", "")
    return _png(figure)


def _heat_map(atoms: NDArray[np.float64]) -> bytes:
    figure = _figure(9, 5)
    axes = figure.add_subplot()
    limit = float(np.abs(atoms).max()) or 1.0
    image = axes.imshow(atoms, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xlabel("atom")
    axes.set_ylabel("dimension")
    figure.colorbar(image, ax=axes)
    return _png(figure)


def _dress(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", useOffset=False)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise PipelineError("needs matplotlib: pip install 'sparsefleet[plots]'") from err
    # Not pyplot: its state is global, and reports are drawn in a thread.
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
