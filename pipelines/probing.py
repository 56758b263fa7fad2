"""Passages of labelled documents, and what a sparse probe tells about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Codes, ModelError
from ..models.autoencoders.probing import SPARSITIES, Pooled, Probed, probe, told_apart
from ..storage import Dataset
from ..workers.errors import JobError
from .labels import labels_of
from .phases import begin
from .reporter import Reporter, silent

PASSAGES = 5000
"""As many as SAEBench uses; of more, so many are drawn."""
ENTRIES = 1 << 27
"""Mean codes are kept as a matrix: its numbers are at most so many (1 GiB)."""
SEED = 0
SINK = 10
"""Rows this many times as long as the median are left out: attention rests on such tokens wherever they stand (Sun et
al. 2024), they say nothing about the text, and one of them outweighs all other rows of its passage."""


@dataclass(frozen=True)
class Passages:
    """Stretches of a document's tokens, as long as a context, that have a class."""

    keys: NDArray[np.int64]
    """[P] rising; see `keys_of`."""
    length: int
    """Tokens of a passage."""
    labels: list[str | None]
    """Of documents."""

    @classmethod
    def find(cls, data: Dataset, labels: str, rows: int, features: int) -> Passages:
        """Those of the first `rows` of `data`; `features`: the numbers that are kept of each.

        Raises:
            JobError: as `labels_of`, or no row is of a document with a label.
        """
        length, classes = int(data.attributes["context"]), labels_of(labels, data)
        known = np.array([label is not None for label in classes])
        found = [np.zeros(0, dtype=np.int64)]
        for shard in data.shards():
            if shard.start < rows:
                document, keys = keys_of(data, shard.start, min(shard.stop, rows), length)
                found.append(np.unique(keys[known[document]]))
        keys = np.unique(np.concatenate(found))
        if not len(keys):
            raise JobError(f"labels={labels!r}: none of the {rows:,} rows is of a document with a label")
        most = max(1, min(PASSAGES, ENTRIES // features))
        drawn = np.random.default_rng(SEED).permutation(keys)[:most]
        return cls(np.sort(drawn), length, classes)

    @property
    def documents(self) -> NDArray[np.int64]:
        """[P] the document of each."""
        return self.keys >> 32

    def of(self, data: Dataset, start: int, stop: int) -> NDArray[np.int64]:
        """[stop - start] the number of each row's passage; -1: of none."""
        _, keys = keys_of(data, start, stop, self.length)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def probe(self, pooled: Pooled, reporter: Reporter = silent) -> list[Probed]:
        """Every class told from the others. JobError where there is nothing to tell apart."""
        names = [self.labels[document] or "" for document in self.documents.tolist()]
        classes = told_apart(names)
        count = begin(reporter, f"probes {len(names):,} passages of {len(set(names)):,} classes", len(classes))
        latents, raw = pooled.means()
        try:
            return probe(latents, raw, names, self.documents, SEED, count)
        except ModelError as err:
            raise JobError(str(err)) from err


class Pooling:
    """Adds up codes and rows by passage while the data set is read."""

    def __init__(self, data: Dataset, passages: Passages, atoms: int, dim: int, device: torch.device) -> None:
        self._data, self._dim, self.passages = data, dim, passages
        self.pooled = Pooled.empty(len(passages.keys), atoms, dim, device)
        self._longest: torch.Tensor | None = None
        self.left_out = 0

    def add(self, start: int, x: torch.Tensor, codes: Codes) -> None:
        """Rows [n, D …] from number `start`, and their codes; columns after the first D are other arrays."""
        x = x[:, : self._dim]
        norms = x.double().norm(dim=1)
        if self._longest is None:
            # Rows are shuffled within their shard: the first batch is a sample.
            self._longest = SINK * norms.median()
        at = torch.from_numpy(self.passages.of(self._data, start, start + len(x))).to(x.device)
        sink = norms > self._longest
        self.left_out += int((sink & (at >= 0)).sum())
        self.pooled.add(at.where(~sink, torch.full_like(at, -1)), codes, x)

    def numbers(self, found: list[Probed]) -> dict[str, float]:
        """Means over classes, by name, and how many rows were too long."""
        mean = lambda values: float(np.mean(values))  # noqa: E731
        return {
            **{f"probe_latents_{m}": mean([p.latents[m] for p in found]) for m in SPARSITIES},
            **{f"probe_raw_{m}": mean([p.raw[m] for p in found]) for m in SPARSITIES},
            "probe_raw_all": mean([p.full for p in found]),
            "probe_majority": mean([p.majority for p in found]),
            "probe_sinks": float(self.left_out),
        }


def keys_of(data: Dataset, start: int, stop: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents of rows, and numbers of their passages: those of a document follow each other."""
    document = data.read(start, stop, "document").astype(np.int64)
    return document, (document << 32) + data.read(start, stop, "position").astype(np.int64) // length
