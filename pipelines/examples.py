"""The rows on which each latent is most active, and the tokens around them.

Shapes: H latents, m examples of each, n rows of a batch, k entries of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import Dataset

Encode = Callable[[NDArray[np.int64]], tuple[NDArray[Any], NDArray[Any]]]
REACH = 12
"""Tokens that are shown before and after."""


@dataclass(frozen=True)
class Token:
    """A token of a context, and how active the latent is there."""

    token: int
    value: float
    centre: bool


@dataclass(frozen=True)
class Example:
    """A row on which a latent is active; its context is empty where rows are no tokens."""

    row: int
    value: float
    document: int
    context: tuple[Token, ...] = ()


class Strongest:
    """Of every latent the m rows with the entries of largest magnitude; of equal ones the earlier row."""

    def __init__(self, latents: int, examples: int) -> None:
        self._latents, self._examples = latents, examples
        self.atoms = np.zeros(0, dtype=np.int64)
        self.rows = np.zeros(0, dtype=np.int64)
        self.values = np.zeros(0)

    def add(self, first: int, indices: NDArray[Any], values: NDArray[Any]) -> None:
        """Codes [n, k] of the rows from number `first`."""
        at, entry = np.nonzero((indices >= 0) & (values != 0))
        atoms = np.concatenate([self.atoms, indices[at, entry].astype(np.int64)])
        rows = np.concatenate([self.rows, first + at])
        found = np.concatenate([self.values, values[at, entry].astype(np.float64)])
        order = np.lexsort((rows, -np.abs(found), atoms))
        atoms, rows, found = atoms[order], rows[order], found[order]
        # An entry's rank among those of its latent.
        begins = np.searchsorted(atoms, np.arange(self._latents))
        keep = np.arange(len(atoms)) - begins[atoms] < self._examples
        self.atoms, self.rows, self.values = atoms[keep], rows[keep], found[keep]

    def of(self, atom: int) -> list[tuple[int, float]]:
        """Rows and values, the strongest first."""
        a, b = np.searchsorted(self.atoms, [atom, atom + 1])
        return list(zip(self.rows[a:b].tolist(), self.values[a:b].tolist()))


def with_contexts(data: Dataset, strongest: Strongest, atoms: list[int], encode: Encode) -> dict[int, list[Example]]:
    """Examples of `atoms`, with the tokens around them where the rows of `data` are tokens of texts.

    Args:
        data: the data set whose rows `strongest` names.
        strongest: their numbers.
        atoms: which latents.
        encode: gives the codes (indices and values, [n, k]) of rows by number, which rise.
    """
    if not {"token", "document", "position"} <= set(data.arrays):
        return {a: [Example(row, value, -1) for row, value in strongest.of(a)] for a in atoms}
    texts = Texts(data)
    near = {row: texts.around(row) for atom in atoms for row, _ in strongest.of(atom)}
    rows = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *near.values()]))
    indices, values = encode(rows)
    found: dict[int, list[Example]] = {}
    for atom in atoms:
        active = np.where(indices == atom, values, 0).sum(1)
        found[atom] = []
        for row, value in strongest.of(atom):
            at = np.searchsorted(rows, near[row])
            tokens = (Token(texts.token(r), float(active[i]), r == row) for r, i in zip(near[row].tolist(), at))
            found[atom].append(Example(row, value, texts.document(row), tuple(tokens)))
    return found


class Texts:
    """Where rows stand in the texts, read shard by shard when first asked for."""

    def __init__(self, data: Dataset) -> None:
        self._data, self._known = data, dict[int, _Places]()

    def _of(self, row: int) -> _Places:
        index = row // self._data.shard_rows
        if index not in self._known:
            self._known[index] = _Places(self._data, index)
        return self._known[index]

    def around(self, row: int) -> NDArray[np.int64]:
        return self._of(row).around(row)

    def until(self, row: int, length: int) -> NDArray[np.int64]:
        """At most `length` tokens of its document that stand in the row's shard, without gaps, the row's own last."""
        return self._of(row).until(row, length)

    def token(self, row: int) -> int:
        return self._of(row).token(row)

    def document(self, row: int) -> int:
        return self._of(row).document(row)


class _Places:
    """Where the rows of one shard stand in the texts; in the shard they are shuffled."""

    def __init__(self, data: Dataset, index: int) -> None:
        shard = data.shards()[index]
        self._start = shard.start
        read = lambda name: data.read(shard.start, shard.stop, name).astype(np.int64)  # noqa: E731
        self._tokens, self._documents, self._positions = read("token"), read("document"), read("position")
        self._order = np.lexsort((self._positions, self._documents))
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(self._order))

    def around(self, row: int) -> NDArray[np.int64]:
        """Rows of the shard that stand around `row` in its document, in the order of the text."""
        at = int(self._rank[row - self._start])
        near = self._order[max(0, at - REACH) : at + REACH + 1]
        here = row - self._start
        away = self._positions[near] - self._positions[here]
        same = (self._documents[near] == self._documents[here]) & (np.abs(away) <= REACH)
        return near[same] + self._start

    def until(self, row: int, length: int) -> NDArray[np.int64]:
        at = int(self._rank[row - self._start])
        near = self._order[max(0, at - length + 1) : at + 1]
        away = np.arange(len(near))[::-1]
        same = self._documents[near] == self._documents[near[-1]]
        same &= self._positions[near] == self._positions[near[-1]] - away
        return self._tokens[near[same]]

    def token(self, row: int) -> int:
        return int(self._tokens[row - self._start])

    def document(self, row: int) -> int:
        return int(self._documents[row - self._start])
