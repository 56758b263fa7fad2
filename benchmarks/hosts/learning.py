"""Autoencoders taught in this process, batch by batch, so that two of them see the same rows in the same order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sparsefleet.models import Batch, Params, Probe, Stage
from sparsefleet.models.autoencoders.autoencoder import Autoencoder
from torch import Tensor

BATCH = 768


def learn(model: Autoencoder, data: Tensor, steps: int, seed: int) -> Params:
    """Parameters after `steps` updates with `BATCH` rows of `data` [N, D of each array side by side], from start values
    and in an order that the seed gives."""
    sample = data[:: max(1, len(data) // 8192)].double()
    width = data.shape[1] // len(model.arrays)
    widths = (width,) * len(model.arrays)
    probe = Probe(len(data), data.double().mean(0), data.double().var(0), sample, widths)
    params = model.init(probe, torch.Generator().manual_seed(seed))
    for step, rows in zip(range(steps), orders(len(data), seed)):
        stage = Stage(step=step, steps=steps, rows=len(data))
        params = model.update(params, model.statistics(params, Batch(data[rows]), stage), stage)
    return params


def orders(rows: int, seed: int) -> Iterator[Tensor]:
    """Batches of row numbers without end, every row at most once a pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator)[: rows // BATCH * BATCH].split(BATCH)


def rebuilt(model: Autoencoder, params: Params, x: Tensor) -> Tensor:
    """Reconstructions [n, D]."""
    return model.reconstruct(params, model.encode(params, Batch(x)))
