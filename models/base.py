"""The contract of a model: a frozen configuration and pure functions on tensors.

A dictionary is learned by adding up statistics over data: `statistics` is the only function that touches data, its
results add, and `update` turns the sum over all data into new parameters. Nothing here knows about ranks, files or
engines; whatever keeps this contract runs on all of them.

Shapes: N datapoints, n rows of one batch, D observed dimensions, H atoms, k entries kept of a code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from .errors import ModelError
from .outputs import Wanted
from .peers import Peers
from .schedule import Schedule, Stage

Params = dict[str, Tensor]
"""Learned values by their standard name. Names that begin with `training/` (optimiser moments, counters) are needed to
continue a run and are left out of published versions and exports."""

TRAINING = "training/"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows handed to a model at once. Its place in the data set, not the worker, identifies it."""

    x: Tensor
    """[n, D] rows, on the device and in the dtype that the model computes in; n may be 0. NaN: a missing entry, only
    for models that accept them."""
    start: int = 0
    """Index of the first row in the data set (updates per batch: in the batch): the key of a random stream."""
    memo: MutableMapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What `survey` computed for these rows, [n, …] each, and `statistics` may use again; lives for one update."""
    kept: MutableMapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the model remembers of these rows from update to update, as `kept_rows` declares; empty at first."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a model sees of the data before it starts: the same on every worker."""

    rows: int
    """N, rows in the data set."""
    mean: Tensor
    """[D] float64, of the observed entries."""
    variance: Tensor
    """[D] float64, per dimension."""
    sample: Tensor
    """[m, D] float64, a few thousand rows drawn evenly from the data set; the mean in place of missing entries."""
    widths: tuple[int, ...] = ()
    """Columns of each of the model's `arrays`, in order; empty: the rows are one array."""

    @property
    def dim(self) -> int:
        """D, the observed dimensions."""
        return self.mean.shape[0]


@dataclass(frozen=True, slots=True)
class Codes:
    """Sparse codes of n rows, at most k entries each.

    `indices` [n, k] int32, -1 where a row has fewer entries; `values` [n, k], 0 there.
    """

    indices: Tensor
    values: Tensor

    def dense(self, atoms: int) -> Tensor:
        """The same codes as [n, H]."""
        out = self.values.new_zeros(self.values.shape[0], atoms)
        return out.scatter_add_(1, self.indices.clamp(min=0).long(), self.values)


@dataclass(frozen=True, slots=True)
class Stats:
    """Sums over datapoints: `a + b` is the statistics of both parts together.

    A subclass is a frozen dataclass whose fields are tensors of one dtype (counts and scalars as 0-d tensors).
    """

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def flatten(self) -> Tensor:
        """All fields as one contiguous vector, so that one all-reduce moves them."""
        return torch.cat([getattr(self, f.name).reshape(-1) for f in fields(self)])

    def unflatten(self, vector: Tensor) -> Self:
        """The statistics that `vector`, laid out as by `flatten`, holds."""
        parts: list[Tensor] = []
        at = 0
        for f in fields(self):
            shape = getattr(self, f.name).shape
            parts.append(vector[at : at + shape.numel()].reshape(shape))
            at += shape.numel()
        return type(self)(*parts)


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """Base class of all models. A subclass is a frozen dataclass: its fields are the model's settings.

    Every field has a default except `atoms`; checks belong into `__post_init__` and raise `ModelError`.
    """

    atoms: int
    """H, how many atoms the dictionary has."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the arithmetic that touches data."""

    surveys: ClassVar[int] = 0
    """How many preliminary statistics are reduced before `statistics` (0: none)."""
    ramp_names: ClassVar[tuple[str, ...]] = ()
    """Names that this model's schedule may set."""
    ramp_limits: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The smallest and largest value that some of them may have."""

    def __post_init__(self) -> None:
        if self.atoms < 1:
            raise ModelError(f"atoms={self.atoms}: a dictionary needs at least one atom")
        if self.dtype not in ("float32", "float64"):
            raise ModelError(f"dtype={self.dtype!r}: choose float32 or float64")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch spells it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def accepts_missing(self) -> bool:
        """Whether NaN entries of a row count as missing values; otherwise they are an error."""
        return False

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays of the data set that make up a row of `Batch.x`, side by side; D counts the columns of all."""
        return ("data",)

    @property
    def encode_arrays(self) -> tuple[str, ...]:
        """Those that `encode` needs."""
        return self.arrays[:1]

    def sliced(self, peers: Peers) -> Self:
        """This model on a worker that holds only its share of the atoms and learns with `peers`.

        All functions of learning then take and give the parameters named by `per_atom` with the rows of that share;
        statistics still add over rows, and surveys over rows and peers.

        Raises:
            ModelError: this model needs all atoms on every worker, or its atoms cannot be dealt like that.
        """
        from .registry import name_of

        raise ModelError(
            f"atom_groups={peers.size}: {name_of(self)} needs all atoms on every worker; use --atom-groups 1"
        )

    @property
    def per_atom(self) -> tuple[str, ...]:
        """Parameters with a row for every atom, of models that can be `sliced`."""
        return ()

    def peer_bytes(self, rows: int, dim: int) -> int:
        """Bytes that a worker sends to its peers at an update with `rows` rows of `dim` dimensions."""
        del rows, dim
        return 0

    @abstractmethod
    def schedule(self) -> Schedule:
        """The schedule that a user gets who names none."""

    @abstractmethod
    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """Start values. Draws only from `generator`, so that every worker gets the same."""

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """A start value that a user gives, in the shape of the model's own; one number stands for all entries.

        Args:
            name: of the parameter.
            given: finite numbers, float64.
            own: the parameter as `init` makes it.

        Raises:
            ModelError: it has another shape, or values that this parameter cannot have.
        """
        if given.numel() == 1 and own.ndim < 2:
            given = given.reshape(()).expand(own.shape)
        if given.shape != own.shape:
            raise ModelError(f"{name} has shape {tuple(given.shape)}, but this model needs {tuple(own.shape)}")
        return given.to(own.dtype, copy=True)

    def check_start(self, params: Params) -> None:
        """Refuse start values that the settings do not go with; called before any data are read.

        Raises:
            ModelError: a setting names something that these parameters do not have.
        """
        del params

    def check_schedule(self, schedule: Schedule) -> None:
        """Refuse a schedule that the settings do not go with.

        Raises:
            ModelError: it asks for something that this model cannot do as it is set, or for a value out of range.
        """
        for name, ramp in schedule.ramps.items():
            low, high = self.ramp_limits.get(name, (-math.inf, math.inf))
            for _, value in ramp:
                if not low <= value <= high:
                    most = "or more" if high == math.inf else f"to {high:g}"
                    raise ModelError(f"schedule.{name}: {value:g} is out of range, choose {low:g} {most}")

    def survey(self, params: Params, batch: Batch, stage: Stage) -> Stats:
        """A small preliminary statistic over the data (a histogram, …), reduced before `statistics` is called.

        Called `surveys_at(stage)` times over all data; may leave results for `statistics` in `batch.memo`.
        """
        raise ModelError(f"{type(self).__name__} has no preliminary statistic")

    def surveys_at(self, stage: Stage) -> int:
        """How many surveys this stage needs; `surveys` unless a model knows better."""
        del stage
        return self.surveys

    def refine(self, params: Params, survey: Stats, stage: Stage) -> Stage:
        """The stage with what the survey found (`stage.with_values(...)`)."""
        del params, survey
        return stage

    @abstractmethod
    def statistics(self, params: Params, batch: Batch, stage: Stage) -> Stats:
        """The batch's contribution to the update. Additive over rows; zero for a batch of no rows."""

    @abstractmethod
    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """New parameters from the statistics of all data. Deterministic: every worker computes the same."""

    def prepare(self, params: Params) -> Params:
        """`params` with what `encode` needs for every batch and is worth keeping."""
        return params

    @abstractmethod
    def encode(self, params: Params, batch: Batch) -> Codes:
        """Sparse codes (or posterior means) of the rows under fixed parameters."""

    def infer(self, params: Params, batch: Batch, wanted: Wanted) -> dict[str, Tensor]:
        """The codes (`indices`, `values` as of `encode`) and what is wanted beside them, one entry a row each.

        Raises:
            ModelError: an output that needs a posterior, which this model does not have.
        """
        beyond = [name for name in wanted.outputs if name not in ("mean", "reconstruction")]
        if beyond or wanted.adaptive:
            what = f"outputs={beyond}" if beyond else f"adaptive={wanted.adaptive}"
            raise ModelError(f"{what}: {type(self).__name__} has no posterior, only outputs mean and reconstruction")
        codes = self.encode(params, batch)
        found = {"indices": codes.indices, "values": codes.values}
        if "reconstruction" in wanted.outputs:
            found["reconstruction"] = self.reconstruct(params, codes).to(batch.x.dtype)
        return found

    def reconstruct(self, params: Params, codes: Codes) -> Tensor:
        """The rows [n, D] that `codes` stand for: dictionary times codes."""
        return codes.dense(self.atoms) @ self.dictionary(params).T.to(codes.values.dtype)

    @abstractmethod
    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Free energy per datapoint, sparsity, noise, explained variance, …, by the field's names.

        `params` are those before the update and `stats` the sums that they gave.
        """

    @abstractmethod
    def dictionary(self, params: Params) -> Tensor:
        """The atoms as columns, [D, H]."""

    def input_dim(self, params: Params) -> int:
        """Columns of the first of `arrays`."""
        return self.dictionary(params).shape[0]

    @abstractmethod
    def memory(self, rows: int, dim: int) -> int:
        """Bytes that one worker needs at most for a batch of `rows` rows of `dim` dimensions, parameters and
        statistics included.

        Where the compiled kernels are built, and the model's settings allow them, this is their need on a CPU; the same
        batch needs more on a GPU, whose posteriors are whole tensors.
        """

    def kept_rows(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What `statistics` leaves in `batch.kept` for the next update: name -> (shape of one row, dtype).

        Committed with the parameters, so that a resumed run goes on with it. Only for models updated once per pass.
        Integers, or finite floats.
        """
        return {}

    def row_memory(self) -> int:
        """Bytes that a worker keeps for every row of its share (what surveys remember, what outlives an update)."""
        return sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.kept_rows().values())

    def flops(self, dim: int) -> float:
        """Floating-point operations per datapoint and pass, for the plan; the dominant products only."""
        return 4.0 * dim * self.atoms

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, groups of settings as dicts, for a card: `make_model` takes them again."""
        return asdict(self)
