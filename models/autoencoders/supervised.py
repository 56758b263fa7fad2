"""Dictionaries that are computed from known attributes, as the skyline for learned ones.

Where every row's attributes are known (in indirect object identification: the name of the indirect object, of the
subject, their order), the best atom for each value of each attribute can be computed: x ≈ b + Σ_a v_{a, value of a}.
Such a dictionary is compared with a learned one on three axes: how well reconstructions keep what the network does
(approximation), how well an attribute can be exchanged by editing a few latents (control), and whether latents answer
to values of attributes (interpretability). Makelov, Lange, Nanda 2024, "Towards principled evaluations of sparse
autoencoders for interpretability and control".

Shapes: n rows, D dimensions, A attributes with V_a values each, H latents, m exchanged latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True, slots=True)
class SupervisedDictionary:
    """x ≈ bias + Σ_a atoms[a][value of a]."""

    bias: Tensor
    """[D] float64, the mean of x."""
    atoms: tuple[Tensor, ...]
    """[V_a, D] float64 for each attribute; their mean, weighted by how frequent values are, is 0 for mean codes, and
    their plain mean over the values that occur for least squares."""

    def reconstruct(self, values: Tensor) -> Tensor:
        """[n, D] from the values [n, A] int64 of all attributes."""
        return self.bias + sum(
            (atoms[values[:, a]] for a, atoms in enumerate(self.atoms)), self.bias.new_zeros(len(values), 1)
        )

    def edited(self, rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Rows [n, D] whose attributes are changed from values `old` to `new` [n, A]; what is not explained stays."""
        return rows + self.reconstruct(new) - self.reconstruct(old)


def mean_codes(rows: Tensor, values: Tensor) -> SupervisedDictionary:
    """Atoms E[x | value] - E[x]; 0 for values that do not occur.

    Args:
        rows: x [n, D].
        values: [n, A] int64 from 0.

    Raises:
        ModelError: no rows, or values that do not belong to them.
    """
    x, sizes = _checked(rows, values)
    bias = x.mean(0)
    atoms: list[Tensor] = []
    for column, size in zip(values.T, sizes):
        count = torch.bincount(column, minlength=size).clamp(min=1)[:, None]
        atoms.append(x.new_zeros(size, x.shape[1]).index_add_(0, column, x - bias) / count)
    return SupervisedDictionary(bias, tuple(atoms))


def least_squares_codes(rows: Tensor, values: Tensor) -> SupervisedDictionary:
    """Atoms of least squared error.

    Of the many solutions (a constant can move between attributes) it is that of minimum norm; then each attribute's
    atoms are centred over the values that occur, and the means go to the bias.

    Raises:
        ModelError: as `mean_codes`.
    """
    x, sizes = _checked(rows, values)
    hot = torch.cat([torch.nn.functional.one_hot(c, s) for c, s in zip(values.T, sizes)], dim=1).to(x.dtype)
    design = torch.cat([hot.new_ones(len(hot), 1), hot], dim=1)
    # The normal equations' pseudo-inverse gives the same minimum-norm solution as that of the design, and is small.
    solution = torch.linalg.pinv(design.T @ design, hermitian=True) @ (design.T @ x)
    bias, atoms = solution[0], list(solution[1:].split(sizes))
    for a, (column, size) in enumerate(zip(values.T, sizes)):
        there = (torch.bincount(column, minlength=size) > 0)[:, None]
        mean = (atoms[a] * there).sum(0) / there.sum()
        bias, atoms[a] = bias + mean, (atoms[a] - mean) * there
    return SupervisedDictionary(bias, tuple(atoms))


def greedy_edit(rows: Tensor, target: Tensor, clean: Tensor, other: Tensor, atoms: Tensor, exchanges: int) -> Tensor:
    """Rows after exchanging the codes of up to m latents with those of the counterfactual rows, one at a time.

    Exchanging latent j moves a row by (other_j - clean_j) d_j. Each time that latent is taken whose exchange brings
    the row nearest to its target, and no latent twice; a row that no exchange brings nearer is ready.

    Args:
        rows: x [n, D].
        target: the counterfactual's activations [n, D].
        clean: codes of `rows` [n, H].
        other: codes of the counterfactuals [n, H].
        atoms: [D, H].
        exchanges: m.

    Returns:
        [n, D]. Memory is n H, never n H D.

    Raises:
        ModelError: shapes that do not fit, or m below 0.
    """
    if exchanges < 0 or clean.shape != other.shape or clean.shape[1] != atoms.shape[1] or rows.shape != target.shape:
        raise ModelError(
            f"exchanges={exchanges} of codes {tuple(clean.shape)} and {tuple(other.shape)} with atoms "
            f"{tuple(atoms.shape)} in rows {tuple(rows.shape)} towards {tuple(target.shape)}: shapes must fit"
        )
    change = other - clean
    power = change.square() * atoms.square().sum(0)
    missing = target - rows
    free = change != 0
    for _ in range(exchanges):
        # |r - δ d|² - |r|²
        gain = (power - 2 * change * (missing @ atoms)).masked_fill(~free, torch.inf)
        least, latent = gain.min(1)
        step = change.gather(1, latent[:, None]) * atoms.T[latent]
        missing = torch.where((least < 0)[:, None], missing - step, missing)
        free = free.scatter(1, latent[:, None], value=False)
    return target - missing


def share_kept(changed: Tensor, clean: Tensor, without: Tensor) -> Tensor:
    """Of a quantity per row [n] (the difference of two logits): how much of what is lost without any activations'
    information (`without`) is kept, (E[changed] - E[without]) / (E[clean] - E[without]). 1: all.

    With reconstructions in the place of activations this is sufficiency. Necessity is 1 less the share kept where
    activations are replaced by the mean plus what the reconstruction does not explain.
    """
    scale = (clean - without).double().mean()
    return (changed - without).double().mean() / scale


def value_scores(active: Tensor, values: Tensor, size: int) -> Tensor:
    """F1 [H, V] of each latent's activity as a predictor of each value of an attribute; 0 where it never fires.

    Args:
        active: [n, H] bool.
        values: [n] int64.
        size: V.
    """
    hot = torch.nn.functional.one_hot(values, size).double()
    hits = active.double().T @ hot
    both = active.double().sum(0)[:, None] + hot.sum(0)
    return torch.where(hits > 0, 2 * hits / both.clamp(min=1), 0.0)


def _checked(rows: Tensor, values: Tensor) -> tuple[Tensor, list[int]]:
    if rows.ndim != 2 or values.ndim != 2 or len(rows) != len(values) or not len(rows):
        raise ModelError(f"values {tuple(values.shape)} must name the attributes of rows {tuple(rows.shape)}, one each")
    if int(values.min()) < 0:
        raise ModelError(f"values are numbered from 0, not from {int(values.min())}")
    return rows.double(), [int(column.max()) + 1 for column in values.T]
