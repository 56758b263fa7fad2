"""Autoencoders whose latents decide each for itself: here pre-activations are dense, and codes as far as they are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Params, Probe, Stats
from ..errors import ModelError
from ..kernels import pack
from ..schedule import Stage
from ..truncated.draws import Draws
from .autoencoder import Autoencoder
from .names import FIRST, SECOND
from .rates import warm_again, warm_up
from .resampling import ROWS_PER_LATENT, SLOTS, SquaredLosses, draw_rows, resampled, wanted_rows
from .selection import chunk_rows, product
from .sparse import DENSE_FROM, Code, DenseCode, SparseCode, make_code
from .sums import GradientSums, Rows

RESAMPLED, LAST = f"{TRAINING}resampled", f"{TRAINING}last_resampling"
LOSSES = "row_losses"


@dataclass(frozen=True, kw_only=True)
class Elementwise(Autoencoder):
    """An activation of each pre-activation by itself, kept sparse by a penalty."""

    sparsity: float = 5.0
    """Weight of the sparsity penalty, which rises from 0 during the first 5 % of the run; a schedule for `sparsity`
    multiplies it."""
    resample: tuple[float, ...] = ()
    """Fractions of the run at which dead latents begin anew along badly reconstructed rows of the update; the learning
    rate then rises again from a tenth. Empty: never."""

    ramp_names: ClassVar[tuple[str, ...]] = ("learning_rate", "sparsity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsity >= 0:
            raise ModelError(f"sparsity={self.sparsity} must be 0 or more")
        if any(not 0 < f < 1 for f in self.resample) or any(b <= a for a, b in pairwise(self.resample)):
            raise ModelError(f"resample={list(self.resample)}: fractions of the run must rise within (0, 1)")

    @abstractmethod
    def activate(self, params: Params, u: Tensor) -> Tensor:
        """The codes [m, H] of pre-activations u [m, H], which stay as they are."""

    def add_more(self, sums: GradientSums, params: Params, rows: Rows, u: Tensor, error: Tensor, weight: float) -> None:
        """Add the gradients that are not those of the squared error by z; `weight` is that of the penalty now."""

    def slope(self, weight: float) -> float:
        """The penalty's derivative by an active value."""
        del weight
        return 0.0

    def own_start(self, bias: Tensor) -> Params:
        """`own` before a latent's first update; `bias` [m] is its b_enc."""
        del bias
        return {}

    def init_own(self, params: Params, probe: Probe) -> Params:
        """`own`, how many latents were resampled, and in which update last (-1: never)."""
        del probe
        none = torch.zeros((), dtype=torch.int64, device=params["b_enc"].device)
        return self.own_start(params["b_enc"]) | ({RESAMPLED: none, LAST: none - 1} if self.resample else {})

    def add_rows(self, sums: GradientSums, params: Params, rows: Rows, stage: Stage) -> Tensor:
        """See `Autoencoder.add_rows`."""
        u = product(rows.inputs, params["W_enc"], params["b_enc"], self.rounding)
        weight = self.weight(stage)
        error = self.fit(sums, params, code_of(self.activate(params, u)), rows, self.slope(weight))
        self.add_more(sums, params, rows, u, error, weight)
        return error

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        values, indices = pack(self.activate(params, u), signed=self.signed)
        return indices, values

    # -- resampling ------------------------------------------------------------------------------------------------

    def warmth(self, params: Params, stage: Stage) -> float:
        """See `Autoencoder.warmth`: less for a while after latents were resampled."""
        return warm_again(stage.step, stage.steps, int(params[LAST])) if LAST in params else 1.0

    def surveys_at(self, stage: Stage) -> int:
        """One where latents are resampled."""
        return int(stage.step in [round(fraction * stage.steps) for fraction in self.resample])

    def survey(self, params: Params, batch: Batch, stage: Stage) -> SquaredLosses:
        """The losses of all rows, squared, and their number."""
        del stage
        losses = self._losses(params, batch).double()
        return SquaredLosses(losses.square().sum(), losses.new_tensor(float(len(losses))))

    def refine(self, params: Params, survey: Stats, stage: Stage) -> Stage:
        """The stage with what the survey added up."""
        assert isinstance(survey, SquaredLosses)
        return stage.with_values(squared_losses=float(survey.total), resampling_rows=float(survey.rows))

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> GradientSums:
        """See `Autoencoder.statistics`; with rows for dead latents where they are resampled."""
        sums = super().statistics(params, batch, stage)
        if not self.surveys_at(stage):
            return sums
        # A plan asks for the statistics of no rows without a survey.
        wanted = wanted_rows(params, int(stage.get("resampling_rows", 0)))
        columns = self._inputs(params, batch.x)
        if self.target is not None:
            columns = torch.cat([self._targets(params, batch.x), columns], 1)
        draws = Draws(stage, batch.start, len(batch.x), batch.x.device)
        total = stage.get("squared_losses", 0.0)
        return replace(sums, drawn=draw_rows(columns, self._losses(params, batch), total, wanted, draws))

    def _losses(self, params: Params, batch: Batch) -> Tensor:
        """[n] squared errors; kept for the batch's next round."""
        if LOSSES not in batch.memo:
            found = [batch.x.new_zeros(0)]
            for rows in self._rows(params, batch):
                code = make_code(*self.code(params, rows, None), self.atoms)
                found.append(code.decode(params["W_dec"]).sub_(rows.targets).square().sum(1))
            batch.memo[LOSSES] = torch.cat(found)
        return batch.memo[LOSSES]

    def finish(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """Resampled latents, with all that belongs to them at its start."""
        if not len(sums.drawn):
            return {}
        moments = [name for name in self.per_atom if name.startswith((FIRST, SECOND))]
        new, places = resampled(params, sums.drawn, moments, centre=self.target is not None)
        for name, value in self.own_start(new["b_enc"][places]).items():
            new[name] = new[name].index_copy(0, places, value)
        if len(places):
            new[LAST] = torch.full_like(params[LAST], stage.step)
        return new | {RESAMPLED: params[RESAMPLED] + len(places)}

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """See `Autoencoder.metrics`; resampled: latents that were, in all updates before."""
        found = super().metrics(params, stats)
        return found | ({"resampled": float(params[RESAMPLED])} if RESAMPLED in params else {})

    # -- the rest ----------------------------------------------------------------------------------------------------

    def weight(self, stage: Stage) -> float:
        """The penalty's weight in one update."""
        return self.sparsity * warm_up(stage.step, stage.steps) * stage.get("sparsity", 1.0)

    def pieces(self, rows: int) -> int:
        """Rows whose [rows, H] arrays are held at once: four times those of a sparse selection."""
        return min(rows, 4 * chunk_rows(rows, self.atoms, self.torch_dtype.itemsize, torch.device("cpu")))

    def batch_bytes(self, rows: int, dim: int, item: int) -> int:
        """See `Autoencoder.batch_bytes`."""
        drawn = min(self.atoms, rows // ROWS_PER_LATENT) if self.resample else 0
        slots = 3 * (SLOTS * drawn + 1) * (dim * len(self.arrays) + 1) * item
        return super().batch_bytes(rows, dim, item) + 6 * self.pieces(rows) * self.atoms * item + slots


@dataclass(frozen=True, kw_only=True)
class ReLU(Elementwise):
    """ReLU autoencoder: z = relu(u) with the penalty `sparsity` Σ z (Bricken et al. 2023)."""

    def activate(self, params: Params, u: Tensor) -> Tensor:
        """See `Elementwise.activate`."""
        return u.relu()

    def slope(self, weight: float) -> float:
        """See `Elementwise.slope`; atoms have norm 1."""
        return weight


def code_of(z: Tensor) -> Code:
    """The dense codes `z` [m, H] in the cheaper representation."""
    if DENSE_FROM * int(z.count_nonzero()) >= z.numel():
        return DenseCode(z)
    values, indices = pack(z, signed=True)
    return SparseCode(indices, values)
