"""Residual streams harvested from networks, and what a network loses by a change of one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sparsefleet.storage import open_dataset
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.harvesting import harvest, read
from sparsefleet.workers.activations.job import HarvestJob
from sparsefleet.workers.activations.splicing import Change, losses
from sparsefleet.workers.activations.taps import Tap, record
from sparsefleet.workers.activations.windows import Windows
from sparsefleet.workers.communicator import Solo
from torch import Tensor

CPU = torch.device("cpu")
Texts = dict[str, list[str]]
"""By part: `rows` are harvested, `held` are judged by."""


@dataclass(frozen=True)
class Site:
    """The residual stream after one layer of a network."""

    model: str
    """A folder or an input, as for `sparsefleet harvest`."""
    layer: int
    context: int
    """Tokens."""
    at_once: int
    """Contexts computed together."""

    def job(self, folder: Path, part: str, *, rows: int | None, gradients: bool) -> HarvestJob:
        """The job that writes one part of the texts in `folder`."""
        return HarvestJob(
            model=self.model, texts=[str(folder / f"{part}.jsonl")], out=str(folder / f"{part}.zarr"),
            layers=[self.layer], gradients=gradients, context=self.context, tokens=rows, dtype="float32",
            batch=self.at_once, overwrite=True,
        )  # fmt: skip

    def harvest(self, folder: Path, texts: Texts, *, rows: int, gradients: bool) -> None:
        """Write the texts, and the data set `rows.zarr` of at most so many rows."""
        for part in ("rows", "held"):
            lines = [json.dumps({"text": text}) for text in texts[part]]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for _ in harvest(self.job(folder, "rows", rows=rows, gradients=gradients), Solo(), CPU):
            pass


@dataclass(frozen=True)
class Host:
    """A network, and the texts held back with what passes at the site."""

    network: Any
    tap: Tap
    windows: Windows
    x: Tensor
    """[N, D]"""
    gradients: list[Tensor]
    """Of each batch of windows, [n, D]: of the next tokens' summed cross-entropy; none where they were not asked
    for."""
    site: Site

    def rises(self, changes: dict[str, Change]) -> dict[str, float]:
        """Rise of the cross-entropy in nats by each change, and the network's own as `clean`."""
        found = losses(self.network, self.tap, self.windows, changes, CPU, batch=self.site.at_once)
        return {name: value - (0 if name == "clean" else found["clean"]) for name, value in found.items()}


def load(folder: Path, site: Site, *, gradients: bool) -> Host:
    """Held-out activations and gradients, in the order in which `losses` comes by them."""
    windows = read(site.job(folder, "held", rows=None, gradients=gradients)).windows
    network = hosts.load_network(hosts.find_model(site.model), CPU)
    tap = Tap.parse(open_dataset(str(folder / "rows.zarr")).attributes["module"])
    x: list[Tensor] = []
    found: list[Tensor] = []
    for first in range(0, len(windows.starts), site.at_once):
        inputs = windows.batch(range(first, min(first + site.at_once, len(windows.starts))))
        loss = lambda given, labels=inputs.labels: hosts.next_token_loss(given, labels)  # noqa: E731
        forward = lambda inputs=inputs: hosts.feed(network, inputs, CPU)  # noqa: E731
        passed = record(network, [tap], forward, loss if gradients else None)
        x.append(passed.activations[tap].flatten(0, 1)[inputs.rows])
        if gradients:
            found.append(passed.gradients[tap].flatten(0, 1)[inputs.rows])
    return Host(network, tap, windows, torch.cat(x), found, site)
