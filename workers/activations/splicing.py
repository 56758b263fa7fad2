"""What a network loses when activations are replaced by what a dictionary makes of them.

At one site, for all tokens that are rows of a harvest, the activations are replaced: by their reconstruction, by zero,
by their mean. The share of the damage of zero (or of the mean) that the reconstruction does not do is the loss
recovered; both are stated, because they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import hosts
from .taps import Tap, replacing
from .windows import IGNORED, Inputs, Windows

Change = Callable[[Tensor], Tensor]


def losses(
    network: Any, tap: Tap, windows: Windows, changes: dict[str, Change], device: torch.device, *, batch: int = 8
) -> dict[str, float]:
    """Mean cross-entropy of the next token in nats, by name of the change; `clean` is that without any.

    Args:
        network: predicts next tokens.
        tap: where rows are replaced.
        windows: what it reads.
        changes: each takes rows [n, D] and gives rows [n, D].
        device: of the network.
        batch: windows computed at once.
    """
    sums = dict.fromkeys(("clean", *changes), 0.0)
    count = 0
    for first in range(0, len(windows.starts), batch):
        inputs = windows.batch(range(first, min(first + batch, len(windows.starts))))
        count += int((inputs.labels != IGNORED).sum())
        with torch.no_grad():
            sums["clean"] += _loss(network, inputs, device)
            for name, change in changes.items():
                with replacing(network, tap, lambda x, change=change, at=inputs.rows: _changed(x, at, change)):
                    sums[name] += _loss(network, inputs, device)
    return {name: value / max(count, 1) for name, value in sums.items()}


def recovered(found: dict[str, float], *, without: str) -> float:
    """1 where the reconstruction does no harm, 0 where it does as much as `without` (zero, mean)."""
    damage = found[without] - found["clean"]
    return (found[without] - found["reconstruction"]) / damage if damage else float("nan")


def _loss(network: Any, inputs: Inputs, device: torch.device) -> float:
    return float(hosts.next_token_loss(hosts.feed(network, inputs, device), inputs.labels))


def _changed(x: Tensor, at: Tensor, change: Change) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).clone()
    at = at.to(x.device)
    flat[at] = change(flat[at]).to(flat.dtype)
    return flat.reshape(x.shape)
