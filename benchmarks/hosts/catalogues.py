"""What users of a catalogue of items chose, one after the other: MovieLens-100K, and a synthetic catalogue.

Items are numbered from 0. Tags [I, T] float32 are 1 where an item has the tag.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import torch
from sparsefleet.models.autoencoders.concepts import with_pairs
from sparsefleet.storage.inputs import find_input
from torch import Tensor

TOGETHER = 10
"""Films that a pair of tags needs."""


@dataclass(frozen=True)
class Catalogue:
    """Items with tags, and what every user chose."""

    sequences: list[Tensor]
    """[length] int64 for every user, in the order of time."""
    tags: Tensor
    names: list[str]
    """Of the tags."""
    repeats: bool
    """Whether users choose items again; if not, what they have chosen is no longer recommended."""

    @property
    def items(self) -> int:
        """I."""
        return len(self.tags)


def movielens() -> Catalogue:
    """943 users, 1,682 films, 100,000 ratings (Harper & Konstan 2015), whatever the rating.

    Tags are 19 genres, when a film came out (by decade; by year from 1990 on, as these are four films of five), and
    pairs of these that 10 films or more have together.

    Raises:
        StorageError: the package that holds the files has not been brought in; the message says how to.
    """
    folder = find_input("movielens100k")
    films = _table(folder / "ml-100k.item")
    number = {film["item_id"]: i for i, film in enumerate(films)}
    known = [{*film["class"].split(), *_released(film["release_year"])} for film in films]
    names = sorted(set[str]().union(*known))
    single = torch.tensor([[float(name in of) for name in names] for of in known])
    tags, parts = with_pairs(single, least=TOGETHER)
    names = [" & ".join(names[t] for t in part) for part in parts]
    chosen: dict[str, list[tuple[float, int]]] = {}
    for row in _table(folder / "ml-100k.inter"):
        chosen.setdefault(row["user_id"], []).append((float(row["timestamp"]), number[row["item_id"]]))
    # Ratings given in the same second have no order: the item's number decides.
    sequences = [torch.tensor([item for _, item in sorted(chosen[user])]) for user in sorted(chosen, key=int)]
    return Catalogue(sequences, tags, names, repeats=False)


def synthetic(seed: int, *, users: int = 3000, items: int = 480, genres: int = 12, length: int = 20) -> Catalogue:
    """Users with two preferred genres each, who stay in a genre with probability 0.75, change to the other one with
    0.20 and choose any item with 0.05; an item has one genre, and within it a popularity of 1 / rank."""
    generator = torch.Generator().manual_seed(seed)
    genre = torch.arange(items) % genres
    popularity = 1 / (torch.arange(items) // genres + 1.0)
    weights = torch.stack([popularity * (genre == g) for g in range(genres)] + [torch.full((items,), 1.0)])
    preferred = torch.rand(users, genres, generator=generator).topk(2, dim=1).indices
    at = torch.zeros(users, dtype=torch.int64)
    found = torch.empty(users, length, dtype=torch.int64)
    everyone = torch.arange(users)
    for step in range(length):
        draw = torch.rand(users, generator=generator)
        at = torch.where((draw > 0.75) & (draw <= 0.95), 1 - at, at)
        which = torch.where(draw > 0.95, genres, preferred[everyone, at])
        found[:, step] = torch.multinomial(weights[which], 1, generator=generator)[:, 0]
    tags = torch.nn.functional.one_hot(genre, genres).float()
    return Catalogue(list(found), tags, [f"genre {g}" for g in range(genres)], repeats=True)


def _released(year: str) -> list[str]:
    """A tag for the year, none where the table does not know it."""
    if not year.isdecimal():
        return []
    return [year if int(year) >= 1990 else f"{year[:3]}0s"]


def _table(path: object) -> list[dict[str, str]]:
    """Rows of a tab-separated file by column, the columns' types left out."""
    with open(str(path), encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = [name.partition(":")[0] for name in next(rows)]
        return [dict(zip(header, row, strict=True)) for row in rows]
