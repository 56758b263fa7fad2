"""The data cut: keep the datapoints that the truncated states explain best, with an exact global threshold.

The k-th largest of N scores is found without gathering them: three histograms of the scores' float32 bits (11, 11 and
10 bits, most significant first) are added up over all data, each narrowing the threshold – a radix select whose
messages are 16 kB whatever N is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Stats
from ..schedule import Stage

ROUNDS = ((21, 11), (10, 11), (0, 10))
"""(shift, bits) of each round."""
BINS = 2048


@dataclass(frozen=True, slots=True)
class ScoreHistogram(Stats):
    """How many scores fall into each bin of the current round."""

    counts: Tensor
    """[2048] float64."""


def order_key(scores: Tensor) -> Tensor:
    """[n] int64 in [0, 2^32): larger for larger scores. Scores are compared as float32."""
    bits = scores.to(torch.float32).view(torch.int32).long()
    return torch.where(bits < 0, ~bits & 0xFFFFFFFF, bits | 0x80000000)


def histogram(scores: Tensor, stage: Stage) -> ScoreHistogram:
    """The batch's part of this round's histogram: only scores that agree with the threshold found so far count."""
    round_ = int(stage.get("cut_round", 0))
    shift, bits = ROUNDS[round_]
    key = order_key(scores)
    inside = (key >> (shift + bits)) == (int(stage.get("cut_key", 0)) >> (shift + bits))
    bins = (key[inside] >> shift) & ((1 << bits) - 1)
    return ScoreHistogram(torch.bincount(bins, minlength=BINS).to(torch.float64))


def narrow(found: ScoreHistogram, stage: Stage, keep: int) -> Stage:
    """The stage with one more digit of the threshold above which `keep` points lie."""
    round_ = int(stage.get("cut_round", 0))
    shift, _ = ROUNDS[round_]
    wanted = keep - int(stage.get("cut_above", 0))
    at_least = found.counts.flip(0).cumsum(0)
    # The first bin from the top at which the points counted reach what is wanted.
    from_top = int(torch.searchsorted(at_least, float(wanted)).clamp(max=BINS - 1))
    above = float(at_least[from_top - 1]) if from_top else 0.0
    return stage.with_values(
        cut_round=round_ + 1,
        cut_key=int(stage.get("cut_key", 0)) | (BINS - 1 - from_top) << shift,
        cut_above=stage.get("cut_above", 0) + above,
    )


def kept(scores: Tensor, stage: Stage) -> Tensor:
    """[n] bool: points at or above the threshold that the surveys found; all points where none was sought."""
    if stage.get("cut_round", 0) < len(ROUNDS):
        return torch.ones_like(scores, dtype=torch.bool)
    return order_key(scores) >= int(stage.get("cut_key", 0))
