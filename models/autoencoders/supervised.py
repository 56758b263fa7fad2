"""Dictionaries made from attributes that are known, and what a dictionary is worth beside them on three axes.

A prompt has attributes (who is given something, who gives, who is named first); each has one of several values. A
supervised dictionary has a vector for every value of every attribute, and reconstructs an activation as the bias plus
one vector of each attribute (Makelov, Lange & Nanda 2024, "Towards principled evaluations of sparse autoencoders for
interpretability and control", sections 3 and 4). It is the skyline for a dictionary that knows no attributes, in
approximation (`sufficiency`, `necessity`), control (`exchange`, `guided_exchange`, `removed_weight`) and
interpretability (`f1_scores`).

Shapes: n rows, D dimensions, A attributes, V values of one of them, H latents, m exchanges. Results are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from ..kernels import decode, inner_products

TINY = 1e-300
"""In the place of a square that is 0."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """One vector for every value of every attribute."""

    bias: Tensor
    """[D] what does not depend on attributes."""
    vectors: tuple[Tensor, ...]
    """[V, D] of each attribute; zero for values that no row had."""

    def reconstruct(self, values: Tensor) -> Tensor:
        """[n, D] for rows with attributes `values` [n, A] int64: the bias and one vector of each attribute."""
        rows = self.bias.expand(len(values), -1).clone()
        for vectors, column in zip(self.vectors, values.T, strict=True):
            rows += vectors[column]
        return rows

    def edit(self, x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Rows x [n, D] with the vectors of values `new` in the place of those of `old` [n, A]; what no attribute
        explains stays."""
        return x + self.reconstruct(new) - self.reconstruct(old)

    def removed_weight(self, old: Tensor, new: Tensor) -> Tensor:
        """[n] share of the reconstruction of rows with attributes `old` [n, A] that is due to the vectors which an edit
        to `new` takes out; see `latent_weights`."""
        whole = self.reconstruct(old) - self.bias
        pairs = zip(self.vectors, old.T, new.T, strict=True)
        taken = sum((vectors[was] * (was != now)[:, None] for vectors, was, now in pairs), torch.zeros_like(whole))
        return (taken * whole).sum(1) / whole.square().sum(1).clamp(min=TINY)


def coupled(values: Tensor, sizes: Sequence[int], by: int) -> tuple[Tensor, tuple[int, ...]]:
    """Attributes that are pairs: each of the others together with attribute `by` (a vector for a name in a place).

    Args:
        values: [n, A] int64.
        sizes: V of each attribute.
        by: the attribute that goes into all pairs.

    Returns:
        The pairs' values [n, A - 1], and how many each has; what has them needs no attribute `by` of its own.
    """
    others = [a for a in range(len(sizes)) if a != by]
    pairs = [values[:, a] * sizes[by] + values[:, by] for a in others]
    return torch.stack(pairs, 1), tuple(sizes[a] * sizes[by] for a in others)


def mean_codes(x: Tensor, values: Tensor, sizes: Sequence[int]) -> Supervised:
    """Vectors E[x | a = v] - E[x], bias E[x]: right where attributes are independent of one another.

    Args:
        x: [n, D].
        values: [n, A] int64, from 0 on.
        sizes: V of each attribute.

    Raises:
        ModelError: no rows, values of other rows, or a value that an attribute does not have.
    """
    x = _checked(x, values, sizes)
    bias = x.mean(0)
    vectors: list[Tensor] = []
    for column, size in zip(values.T, sizes, strict=True):
        total = x.new_zeros(size, x.shape[1]).index_add_(0, column, x - bias)
        vectors.append(total / torch.bincount(column, minlength=size).clamp(min=1)[:, None])
    return Supervised(bias, tuple(vectors))


def least_squares_codes(x: Tensor, values: Tensor, sizes: Sequence[int]) -> Supervised:
    """Vectors and bias of least squared error, also where attributes depend on one another.

    One-hot columns of all attributes and the constant are linearly dependent: the solution of least norm is taken, then
    the vectors of an attribute are centred over the values that occur, and their mean goes into the bias.

    Args and raises as `mean_codes`.
    """
    x = _checked(x, values, sizes)
    columns = torch.cat([x.new_ones(len(x), 1), *(_one_hot(c, v) for c, v in zip(values.T, sizes, strict=True))], 1)
    # The Gram matrix holds counts, so that squaring the condition number does no harm.
    solved = torch.linalg.pinv(columns.T @ columns, rtol=1e-12, hermitian=True) @ (columns.T @ x)
    bias, vectors = solved[0], list[Tensor]()
    for column, part in zip(values.T, solved[1:].split(list(sizes)), strict=True):
        seen = torch.bincount(column, minlength=len(part)) > 0
        mean = part[seen].mean(0)
        vectors.append((part - mean) * seen[:, None])
        bias = bias + mean
    return Supervised(bias, tuple(vectors))


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Which latents were exchanged, and what that moved."""

    latents: Tensor
    """[m, n] int64 in their order; -1 where none was."""
    moved: Tensor
    """[m + 1, n, D] what the rows moved by after 0, 1, … m exchanges."""


def exchange(clean: Codes, other: Codes, dictionary: Tensor, shift: Tensor, most: int) -> Exchanges:
    """Exchanges up to m latents of a row for the values they have in its counterpart.

    To exchange latent j moves a row by (z'_j - z_j) d_j. Every round takes the latent that was not yet taken and leaves
    the least of |shift - moved|²; a row where none lowers it stays as it is.

    Args:
        clean: codes z of the rows.
        other: codes z' of their counterparts.
        dictionary: [D, H] atoms as columns.
        shift: [n, D] counterpart minus row.
        most: m.

    Raises:
        ModelError: codes and shifts of different numbers of rows, or m below 0.
    """
    if not len(clean.values) == len(other.values) == len(shift):
        raise ModelError(f"codes of {len(clean.values)} and {len(other.values)} rows for {len(shift)} shifts")
    if most < 0:
        raise ModelError(f"most={most} exchanges: choose 0 or more")
    atoms, rows = dictionary.double(), torch.arange(len(shift), device=shift.device)
    delta = (other.dense(atoms.shape[1]) - clean.dense(atoms.shape[1])).double()
    power, rest = atoms.square().sum(0), shift.double()
    taken, moved = list[Tensor](), [torch.zeros_like(rest)]
    for _ in range(most):
        # |rest - δ d|² = |rest|² - 2 δ <rest, d> + δ² |d|²: no [n, H, D] is needed.
        gain, best = (2 * delta * (rest @ atoms) - delta.square() * power).max(1)
        step = (delta[rows, best] * (gain > 0))[:, None] * atoms.T[best]
        moved.append(moved[-1] + step)
        rest = rest - step
        taken.append(torch.where(gain > 0, best, -1))
        # A latent that was exchanged moves nothing any more.
        delta[rows, best] *= gain <= 0
    return Exchanges(torch.stack(taken) if taken else rows.new_zeros(0, len(rows)), torch.stack(moved))


@dataclass(frozen=True, slots=True)
class Detectors:
    """What each latent tells of the values of one attribute, by rows that are not those to be edited."""

    scores: Tensor
    """[V, H] its F1 as a detector of each value."""
    levels: Tensor
    """[V, H] its mean where it is active and the attribute has the value; 0 where that never happened."""


def detectors(codes: Codes, values: Tensor, size: int, atoms: int) -> Detectors:
    """Scores and levels of all latents.

    Args:
        codes: z of n rows.
        values: [n] int64 of the attribute.
        size: V.
        atoms: H.

    Raises:
        ModelError: codes and values of different numbers of rows.
    """
    z = codes.dense(atoms).double()
    active = z > 0
    hits, _, _ = _counts(active, values, size)
    total = _one_hot(values, size).T @ (z * active)
    return Detectors(f1_scores(active, values, size), total / hits.clamp(min=1))


def guided_exchange(
    codes: Codes, dictionary: Tensor, known: Detectors, old: Tensor, new: Tensor, most: int
) -> Exchanges:
    """Takes out the m active latents of a row that tell its old value best, and puts in the m latents that tell the new
    value best, at their usual level there: an edit that knows the attribute, not the activation to be reached.

    Latents are ranked by F1, those of 0 are left alone. A latent that is both taken out and put in has the new level
    in the end. `Exchanges.latents` are those taken out.

    Args:
        codes: z of the rows; active where above 0.
        dictionary: [D, H] atoms as columns.
        known: of the attribute that is edited.
        old: [n] int64 its values.
        new: [n] int64 those it is to have.
        most: m.

    Raises:
        ModelError: codes and values of different numbers of rows, or m below 0.
    """
    if not len(codes.values) == len(old) == len(new):
        raise ModelError(f"codes of {len(codes.values)} rows for {len(old)} old and {len(new)} new values")
    if most < 0:
        raise ModelError(f"most={most} exchanges: choose 0 or more")
    atoms, before = dictionary.double().T.contiguous(), codes.dense(dictionary.shape[1]).double()
    indices = codes.indices.clamp(min=0).long()
    # Entries that are not active get no score, so that they are never taken out.
    score = known.scores[old[:, None], indices] * ((codes.values > 0) & (codes.indices >= 0))
    out_score, out_at = score.sort(dim=1, descending=True, stable=True)
    out = torch.where(out_score > 0, indices.gather(1, out_at), -1)[:, :most]
    in_score, inside = (part[:, :most] for part in known.scores.sort(dim=1, descending=True, stable=True))
    moved = [torch.zeros(len(old), len(dictionary), dtype=torch.float64, device=dictionary.device)]
    for m in range(1, most + 1):
        gone, come, told = out[:, :m], inside[new, :m], in_score[new, :m] > 0
        after = before * (1 - _marked(before, gone.clamp(min=0), gone >= 0))
        # A latent that tells nothing keeps what it has.
        levels = torch.where(told, known.levels[new[:, None], come], after.gather(1, come))
        moved.append((after.scatter(1, come, levels) - before) @ atoms)
    taken = out.new_full((most, len(old)), -1)
    taken[: out.shape[1]] = out.T
    return Exchanges(taken, torch.stack(moved))


def latent_weights(codes: Codes, dictionary: Tensor) -> Tensor:
    """[n, k] share of each entry of the codes in what they reconstruct, z_j <d_j, r> / |r|² with r = Σ_j z_j d_j; they
    sum to 1 (to 0 where r is 0).

    An edit that takes out latents of large weight replaces the activation; only one of small weight is sparse.

    Args:
        codes: z.
        dictionary: [D, H] atoms as columns.
    """
    atoms, values = dictionary.double().T.contiguous(), codes.values.double()
    indices = codes.indices.clamp(min=0).long()
    whole = decode(indices, values, atoms)
    return values * inner_products(indices, atoms, whole) / whole.square().sum(1, keepdim=True).clamp(min=TINY)


def removed_weight(codes: Codes, dictionary: Tensor, latents: Tensor) -> Tensor:
    """[n] weight of those entries of the codes whose latents [m, n] were exchanged; args as `latent_weights`."""
    out = (codes.indices[None] == latents[:, :, None]).any(0) & (codes.indices >= 0)
    return (latent_weights(codes, dictionary) * out).sum(1)


def f1_scores(active: Tensor, values: Tensor, size: int) -> Tensor:
    """[V, H] F1 of every latent as a detector of every value of one attribute; 0 where it never fires.

    Args:
        active: [n, H] bool, where latents are active.
        values: [n] int64 of the attribute.
        size: V.
    """
    hits, fired, rows = _counts(active, values, size)
    return 2 * hits / (fired + rows[:, None]).clamp(min=1)


def union_f1(active: Tensor, values: Tensor, size: int, *, most: int = 10) -> Tensor:
    """[H] the best F1 of a latent as a detector of 1, 2, … `most` values together, the values being taken in the order
    of their own F1."""
    hits, fired, rows = _counts(active, values, size)
    order = f1_scores(active, values, size).argsort(dim=0, descending=True, stable=True)[:most]
    together, wanted = hits.gather(0, order).cumsum(0), rows[order].cumsum(0)
    return (2 * together / (fired + wanted).clamp(min=1)).amax(0)


def sufficiency(clean: Tensor, mean: Tensor, rebuilt: Tensor) -> float:
    """Share of the logit difference that reconstructions keep: 1 like the activations, 0 like their mean.

    Args:
        clean: [n] logit differences of the network as it is.
        mean: [n] with the mean activation.
        rebuilt: [n] with reconstructions.

    Raises:
        ModelError: the mean activation does not change the mean logit difference, so that there is nothing to explain.
    """
    return float(rebuilt.double().mean() - mean.double().mean()) / _damage(clean, mean)


def necessity(clean: Tensor, mean: Tensor, removed: Tensor) -> float:
    """Share of the logit difference that is lost without what the reconstructions say (x - x' + mean in the place of
    x). Args and raises as `sufficiency`, `removed` being [n] logit differences of that."""
    return float(clean.double().mean() - removed.double().mean()) / _damage(clean, mean)


def _damage(clean: Tensor, mean: Tensor) -> float:
    damage = float(clean.double().mean() - mean.double().mean())
    if damage == 0:
        raise ModelError("the mean activation gives the same mean logit difference: this site does not matter")
    return damage


def _counts(active: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a value where a latent fires [V, H], rows where it fires [H], rows with a value [V]."""
    if len(active) != len(values):
        raise ModelError(f"{len(active)} rows of codes do not belong to {len(values)} values")
    on = active.double()
    kind = _one_hot(values, size)
    return kind.T @ on, on.sum(0), kind.sum(0)


def _marked(like: Tensor, indices: Tensor, chosen: Tensor) -> Tensor:
    """Zeros as `like` [n, H], with 1 at those of the indices [n, m] that are `chosen` [n, m]."""
    return torch.zeros_like(like).scatter_reduce_(1, indices, chosen.to(like.dtype), "amax")


def _one_hot(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(values, size).double()


def _checked(x: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """x in float64, when everything fits."""
    if not len(x) or values.shape != (len(x), len(sizes)):
        raise ModelError(f"values of shape {tuple(values.shape)} for {len(x)} rows and {len(sizes)} attributes")
    for at, (column, size) in enumerate(zip(values.T, sizes, strict=True)):
        if not 0 <= int(column.min()) <= int(column.max()) < size:
            raise ModelError(
                f"attribute {at} has {size} values, but rows have {int(column.min())} to {int(column.max())}"
            )
    return x.double()
