"""Receptive fields of learned atoms, and how often data uses them. Shapes: D observed, D0 pixels, H atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Batch, Model, Params
from ..storage import Dataset
from ..storage.ingest.images import difference_of_gaussians
from ..workers.columns import read_columns
from .errors import PipelineError

USAGE_ROWS = 8192
BATCH = 2048
ACTIVE = 0.1
"""A posterior mean of this magnitude counts as use."""


def receptive_fields(data: Dataset, atoms: NDArray[np.floating]) -> NDArray[np.float64]:
    """[H, height, width]: what a pixel of the photograph adds to the scores Wᵀy of the preprocessed patch y.

    Preprocessing is linear, y = K p, so that the scores are (Kᵀ W)ᵀ p: the atoms under the transposed whitening and,
    where photographs were filtered, the transposed filter, which makes the fields 8 pixels wider.

    Raises:
        PipelineError: the rows are no grey patches.
    """
    shape = data.patch_shape
    if shape is None or len(shape) != 2:
        raise PipelineError(f"{data.uri} holds no grey patches, so its atoms have no receptive fields")
    whiten = data.side("whiten")
    seen = np.asarray(atoms if whiten is None else whiten @ atoms, np.float64)
    pictures = seen.T.reshape(-1, *shape)
    recipe: dict[str, Any] = data.attributes.get("recipe", {})
    if recipe.get("prefilter") != "dog":
        return pictures
    # The filter is symmetric: its transpose is the same filter over the patch in a frame of zeros.
    framed = np.pad(pictures, ((0, 0), (8, 8), (8, 8))).transpose(1, 2, 0)
    return difference_of_gaussians(framed, Path(data.uri)).astype(np.float64).transpose(2, 0, 1)


def usage_of_codes(model: Model, params: Params, data: Dataset) -> NDArray[np.float64]:
    """[H] share of the first rows of `data` whose code has an entry of magnitude 0.1 or more at each atom."""
    rows = min(data.rows, USAGE_ROWS)
    counts = torch.zeros(model.atoms, dtype=torch.float64)
    for start in range(0, rows, BATCH):
        block = read_columns(data, model.encode_arrays, start, min(start + BATCH, rows))
        x = torch.from_numpy(block).to(model.torch_dtype)
        codes = model.encode(params, Batch(x, start))
        used = codes.indices[(codes.values.abs() >= ACTIVE) & (codes.indices >= 0)]
        counts += torch.bincount(used.long(), minlength=model.atoms)
    return (counts / rows).numpy()
