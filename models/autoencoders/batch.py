"""Autoencoders that keep k entries a row on average over a batch: rows that need more get more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Params, Probe, Stats
from ..kernels import pack
from ..schedule import Stage
from ..truncated.cut import ROUNDS, ScoreHistogram, histogram, narrow, order_key
from .autoencoder import Autoencoder
from .selection import chunk_rows, exact, largest, pre_activations
from .sums import GradientSums, Rows
from .topk import TopK

SUM, WEIGHT = f"{TRAINING}threshold_sum", f"{TRAINING}threshold_weight"
CANDIDATES, SCORES = "batch_candidates", "batch_scores"


@dataclass(frozen=True, slots=True)
class ScoreCounts(Stats):
    """One round of the search for the batch's threshold."""

    counts: Tensor
    """[2048] float64: scores in each bin."""
    floors: Tensor
    """[2048] float64: rows by the bin of their smallest candidate; more of their scores may lie below it."""
    rows: Tensor
    """Number of rows."""


@dataclass(frozen=True, kw_only=True)
class BatchTopK(TopK):
    """BatchTopK autoencoder: the k n largest of relu(u) over all n rows of an update (Bussmann et al. 2024).

    The threshold is exact over all workers: a radix select on the histogram of scores (compared as float32), which the
    survey adds up. Each row first offers its 4 k (at least 64) largest entries; only where some row might have more
    above the threshold are all entries counted, in three further rounds. With an `encoder_precision` entries are found
    by rounded scores: some beside the threshold may be missing or lie just below it.

    Without a batch, as in `encode`, entries above `threshold` are kept: the debiased running mean of the updates'
    thresholds over a twentieth of the run (at most 1000 updates), in scaled units.
    """

    surveys: ClassVar[int] = 1 + len(ROUNDS)

    def init_own(self, params: Params, probe: Probe) -> Params:
        """The threshold, 0 before the first update."""
        zero = torch.zeros((), dtype=torch.float64, device=params["b_enc"].device)
        return {"threshold": zero, SUM: zero.clone(), WEIGHT: zero.clone()}

    def slots(self) -> int:
        """As for models without k: rows differ in what they need."""
        return Autoencoder.slots(self)

    def entries(self) -> int:
        """What a row offers at first."""
        return min(self.held, max(4 * self.k, 64))

    def exact(self, params: Params, inputs: Tensor, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.exact`; all of them, whose number differs from row to row."""
        if self.rounding is None:
            return indices, values
        width, empty = indices.shape[1], values == 0
        return exact(indices, inputs, params["W_enc"], params["b_enc"], width, signed=self.signed, empty=empty)

    def offered(self) -> int:
        """None: a histogram finds the threshold."""
        return 0

    def batch_bytes(self, rows: int, dim: int, item: int) -> int:
        """See `Autoencoder.batch_bytes`; where all entries are counted, those above 0 become integers of 8 bytes."""
        chunk = chunk_rows(rows, self.held, item, torch.device("cpu")) * self.held
        return super().batch_bytes(rows, dim, item) + (48 if self.signed else 28) * chunk

    # -- the threshold of a batch ----------------------------------------------------------------------------------

    def survey(self, params: Params, batch: Batch, stage: Stage) -> ScoreCounts:
        """The histogram of scores for one digit of the threshold."""
        rows = float(batch.x.shape[0])
        counts = torch.zeros(1 << ROUNDS[0][1], dtype=torch.float64, device=batch.x.device)
        # All peers see the same rows, and count what their own latents make of them.
        found = ScoreCounts(counts, counts.clone(), counts.new_tensor(rows if self.peers.rank == 0 else 0.0))
        if rows == 0 or stage.get("cut_round", 0) >= len(ROUNDS):
            return found
        if stage.get("cut_all", 0):
            inputs = self._inputs(params, batch.x)
            for _, u in pre_activations(inputs, params["W_enc"], params["b_enc"], self.rounding):
                found.counts.add_(self._histogram(u.abs_() if self.signed else u, stage))
            return found
        inputs = self._inputs(params, batch.x)
        _, values = self._candidates(params, Rows(inputs, inputs, batch.x, batch.memo))
        scores = values.abs()
        found.counts.add_(self._histogram(scores, stage))
        if scores.shape[1] < self.held:
            least = scores[:, -1]
            shift, bits = ROUNDS[0]
            bins = order_key(least[least > 0]) >> shift
            found.floors.add_(torch.bincount(bins, minlength=1 << bits))
        return found

    def refine(self, params: Params, survey: Stats, stage: Stage) -> Stage:
        """The stage with one more digit, and in the end with the threshold itself."""
        assert isinstance(survey, ScoreCounts)
        if stage.get("cut_round", 0) >= len(ROUNDS):
            return stage
        found = narrow(ScoreHistogram(survey.counts), stage, self.k * int(survey.rows))
        key = int(found.get("cut_key", 0))
        first = not stage.get("cut_all", 0) and not stage.get("cut_round", 0)
        if first and bool(survey.floors[key >> ROUNDS[0][0] :].any()):
            return stage.with_values(cut_all=1)
        if found.get("cut_round", 0) == len(ROUNDS):
            found = found.with_values(threshold=_score_of(key))
        return found

    @staticmethod
    def _histogram(scores: Tensor, stage: Stage) -> Tensor:
        return histogram(scores[scores > 0], stage).counts

    def _candidates(self, params: Params, rows: Rows) -> tuple[Tensor, Tensor]:
        """(indices, values) of each row's largest scores, the largest first; kept for the batch's next round."""
        if CANDIDATES not in rows.memo:
            found = self.chosen(params, rows, lambda _, u, raw: largest(u, self.entries(), signed=self.signed))
            rows.memo[CANDIDATES], rows.memo[SCORES] = found
        return rows.memo[CANDIDATES], rows.memo[SCORES]

    # -- the codes -------------------------------------------------------------------------------------------------

    def code(self, params: Params, rows: Rows, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.code`; without a survey the learned threshold holds."""
        if stage is None or "threshold" not in stage.values:
            return Autoencoder.code(self, params, rows, stage)
        threshold = stage.get("threshold", 0.0)
        if stage.get("cut_all", 0):
            return Autoencoder.code(self, {**params, "threshold": torch.tensor(threshold)}, rows, stage)
        indices, values = self._candidates(params, rows)
        values = self._above(values.clone(), threshold)
        width = max(1, int((values != 0).any(0).sum())) if len(values) else 1
        return indices[:, :width], values[:, :width]

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`: the entries at or above the threshold."""
        values, indices = pack(self._above(u, float(params["threshold"])), signed=self.signed)
        return indices, values

    def _above(self, u: Tensor, threshold: float) -> Tensor:
        scores = (u.abs() if self.signed else u).float()
        return u.masked_fill_((scores < threshold) | (scores <= 0), 0)

    def finish(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """The running mean of the threshold."""
        if "threshold" not in stage.values:
            return {}
        new = 1 / max(1.0, min(1000.0, stage.steps / 20))
        total = params[SUM] * (1 - new) + new * stage.get("threshold", 0.0)
        weight = params[WEIGHT] * (1 - new) + new
        return {SUM: total, WEIGHT: weight, "threshold": total / weight}


@dataclass(frozen=True, kw_only=True)
class BatchAbsTopK(BatchTopK):
    """BatchAbsTopK autoencoder: the k n entries of largest magnitude over all n rows of an update, with their signs."""

    signed: ClassVar[bool] = True


def _score_of(key: int) -> float:
    """The float32 score that has this `order_key`; 0 for keys of scores that are not above 0."""
    if key <= 1 << 31:
        return 0.0
    return float(torch.tensor(key - (1 << 31), dtype=torch.int32).view(torch.float32))
