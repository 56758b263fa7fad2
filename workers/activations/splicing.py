"""What a network loses when activations are replaced by what a dictionary makes of them.

At one site, for all tokens that are rows of a harvest, the activations are replaced: by their reconstruction, by zero,
by their mean. The share of the damage of zero (or of the mean) that the reconstruction does not do is the loss
recovered; both are stated, because they differ. A transcoder reads one site and replaces another one that comes later,
in the same pass.

Shapes: n rows, D dimensions of the site that is read, E of the one that is replaced (the same one, D = E, without a
transcoder).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import JobError
from . import hosts
from .taps import Tap, replacing
from .windows import IGNORED, Inputs, Windows

Change = Callable[[Tensor], Tensor]
"""Takes rows [n, D] and gives those [n, E] that the network shall go on with."""


def losses(
    network: Any,
    tap: Tap,
    windows: Windows,
    changes: dict[str, Change],
    device: torch.device,
    *,
    source: Tap | None = None,
    batch: int = 8,
    count: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Mean cross-entropy of the next token in nats, by name of the change; `clean` is that without any.

    Args:
        network: predicts next tokens.
        tap: where rows are replaced.
        windows: what it reads.
        changes: what rows are replaced by, as a function of those that pass at `source`.
        device: of the network.
        source: where rows are read; None: at `tap`.
        batch: windows computed at once.
        count: is told how many windows are done.

    Raises:
        JobError: a module that the network does not have, or nothing passes at `source` before `tap`.
    """
    sums = dict.fromkeys(("clean", *changes), 0.0)
    tokens = 0
    for first in range(0, len(windows.starts), batch):
        inputs = windows.batch(range(first, min(first + batch, len(windows.starts))))
        tokens += int((inputs.labels != IGNORED).sum())
        with torch.no_grad():
            sums["clean"] += _loss(network, inputs, device)
            for name, change in changes.items():
                with _spliced(network, source or tap, tap, inputs.rows.to(device), change):
                    sums[name] += _loss(network, inputs, device)
        count(min(first + batch, len(windows.starts)))
    return {name: value / max(tokens, 1) for name, value in sums.items()}


def recovered(found: dict[str, float], *, without: str) -> float:
    """1 where the reconstruction does no harm, 0 where it does as much as `without` (zero, mean)."""
    damage = found[without] - found["clean"]
    return (found[without] - found["reconstruction"]) / damage if damage else float("nan")


def _loss(network: Any, inputs: Inputs, device: torch.device) -> float:
    return float(hosts.next_token_loss(hosts.feed(network, inputs, device), inputs.labels))


@contextmanager
def _spliced(network: Any, source: Tap, tap: Tap, at: Tensor, change: Change) -> Generator[None]:
    """While this is open, rows `at` of what passes at `tap` are `change` of those at `source`."""
    read: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        read[:] = [x.reshape(len(x) * x.shape[1], -1)[at]]
        return x

    def put(x: Tensor) -> Tensor:
        if not read:
            raise JobError(f"{source}: nothing passes there before {tap}, so that it cannot be predicted from it")
        flat = x.reshape(len(x) * x.shape[1], -1).clone()
        flat[at] = change(read.pop()).to(flat.dtype)
        return flat.reshape(x.shape)

    with replacing(network, source, keep), replacing(network, tap, put):
        yield
