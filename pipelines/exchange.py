"""Autoencoders to and from the folders of SAELens and sparsify: `cfg.json` and a safetensors file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..models import Params
from ..models.autoencoders.autoencoder import Autoencoder
from ..models.autoencoders.exchange import FORMATS
from ..storage import ArtifactStore, StorageError
from ..storage.artifacts import Version
from ..storage.artifacts.export import write_files
from ..workers.documents import TooLarge, read_short
from ..workers.errors import JobError
from ..workers.job import LearnJob

CONFIG = "cfg.json"
PLAIN = "export as npz or safetensors"


def export_folder(store: str, ref: str, out: str | Path, format: str, *, overwrite: bool = False) -> list[Path]:
    """Write the version `ref` to the folder `out` as `format` (saelens, sparsify) lays it out; returns the files.

    Raises:
        JobError, ModelError: the version is no autoencoder, or one that the format cannot hold.
        StorageError: the files are there already, or the folder cannot be written.
    """
    artifact = ArtifactStore(store, create=False).load(ref)
    own = artifact.card["job"]["model"]
    if ":" in own:
        ref = artifact.version.ref
        raise JobError(f"{ref} is of a model of your own, {own!r}, which {format} does not know: {PLAIN}")
    model = LearnJob.parse(artifact.card["job"]).build_model()
    if not isinstance(model, Autoencoder):
        raise JobError(f"{artifact.version.ref} is a {artifact.card['job']['model']}: {format} holds autoencoders only")
    params: Params = {n: torch.from_numpy(np.array(a)) for n, a in artifact.arrays.items()}
    file, write, _ = FORMATS[format]
    config, tensors = write(model, params)
    save = _safetensors().save
    contents = {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), file: save(tensors)}
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_files({folder / name: content for name, content in contents.items()}, overwrite=overwrite)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from error


def import_folder(path: str | Path, *, format: str, store: str, name: str) -> Version:
    """Publish what the folder `path` holds as a version of `name`.

    Raises:
        StorageError: a file is missing or damaged.
        ModelError: an autoencoder that this project cannot represent.
    """
    folder = Path(path)
    file, _, read = FORMATS[format]
    config = _config(folder / CONFIG)
    tensors, sha = _tensors(folder / file)
    found = read(config, tensors)
    dtype = found.settings.pop("dtype", "float32")
    job = LearnJob.parse(
        {
            "data": str(folder),
            "store": store,
            "name": name,
            "model": found.model,
            "atoms": found.atoms,
            "dtype": dtype,
            "settings": found.settings,
        }
    )
    card: dict[str, Any] = {
        "kind": "dictionary",
        "job": job.to_dict(),
        "model": {"name": found.model, **job.build_model().describe()},
        "imported": {"format": format, "sha256": sha, "config": config},
        "data": {
            "uri": str(folder),
            "fingerprint": f"{format}:{sha}",
            "dim": found.params["W_enc"].shape[1],
        },
        "engine": {"name": format},
        "notes": f"imported from {folder.name}, a folder of {format}",
    }
    arrays = {key: value.numpy() for key, value in found.params.items()}
    return ArtifactStore(store).publish(name, arrays=arrays, card=card, message=f"imported from {folder.name}")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_short(path))
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except TooLarge as error:
        raise StorageError(f"{path} is no configuration: {error}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise StorageError(f"{path} holds a {type(config).__name__}, not settings")
    return cast(dict[str, Any], config)


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """What a safetensors file holds, and the SHA-256 of its content."""
    load = _safetensors().load_file
    try:
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return load(path), sha
    except Exception as error:  # safetensors' own error, of no public type
        raise StorageError(f"{path} is no safetensors file: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise StorageError("needs safetensors: pip install 'sparsefleet[safetensors]'") from error
    return safetensors.torch
