"""What differs between two versions: settings, metrics, and how far their arrays are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .versions import Artifact

MOST_ATOMS = 4000
"""The assignment of atoms takes H^3 steps and H^2 numbers; larger dictionaries are not matched."""


def compare(a: Artifact, b: Artifact) -> dict[str, Any]:
    """Differences as JSON values.

    `job`, `data`, `engine`, `packages`: {setting: [in a, in b]} where they differ; `metrics`: {metric: [a, b]} of all;
    `arrays`: per array that both have `shape` and `relative_distance` |a-b| / |a| (Frobenius; None when the shapes
    differ), for `W` also `matched_cosine` {mean, min} over the best one-to-one assignment of atoms up to sign (None
    when H > 4000 or the rows differ); `only_a`, `only_b`: arrays that the other one lacks.
    """
    shared = sorted(a.arrays.keys() & b.arrays.keys())
    metrics = (a.card["metrics"], b.card["metrics"])
    return {
        "a": a.version.ref,
        "b": b.version.ref,
        **{part: changed(a.card[part] or {}, b.card[part] or {}) for part in ("job", "data", "engine", "packages")},
        "metrics": {key: [metrics[0].get(key), metrics[1].get(key)] for key in sorted({*metrics[0], *metrics[1]})},
        "arrays": {key: _distance(key, a.arrays[key], b.arrays[key]) for key in shared},
        "only_a": sorted(a.arrays.keys() - b.arrays.keys()),
        "only_b": sorted(b.arrays.keys() - a.arrays.keys()),
    }


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ, nested ones as `outer.inner`; None where one side lacks it."""
    left, right = dict(_flat(a)), dict(_flat(b))
    keys = sorted({*left, *right})
    return {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        out += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return out


def _distance(key: str, a: NDArray[Any], b: NDArray[Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": [list(a.shape), list(b.shape)], "relative_distance": None}
    if a.shape == b.shape:
        entry["relative_distance"] = relative_distance(a, b)
    if key == "W" and a.ndim == b.ndim == 2:
        entry["matched_cosine"] = matched_cosine(a, b)
    return entry


def relative_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """|a-b| / |a|, in float64 or complex128; 0 when both are zero, infinite when only `a` is."""
    wide = np.result_type(a.dtype, b.dtype, np.float64)
    apart, size = (float(np.linalg.norm(x.astype(wide).ravel())) for x in (a.astype(wide) - b.astype(wide), a))
    return apart / size if size else (0.0 if apart == 0 else float("inf"))


def matched_cosine(a: NDArray[Any], b: NDArray[Any]) -> dict[str, float] | None:
    """|cosine| of atoms of `a` [D, H] and `b` [D, H'] under the best one-to-one assignment; None when too large.

    Needs scipy (the extra `photos` brings it); None without it.
    """
    if a.shape[0] != b.shape[0] or max(a.shape[1], b.shape[1]) > MOST_ATOMS or not (a.size and b.size):
        return None
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        return None
    cosine = np.abs(_unit(a).T @ _unit(b))
    matched = cosine[linear_sum_assignment(-cosine)]
    return {"mean": float(matched.mean()), "min": float(matched.min())}


def _unit(atoms: NDArray[Any]) -> NDArray[np.float64]:
    wide = atoms.astype(np.float64)
    length = np.linalg.norm(wide, axis=0)
    return wide / np.where(length > 0, length, 1)
