"""Sparse probing: how well the few features that differ most between classes tell them apart.

Codes (or the rows themselves) are averaged over passages. Of all features the m with the largest |mean⁺ - mean⁻| over
the passages for learning are kept, and a logistic regression on them is tested on passages of other documents
(Gurnee et al. 2023, Finding Neurons in a Haystack; Karvonen et al. 2025, SAEBench). The absolute difference makes
latents with a sign count as well. Each class is told from all others; of two classes there is one task.

Shapes: n rows, k entries of a code, P passages, H latents or F features of any kind, float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base import Codes
from ..errors import ModelError

SPARSITIES = (1, 2, 5)
"""m, features that a probe may use."""
TEST_SHARE = 0.2
"""Of every class's documents."""
ITERATIONS = 1000
MISSING = "probing needs scikit-learn: pip install 'sparsefleet[activations]'"

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Probed:
    """How well one class is told from all others, on passages of documents that nothing was learned from."""

    label: str
    """The class."""
    latents: dict[int, float]
    """Accuracy with the m best latents, by m."""
    raw: dict[int, float]
    """The same with the m best dimensions of the rows themselves."""
    full: float
    """Accuracy with all dimensions of the rows."""
    majority: float
    """Accuracy of always naming the larger side."""
    best: tuple[int, ...]
    """The latents used, the best first."""
    learned: int
    """Passages to learn from."""
    tested: int
    """Passages to test on."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """Sums over the rows of each passage, on the device of the codes."""

    latents: Tensor
    """[P, H] of codes."""
    raw: Tensor
    """[P, D] of rows."""
    rows: Tensor
    """[P] how many."""

    @classmethod
    def empty(cls, passages: int, latents: int, dim: int, device: torch.device) -> Pooled:
        """Nothing yet."""
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        return cls(zeros(passages, latents), zeros(passages, dim), zeros(passages))

    def add(self, passages: Tensor, codes: Codes, x: Tensor) -> None:
        """Add rows x [n, D] with their codes; `passages` [n] int64 says where each belongs, -1: nowhere."""
        inside = passages >= 0
        at = passages[inside]
        indices, values = codes.indices[inside].clamp(min=0).long(), codes.values[inside].double()
        self.latents.index_put_((at[:, None].expand_as(indices), indices), values, accumulate=True)
        self.raw.index_add_(0, at, x[inside].double())
        self.rows.index_add_(0, at, torch.ones_like(at, dtype=torch.float64))

    def means(self) -> tuple[Floats, Floats]:
        """Mean codes [P, H] and mean rows [P, D]; 0 where a passage has no row."""
        count = self.rows.clamp(min=1)[:, None]
        return (self.latents / count).cpu().numpy(), (self.raw / count).cpu().numpy()


def probe(
    latents: Floats,
    raw: Floats,
    labels: list[str],
    documents: NDArray[np.int64],
    seed: int = 0,
    count: Callable[[int], None] = lambda _: None,
) -> list[Probed]:
    """Every class told from all others; of two classes the later in alphabetical order.

    Args:
        latents: [P, H] mean codes.
        raw: [P, D] mean rows.
        labels: the passages' classes.
        documents: [P] the documents that they are of; one document has one class.
        seed: of the choice of documents to test on.
        count: is told how many classes are done.

    Raises:
        ModelError: fewer than two classes, or a class of one document; scikit-learn is missing.
    """
    classes = np.array(labels)
    test = held_out(classes, documents, seed)
    found: list[Probed] = []
    for name in told_apart(labels):
        found.append(_probed(latents, raw, name, classes == name, test))
        count(len(found))
    return found


def told_apart(labels: Iterable[str]) -> list[str]:
    """The classes that `probe` tells from all others, in their order."""
    names = sorted(set(labels))
    return names if len(names) > 2 else names[1:]


def held_out(classes: NDArray[Any], documents: NDArray[np.int64], seed: int = 0) -> Mask:
    """[P] True for passages to test on: a fifth of every class's documents, at least one and at most all but one.

    Raises:
        ModelError: fewer than two classes, or a class of one document.
    """
    names = sorted(set(classes.tolist()))
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ModelError(f"labels: a probe tells classes apart, and of two or more there is {found} in these rows")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for name in names:
        mine = np.unique(documents[classes == name])
        if len(mine) < 2:
            raise ModelError(f"labels: class {name!r} has one document in these rows; it takes one to learn from and "
                             "another to test on")  # fmt: skip
        count = min(max(1, round(TEST_SHARE * len(mine))), len(mine) - 1)
        chosen += rng.permutation(mine)[:count].tolist()
    return np.isin(documents, chosen)


def most_different(features: Floats, positive: Mask, m: int) -> NDArray[np.int64]:
    """The m features [m] with the largest |mean⁺ - mean⁻| over passages, largest first; of equal ones the first."""
    gap = np.abs(features[positive].mean(0) - features[~positive].mean(0))
    return np.argsort(-gap, kind="stable")[:m]


def accuracy(features: Floats, positive: Mask, test: Mask) -> float:
    """Share of test passages that a logistic regression [P, m] -> positive [P] names rightly.

    Features are divided by their standard deviation over the passages for learning, so that the penalty (scikit-learn's
    default, C = 1) means the same for rarely and for often active ones.

    Raises:
        ModelError: scikit-learn is missing.
    """
    try:
        linear: Any = import_module("sklearn.linear_model")
    except ImportError as err:
        raise ModelError(MISSING) from err
    learn = features[~test]
    mean, size = learn.mean(0), learn.std(0)
    scaled = (features - mean) / np.where(size > 0, size, 1)
    fitted = linear.LogisticRegression(max_iter=ITERATIONS).fit(scaled[~test], positive[~test])
    return float(fitted.score(scaled[test], positive[test]))


def _probed(latents: Floats, raw: Floats, name: str, positive: Mask, test: Mask) -> Probed:
    def sparse(features: Floats) -> tuple[dict[int, float], tuple[int, ...]]:
        best = most_different(features[~test], positive[~test], max(SPARSITIES))
        found = {m: accuracy(features[:, best[:m]], positive, test) for m in SPARSITIES}
        return found, tuple(best.tolist())

    by_latents, best = sparse(latents)
    share = float(positive[test].mean())
    return Probed(
        name,
        by_latents,
        sparse(raw)[0],
        accuracy(raw, positive, test),
        max(share, 1 - share),
        best,
        int((~test).sum()),
        int(test.sum()),
    )
