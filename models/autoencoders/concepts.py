"""What the latents of a recommender's autoencoder stand for, told by the tags of the items that it recommends.

A case is one representation of a user: its sparse code, and the K items that are recommended from it. A tag's share in
a case is the fraction of these items that have the tag. A latent's concept is the tag whose share is raised most in the
cases where the latent is strongest (Wang et al. 2024, "Understanding Internal Representations of Recommendation Models
with Sparse Autoencoders", with tags and counting in the place of their language model). The concept is then put to the
test: on other cases it must predict where the latent is active (confidence), and a change of the latent must change the
share of the tag among what is recommended (effects).

Shapes: n cases, K recommended items, I items, T tags, H latents, D dimensions of a representation. Shares are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError

Recommend = Callable[[Tensor, Tensor], Tensor]
"""Items [m, K] recommended from representations [m, D]; the second argument says which cases they are, [m]."""
EDITS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Concepts:
    """One concept for every latent, [H] each; -1, 0 and 0 where a latent has none."""

    tag: Tensor
    """int64."""
    lift: Tensor
    """The tag's share in the latent's strongest cases, divided by its share in all cases."""
    threshold: Tensor
    """Half way between these two shares: the concept predicts activity in cases where the share reaches this."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """How well concepts predict activity, [H] each, float64; 0 where there is no concept or nothing was predicted."""

    precision: Tensor
    """Of the cases that are predicted, those in which the latent is active."""
    balanced_precision: Tensor
    """The same if active and inactive cases were equally many: the latent's frequency has no influence."""
    recall: Tensor
    """Of the cases in which it is active, those that are predicted."""
    fired: Tensor
    """Cases in which it is active."""

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)


def tag_shares(items: Tensor, tags: Tensor) -> Tensor:
    """[n, T] of the items [n, K] of each case the fraction that has each tag; `tags` [I, T] is 1 where an item has it.

    Raises:
        ModelError: an item that `tags` does not know.
    """
    if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < len(tags):
        raise ModelError(f"items are numbered {int(items.min())} to {int(items.max())}, but {len(tags)} have tags")
    total = torch.zeros(items.shape[0], tags.shape[1], dtype=torch.float64, device=items.device)
    known = tags.double()
    for place in items.T:
        total += known[place]
    return total / max(items.shape[1], 1)


def with_pairs(tags: Tensor, *, least: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Tags [I, T + P] and, for each, the tags that it stands for: the T themselves, and the P pairs that at least
    `least` items have together. A pair that one of its tags implies is left out: it would be that tag again.

    Raises:
        ModelError: `least` below 1.
    """
    if least < 1:
        raise ModelError(f"least={least}: a pair that no item has is no concept")
    has = tags > 0
    together = has.T.double() @ has.double()
    alone = together.diagonal()
    first, second = torch.triu_indices(*together.shape, offset=1, device=tags.device)
    both = together[first, second]
    good = (both >= least) & (both < alone[first]) & (both < alone[second])
    first, second = first[good], second[good]
    pairs = (has[:, first] & has[:, second]).to(tags.dtype)
    names: list[tuple[int, ...]] = [(t,) for t in range(tags.shape[1])]
    return torch.cat([tags, pairs], dim=1), names + list(zip(first.tolist(), second.tolist()))


def find_concepts(codes: Codes, shares: Tensor, atoms: int, *, cases: int = 20, least: float = 0.3) -> Concepts:
    """The tag of largest lift of every latent.

    Args:
        codes: of n cases; active are entries above 0.
        shares: [n, T] as `tag_shares` gives them for the same cases.
        atoms: H.
        cases: the strongest ones that count, fewer where a latent has fewer.
        least: share in these cases that a tag needs, so that a rare tag does not win by chance.

    Raises:
        ModelError: `cases` below 1, or codes and shares of different cases.
    """
    if cases < 1:
        raise ModelError(f"cases={cases}: at least one is needed to see what a latent stands for")
    row, atom, value = _active(codes, shares)
    # Latent by latent, the strongest first; equal ones in the order of cases.
    order = value.argsort(descending=True, stable=True)
    order = order[atom[order].argsort(stable=True)]
    fired = torch.bincount(atom, minlength=atoms)
    first = fired.cumsum(0) - fired
    place = torch.arange(len(order), device=order.device) - first[atom[order]]
    taken = order[place < cases]
    total = torch.zeros(atoms, shares.shape[1], dtype=torch.float64, device=shares.device)
    total.index_add_(0, atom[taken], shares[row[taken]])
    strongest = total / fired.clamp(1, cases)[:, None]
    base = shares.mean(0) if len(shares) else shares.new_zeros(shares.shape[1])
    lift = _ratio(strongest, base.expand_as(strongest)).masked_fill_(strongest < least, 0)
    best, tag = lift.max(1)
    found = best > 0
    threshold = (strongest.gather(1, tag[:, None])[:, 0] + base[tag]) / 2
    return Concepts(tag.masked_fill(~found, -1), best, threshold * found)


def confidence(codes: Codes, shares: Tensor, concepts: Concepts) -> Confidence:
    """Whether the concepts predict where latents are active, in cases that they were not found in.

    Raises:
        ModelError: codes and shares of different cases.
    """
    row, atom, _ = _active(codes, shares)
    atoms, cases = len(concepts.tag), float(len(shares))
    has = concepts.tag >= 0
    tag = concepts.tag.clamp(min=0)
    count = lambda of: torch.bincount(of, minlength=atoms).double()  # noqa: E731
    right = shares[row, tag[atom]] >= concepts.threshold[atom]
    fired, hits = count(atom), count(atom[right]) * has
    predicted = torch.zeros_like(fired)
    for t in tag[has].unique().tolist():
        mine = has & (tag == t)
        ordered = shares[:, t].sort().values
        predicted[mine] = cases - torch.searchsorted(ordered, concepts.threshold[mine]).double()
    recall, false = _ratio(hits, fired), _ratio(predicted - hits, cases - fired)
    return Confidence(_ratio(hits, predicted), _ratio(recall, recall + false), recall, fired)


def scaled_latents(rows: Tensor, codes: Codes, dictionary: Tensor, slots: Tensor, factor: float) -> Tensor:
    """Rows [m, D] with one latent of each made `factor` times as strong (0: removed); all else, the part that the
    autoencoder does not explain included, stays: x + (factor - 1) z_j d_j.

    Args:
        rows: x.
        codes: of these rows, in their units.
        dictionary: [D, H] atoms as columns.
        slots: [m] which entry of each code is changed; entries of value 0 change nothing.
        factor: what the latent is multiplied by.
    """
    value = codes.values.gather(1, slots[:, None])
    atom = codes.indices.gather(1, slots[:, None])[:, 0].clamp(min=0).long()
    return rows + (factor - 1) * value * dictionary.T[atom]


def effects(
    rows: Tensor,
    codes: Codes,
    dictionary: Tensor,
    concepts: Concepts,
    tags: Tensor,
    recommend: Recommend,
    *,
    factor: float,
    change: Literal["own", "other"] = "own",
) -> Tensor:
    """[H] mean change of the share of each latent's concept among what is recommended, over the cases where the latent
    is active, when it is made `factor` times as strong; NaN where there is no such case or no concept.

    `change="other"` is the control: not the latent itself is changed, but the strongest of the other active ones of
    the case (cases without another one are left out).

    Raises:
        ModelError: codes and rows of different cases.
    """
    if len(codes.values) != len(rows):
        raise ModelError(f"codes of {len(codes.values)} cases do not belong to {len(rows)} rows")
    atoms = len(concepts.tag)
    total, count = (torch.zeros(atoms, dtype=torch.float64, device=rows.device) for _ in range(2))
    for row, slot in zip(*_slots(codes, concepts)):
        atom = codes.indices[row, slot].long()
        changed = slot
        if change == "other":
            rest = codes.values[row].scatter(1, slot[:, None], 0)
            best = rest.max(1)
            row, slot, atom, changed = (t[best.values > 0] for t in (row, slot, atom, best.indices))
        of = Codes(codes.indices[row], codes.values[row])
        after = recommend(scaled_latents(rows[row], of, dictionary, changed, factor), row)
        tag = concepts.tag[atom][:, None]
        moved = tag_shares(after, tags) - tag_shares(recommend(rows[row], row), tags)
        total.index_add_(0, atom, moved.gather(1, tag)[:, 0])
        count.index_add_(0, atom, torch.ones_like(atom, dtype=torch.float64))
    return (total / count).masked_fill_(count == 0, float("nan"))


def ranking(
    scores: Tensor, truth: Tensor, cuts: tuple[int, ...] = (5, 10, 20, 50), *, seen: Tensor | None = None
) -> dict[str, float]:
    """Hit rate and normalised discounted cumulative gain of one true item a case, among all items.

    Args:
        scores: [n, I], larger is better; among equal ones the true item comes last.
        truth: [n] int64.
        cuts: lengths of the lists that count.
        seen: [n, I] bool, items that are not candidates; a true item always is one.

    Raises:
        ModelError: no case, or a true item whose score is NaN.
    """
    if not len(truth):
        raise ModelError("no case to rank items for")
    true = scores.gather(1, truth[:, None])
    if bool(true.isnan().any()):
        raise ModelError("the score of a true item is NaN: the recommender itself fails there")
    better = scores >= true
    if seen is not None:
        better &= ~seen
    place = better.scatter(1, truth[:, None], value=False).sum(1).double()
    gain = 1 / (place + 2).log2()
    found = {f"hr@{cut}": float((place < cut).double().mean()) for cut in cuts}
    return found | {f"ndcg@{cut}": float((gain * (place < cut)).mean()) for cut in cuts}


def _active(codes: Codes, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(case, latent, value) of every entry above 0."""
    if len(codes.values) != len(shares):
        raise ModelError(f"codes of {len(codes.values)} cases do not belong to shares of {len(shares)}")
    row, slot = (codes.values > 0).nonzero(as_tuple=True)
    return row, codes.indices[row, slot].long(), codes.values[row, slot]


def _slots(codes: Codes, concepts: Concepts) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(case, slot) of every entry above 0 whose latent has a concept, in pieces."""
    has = concepts.tag[codes.indices.clamp(min=0).long()] >= 0
    row, slot = ((codes.values > 0) & has).nonzero(as_tuple=True)
    return row.split(EDITS_AT_ONCE), slot.split(EDITS_AT_ONCE)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Their quotient, 0 where nothing is below."""
    return torch.where(below > 0, above / below.clamp(min=1e-300), 0.0)
