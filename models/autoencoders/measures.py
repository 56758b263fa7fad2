"""What an autoencoder is judged by, over all rows: errors, use of its latents, recovery of known directions.

Sums add over batches (and workers) in float64; ratios are formed once, from the totals, never averaged over batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Batch, Codes, Params, Stats
from ..errors import ModelError
from .autoencoder import Autoencoder


@dataclass(frozen=True, slots=True)
class Evaluation(Stats):
    """Sums over rows x [n, E] and their reconstructions x', in the units of the data; float64."""

    rows: Tensor
    total: Tensor
    """[E] sum of x."""
    power: Tensor
    """Sum of |x|^2."""
    length: Tensor
    """Sum of |x|."""
    error: Tensor
    """Sum of |x - x'|^2."""
    relative: Tensor
    """Sum of |x - x'|^2 / |x|^2 over rows other than 0."""
    output: Tensor
    """Sum of |x'|^2."""
    shared: Tensor
    """Sum of <x, x'>."""
    positive: Tensor
    """[H] rows in which a latent is above 0."""
    negative: Tensor
    """[H] rows in which it is below 0."""
    magnitude: Tensor
    """[H] sum of |code|."""


def evaluate(model: Autoencoder, params: Params, batch: Batch, codes: Codes | None = None) -> Evaluation:
    """The sums over the rows of a batch, whose columns are those of the model's `arrays`; `codes`: theirs, if known,
    with all entries."""
    codes = codes or model.codes(params, batch)
    dim = model.input_dim(params)
    out = params["W_dec"].shape[1]
    rows = batch.x[:, :dim] if model.target is None else batch.x[:, dim : dim + out]
    x, again = rows.double(), model.reconstruct(params, codes).double()
    error, power = (x - again).square().sum(1), x.square().sum(1)
    at = codes.indices.clamp(min=0).long().flatten()
    values = codes.values.double().flatten()
    count = lambda weights: torch.zeros(model.atoms, dtype=torch.float64, device=x.device).index_add_(0, at, weights)  # noqa: E731
    return Evaluation(
        rows=x.new_tensor(float(len(x))),
        total=x.sum(0),
        power=power.sum(),
        length=power.sqrt().sum(),
        error=error.sum(),
        relative=(error / power)[power > 0].sum(),
        output=again.square().sum(),
        shared=(x * again).sum(),
        positive=count((values > 0).double()),
        negative=count((values < 0).double()),
        magnitude=count(values.abs()),
    )


def summary(found: Evaluation) -> dict[str, float]:
    """The usual numbers.

    fvu: Σ |x - x'|² / Σ |x - mean|², with the mean over all rows (0 where they do not vary); explained_variance: 1 -
    fvu; normalized_mse: mean of |x - x'|² / |x|²; shrinkage: Σ <x, x'> / Σ |x|²; bias: Σ |x'|² / Σ <x, x'> (1 for an
    unbiased reconstruction); l0, l1: active latents and Σ |code| of a row; dead_fraction, dense_fraction: latents that
    never fire, and that fire in more than a tenth of the rows; bidirectional_fraction: of those that fire, with at
    least a tenth of their firings of the rarer sign.
    """
    rows = max(1.0, float(found.rows))
    variance = float(found.power) - float(found.total.square().sum()) / rows
    fvu = float(found.error) / variance if variance > 0 else 0.0
    fired = found.positive + found.negative
    rarer = torch.minimum(found.positive, found.negative)
    alive = fired > 0
    power, shared = float(found.power), float(found.shared)
    return {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "normalized_mse": float(found.relative) / rows,
        "shrinkage": shared / power if power > 0 else 0.0,
        "bias": float(found.output) / shared if shared > 0 else 0.0,
        "l0": float(fired.sum()) / rows,
        "l1": float(found.magnitude.sum()) / rows,
        "dead_fraction": float((~alive).double().mean()),
        "dense_fraction": float((fired > 0.1 * rows).double().mean()),
        "bidirectional_fraction": float((rarer >= 0.1 * fired)[alive].double().mean()) if bool(alive.any()) else 0.0,
    }


def recovery(atoms: Tensor, truth: Tensor, *, threshold: float = 0.9) -> dict[str, float]:
    """How well `atoms` [E, H] find the directions `truth` [E, G], by |cosine|: a latent and its atom may both be
    negated without changing anything.

    Every direction takes its closest atom, which may be that of another one too; `models.recovery.recover` pairs them
    one to one.

    Returns:
        recovered: share of directions with an atom above `threshold`; atoms_per_direction: how many of them on
        average; mean_max: the mean over directions of their best cosine.

    Raises:
        ModelError: the two have other dimensions.
    """
    if atoms.shape[0] != truth.shape[0]:
        raise ModelError(f"atoms have {atoms.shape[0]} dimensions, the true directions {truth.shape[0]}")
    unit = [torch.nn.functional.normalize(t.double(), dim=0) for t in (truth, atoms)]
    cosine = (unit[0].T @ unit[1]).abs()
    close = cosine > threshold
    return {
        "recovered": float(close.any(1).double().mean()),
        "atoms_per_direction": float(close.sum(1).double().mean()),
        "mean_max": float(cosine.amax(1).mean()),
    }
