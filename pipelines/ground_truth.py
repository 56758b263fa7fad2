"""What an autoencoder found of the features that made its data, where these are known (`ingest generated`)."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Codes
from ..models.autoencoders.measures import recovery
from ..models.recovery import recover
from ..storage import Dataset
from ..storage.ingest import GeneratedSource
from ..storage.ingest.generated import TRUTH, draw


def source_of(data: Dataset) -> GeneratedSource | None:
    """How the rows of a data set were drawn; None where they were not."""
    recipe = data.attributes.get("recipe", {})
    return GeneratedSource.model_validate({**recipe, "out": data.uri}) if recipe.get("kind") == "generated" else None


class GroundTruth:
    """Directions that were recovered, and how well latents tell where features are active.

    G true features; every one is paired with a latent of its own by the assignment of largest |cosine| (for this there
    must be as many latents, and scipy). The draws of each shard are made again to know where features were active.
    """

    def __init__(self, data: Dataset, atoms: NDArray[np.floating]) -> None:
        """`atoms` [D, H] of a dictionary for `data`, which keeps its true atoms."""
        truth = data.side(TRUTH)
        assert truth is not None
        self._data, self._truth, self._source = data, truth, source_of(data)
        self._metrics = recovery(torch.from_numpy(np.asarray(atoms, np.float64)), torch.from_numpy(truth))
        self._feature: torch.Tensor | None = None
        if atoms.shape[1] >= truth.shape[1] and find_spec("scipy") is not None:
            pairs = recover(atoms, truth, signs=True)
            self._metrics["mean_cosine"] = float(pairs.cosines.mean())
            self._feature = torch.full((atoms.shape[1],), -1)
            self._feature[torch.from_numpy(pairs.partners)] = torch.arange(truth.shape[1])
        self._both, self._either = (np.zeros(truth.shape[1]) for _ in range(2))
        self._shard, self._latents = -1, np.zeros((0, 0))

    def add(self, start: int, x: torch.Tensor, codes: Codes) -> None:
        """Count the rows from number `start` on, with their codes."""
        if self._feature is None or self._source is None:
            return
        feature = self._feature[codes.indices.cpu().clamp(min=0).long()]
        row, slot = ((codes.values.cpu() != 0) & (feature >= 0)).nonzero(as_tuple=True)
        found = np.zeros((len(x), self._truth.shape[1]), bool)
        found[row.numpy(), feature[row, slot].numpy()] = True
        true = self._active(start, start + len(x))
        self._both += (found & true).sum(0)
        self._either += found.sum(0) + true.sum(0)

    def numbers(self) -> dict[str, float]:
        """recovered, atoms_per_direction, mean_max as `measures.recovery`; mean_cosine: of the pairs; support_f1: mean
        of the F1 with which the partner's firing tells the feature's, over features where either occurs."""
        found = {f"truth_{name}": value for name, value in self._metrics.items()}
        if (seen := self._either > 0).any():
            found["truth_support_f1"] = float((2 * self._both[seen] / self._either[seen]).mean())
        return found

    def _active(self, start: int, stop: int) -> NDArray[np.bool_]:
        """[stop - start, G] where features were other than 0."""
        assert self._source is not None
        parts: list[NDArray[np.bool_]] = []
        for shard in self._data.shards():
            low, high = max(start, shard.start), min(stop, shard.stop)
            if low >= high:
                continue
            if shard.index != self._shard:
                self._shard, self._latents = shard.index, draw(self._source, self._truth, shard)[1]
            parts.append(self._latents[low - shard.start : high - shard.start] != 0)
        return np.concatenate(parts)


def known(data: Dataset) -> bool:
    """Whether the data set keeps the features that made it."""
    return data.side(TRUTH) is not None
