"""Rows made of several arrays of a data set, side by side (activations and their gradients, inputs and outputs, …)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import Dataset
from .errors import JobError

MADE_BY = {"gradients": "harvest --gradients", "outputs": "harvest --target SITE"}
"""Commands that write arrays of these names."""


def widths(data: Dataset, arrays: tuple[str, ...]) -> tuple[int, ...]:
    """Columns of each array.

    Raises:
        JobError: the data set lacks one.
    """
    for name in arrays:
        if name not in data.arrays:
            remedy = f"; `sparsefleet {MADE_BY[name]}` writes one" if name in MADE_BY else ""
            raise JobError(
                f"data set {data.uri!r} has no array {name!r}, which the model reads: it has {', '.join(data.arrays)}"
                + remedy
            )
    return tuple(data.width(name) for name in arrays)


def read_columns(data: Dataset, arrays: tuple[str, ...], start: int, stop: int) -> NDArray[Any]:
    """Rows start … stop-1 with the columns of all `arrays`, [stop - start, D]."""
    parts = [data.read(start, stop, name).reshape(stop - start, -1) for name in arrays]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
