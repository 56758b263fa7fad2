"""Stores and versions to test with."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sparsefleet.storage.artifacts import ArtifactStore

PNG = b"\x89PNG\r\n\x1a\n-a picture-"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty local store."""
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def parameters() -> dict[str, NDArray[np.float64]]:
    """A small dictionary: `W` [D=6, H=4] and scalars."""
    rng = np.random.default_rng(3)
    return {"W": rng.normal(size=(6, 4)), "sigma": np.array(0.5), "prior/pi": rng.random(4)}


@pytest.fixture
def full(store: ArtifactStore, parameters: dict[str, NDArray[np.float64]]) -> ArtifactStore:
    """A store with `photos@1`, which has everything that a version can have."""
    store.publish(
        "photos",
        arrays={**parameters, "training/step": np.array(7)},
        card={
            "job": {"model": "bsc", "atoms": 4, "settings": {"gamma": 3}},
            "data": {"uri": "/data/patches.zarr", "fingerprint": "ab", "rows": 100, "dim": 6},
            "engine": {"name": "local", "workers": 1},
            "seed": 5,
            "wall_seconds": 1.5,
            "licence": {"dictionary": "CC-BY-4.0"},
            "metrics": {"free_energy": np.float32(-2.5), "sparsity": float("nan")},
            "favourite": {"colour": "blue"},
        },
        history={"free_energy": np.array([-3.0, -2.5]), "loss/train": np.array([np.nan])},
        figures={"atoms.png": PNG},
    )
    return store
