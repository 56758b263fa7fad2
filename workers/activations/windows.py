"""Texts as a network reads them: documents of tokens, cut into windows of the same length.

Shapes: T tokens of all documents, W windows, B windows of one batch, L tokens of the longest of them, N rows. A row is
a token that has activations; windows overlap by the tokens that are left out at their beginnings, so that every token
of a document but the first few is a row exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""Label of what has no next token; torch's default for entries that a loss leaves out."""


@dataclass(frozen=True)
class Context:
    """How documents are cut."""

    length: int
    """Tokens of a window, those that the tokenizer adds included."""
    skip: int
    """Tokens at the beginning of every window that become no rows."""
    prefix: tuple[int, ...] = ()
    """Tokens before every window ([CLS], <s>, …)."""
    suffix: tuple[int, ...] = ()
    """Tokens after every window ([SEP], …)."""

    @property
    def body(self) -> int:
        """The document's own tokens in a window."""
        return self.length - len(self.prefix) - len(self.suffix)

    @property
    def stride(self) -> int:
        """Tokens from one window to the next: the rows of a full one."""
        return self.body - self.skip


@dataclass(frozen=True)
class Inputs:
    """A batch for a network."""

    ids: Tensor
    """[B, L] int64, padded at the end."""
    mask: Tensor | None
    """[B, L] int64, 1 where there is a token; None where all windows are equally long."""
    labels: Tensor
    """[B, L] int64, the next token of the document, or IGNORED."""
    rows: Tensor
    """[n] int64, where in the flattened [B L] the rows stand, in order."""


@dataclass(frozen=True)
class Windows:
    """All windows of all documents, in order."""

    context: Context
    tokens: NDArray[np.int32]
    """[T], the documents one after the other."""
    begins: NDArray[np.int64]
    """[documents + 1], where each begins, and T."""
    starts: NDArray[np.int64]
    """[W], a window's first token."""
    stops: NDArray[np.int64]
    """[W], one beyond its last."""
    row_begins: NDArray[np.int64]
    """[W + 1], its first row, and N."""

    @property
    def rows(self) -> int:
        """N."""
        return int(self.row_begins[-1])

    def among(self, start: int, stop: int) -> range:
        """The windows that hold rows start … stop-1."""
        first = int(np.searchsorted(self.row_begins, start, side="right")) - 1
        return range(first, int(np.searchsorted(self.row_begins, stop, side="left")))

    def places(self, start: int, stop: int) -> NDArray[np.int64]:
        """[stop - start] Where among all tokens the rows stand."""
        found = [np.arange(self.starts[w] + self.context.skip, self.stops[w]) for w in self.among(start, stop)]
        first = int(self.row_begins[self.among(start, stop)[0]])
        return np.concatenate(found)[start - first : stop - first]

    def documents(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The document of each place, and the position in it."""
        found = np.searchsorted(self.begins, places, side="right") - 1
        return found.astype(np.int32), (places - self.begins[found]).astype(np.int32)

    def batch(self, windows: range) -> Inputs:
        """What a network needs for these windows."""
        context = self.context
        before, after = len(context.prefix), len(context.suffix)
        lengths = [int(self.stops[w] - self.starts[w]) + before + after for w in windows]
        longest = max(lengths)
        ids = np.zeros((len(windows), longest), dtype=np.int64)
        labels = np.full((len(windows), longest), IGNORED, dtype=np.int64)
        mask = np.zeros((len(windows), longest), dtype=np.int64)
        rows: list[NDArray[np.int64]] = []
        for i, w in enumerate(windows):
            start, stop = int(self.starts[w]), int(self.stops[w])
            body = self.tokens[start:stop]
            ids[i, : lengths[i]] = [*context.prefix, *body.tolist(), *context.suffix]
            mask[i, : lengths[i]] = 1
            end = int(self.begins[np.searchsorted(self.begins, start, side="right")])
            following = self.tokens[start + 1 : min(stop + 1, end)]
            labels[i, before : before + len(following)] = following
            rows.append(i * longest + np.arange(before + context.skip, before + len(body)))
        whole = None if min(lengths) == longest else torch.from_numpy(mask)
        return Inputs(torch.from_numpy(ids), whole, torch.from_numpy(labels), torch.from_numpy(np.concatenate(rows)))


def cut(documents: Iterable[NDArray[np.int32]], context: Context, rows: int | None = None) -> Windows:
    """Windows of documents of tokens. With `rows` no more documents are taken than that many rows need."""
    taken: list[NDArray[np.int32]] = []
    starts: list[NDArray[np.int64]] = []
    stops: list[NDArray[np.int64]] = []
    begins, found = [0], 0
    for tokens in documents:
        first, end = begins[-1], begins[-1] + len(tokens)
        begin = np.arange(first, end - context.skip, context.stride, dtype=np.int64)
        if rows is not None:
            begin = begin[: -(-(rows - found) // context.stride)]
        stop = np.minimum(begin + context.body, end)
        taken.append(tokens)
        starts.append(begin)
        stops.append(stop)
        begins.append(end)
        found += int((stop - begin - context.skip).sum())
        if rows is not None and found >= rows:
            break
    empty = np.zeros(0, dtype=np.int64)
    at, to = np.concatenate([empty, *starts]), np.concatenate([empty, *stops])
    counts = np.concatenate([[0], np.cumsum(to - at - context.skip)]).astype(np.int64)
    if rows is not None:
        counts = np.minimum(counts, rows)
    joined = np.concatenate([np.zeros(0, dtype=np.int32), *taken])
    return Windows(context, joined, np.array(begins, dtype=np.int64), at, to, counts)
