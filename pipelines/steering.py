"""Steering by latents of a dictionary: which of them, in which contexts, and beside random directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..models.autoencoders.measures import Evaluation
from ..storage import Dataset
from ..workers.activations.steering import Steered, steer
from ..workers.activations.taps import Tap
from ..workers.errors import JobError
from .examples import Texts
from .phases import begin
from .reporter import Reporter, silent

CONTEXTS = 32
SHARE = 0.5
"""α as a share of the mean norm of a row."""
RANDOM = 32
"""Random directions to compare with."""
TRIES = 100
"""Rows looked at for each context: a row near the beginning of its document, or of its shard, gives none."""
SEED = 0


@dataclass(frozen=True)
class Steering:
    """What latents do to the next token, and what random directions of the same norm do."""

    atoms: list[int]
    signs: list[int]
    """-1 where a latent is below 0 more often than above: it was steered to that side."""
    latents: Steered
    random: Steered
    size: float
    """α."""
    contexts: int

    def numbers(self) -> dict[str, float]:
        """Means over latents and over random directions, by name."""
        found: dict[str, float] = {}
        for name, steered in (("", self.latents), ("_random", self.random)):
            found[f"steer_kl{name}"] = float(steered.divergence.mean())
            if steered.tokens is not None:
                found[f"steer_push{name}"] = float(steered.tokens.push.mean())
        return found


def steering(
    data: Dataset,
    network: Callable[[], Any],
    tap: Tap,
    decoder: torch.Tensor,
    sums: Evaluation,
    atoms: list[int],
    reporter: Reporter = silent,
) -> Steering:
    """Steer by each of `atoms`, with α half the mean norm of the rows (of the target's, for a transcoder).

    Args:
        data: the harvest; contexts are drawn from its texts.
        network: loads the network that it is of, which predicts next tokens.
        tap: the place that the decoder writes to.
        decoder: [H, D].
        sums: of the rows of `data`.
        atoms: latents that fire.
        reporter: receives messages.

    Raises:
        JobError: no contexts, or no latent that fires.
    """
    if not atoms:
        raise JobError("steer: no latent fires in these rows")
    found = contexts(data, int(sums.rows))
    loaded = network()
    signs = [-1 if bool(sums.negative[a] > sums.positive[a]) else 1 for a in atoms]
    mine = decoder[atoms].float() * torch.tensor(signs, device=decoder.device)[:, None]
    drawn = np.random.default_rng(SEED).standard_normal((RANDOM, decoder.shape[1])).astype(np.float32)
    size = SHARE * float(sums.length / sums.rows)
    both = torch.cat([mine, torch.from_numpy(drawn).to(decoder.device)])
    n = len(atoms)
    what = f"{n} latents and {RANDOM} random directions in {len(found)} contexts"
    got = steer(loaded, tap, found, both, size, begin(reporter, f"steering: adds {what}", len(found)))
    return Steering(atoms, signs, got.part(slice(0, n)), got.part(slice(n, None)), size, len(found))


def contexts(data: Dataset, rows: int, count: int = CONTEXTS, seed: int = SEED) -> list[torch.Tensor]:
    """Tokens [T] int64 that end at random rows, T drawn evenly from what is more than skipped up to a whole context.

    Raises:
        JobError: the rows are no tokens, or every text is shorter.
    """
    about = data.attributes
    if "module" not in about or not {"token", "document", "position"} <= set(data.arrays):
        raise JobError(f"steer: {data.uri!r} holds no texts; it is for data sets that `harvest` wrote")
    prefix = torch.tensor(about["added_tokens"][0], dtype=torch.int64)
    # A context's own first tokens are those on which attention rests: they are never rows, and never steered.
    least = max(int(about["skip"]) + 1, 2 - len(prefix))
    texts, rng, found = Texts(data), np.random.default_rng(seed), list[torch.Tensor]()
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        length = int(rng.integers(least, max(least, int(about["context"]) - len(prefix)) + 1))
        tokens = texts.until(int(rng.integers(rows)), length)
        if len(tokens) >= least:
            found.append(torch.cat([prefix, torch.from_numpy(tokens)]))
    if not found:
        raise JobError(f"steer: no text in {data.uri!r} has {least} tokens in a row")
    return found
