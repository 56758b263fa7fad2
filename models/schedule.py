"""How a run proceeds: how many passes, when parameters are updated, and named values that change along the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from .errors import ModelError

Ramp = tuple[tuple[float, float], ...]
"""Points (fraction of the run in [0, 1], value): piecewise linear, constant outside the first and last point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Where a run is: the values that hold for one update.

    A value that the schedule does not name reads as its model's default through `get`.
    """

    step: int
    """Updates done before this one."""
    steps: int
    """Updates in the whole run."""
    seed: int = 0
    rows: int = 0
    """Rows of the whole data set (N), not of this worker's part."""
    values: Mapping[str, float] = field(default_factory=dict[str, float])

    def get(self, name: str, default: float) -> float:
        """The current value of the schedule's entry `name`, or `default` where it has none."""
        return self.values.get(name, default)

    def with_values(self, **values: float) -> Stage:
        """The same stage with some values added or changed."""
        return replace(self, values={**self.values, **values})

    def generator(self, *key: int, device: str | torch.device = "cpu") -> torch.Generator:
        """A random stream of its own for (seed, step, *key).

        The key names data (the first row of a batch), never a worker, so that any number of workers draws the same.
        """
        state = np.random.SeedSequence(self.seed, spawn_key=(self.step, *key)).generate_state(2, np.uint32)
        seed = (int(state[0]) << 32 | int(state[1])) & (2**63 - 1)
        return torch.Generator(device=device).manual_seed(seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The course of a run. `update_every` is a property of the model: a pass for EM, a batch for gradient steps."""

    passes: int
    """How often the whole data set is read."""
    update_every: Literal["pass", "batch"]
    batch_rows: int
    """Rows handed to `statistics` at once; with update_every="batch" the rows behind one update, over all workers."""
    ramps: Mapping[str, Ramp] = field(default_factory=dict[str, Ramp])

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ModelError(f"passes={self.passes}: at least one pass over the data is needed")
        if self.batch_rows < 1:
            raise ModelError(f"batch_rows={self.batch_rows}: at least one row is needed")
        for name, ramp in self.ramps.items():
            _check_ramp(name, ramp)

    def at(self, step: int, steps: int, *, seed: int, rows: int) -> Stage:
        """The stage of update number `step` of `steps`; the last update sees fraction 1."""
        fraction = step / (steps - 1) if steps > 1 else 1.0
        values = {
            name: float(np.interp(fraction, [p[0] for p in ramp], [p[1] for p in ramp]))
            for name, ramp in self.ramps.items()
        }
        return Stage(step=step, steps=steps, seed=seed, rows=rows, values=values)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a card or a plan."""
        return {
            "passes": self.passes,
            "update_every": self.update_every,
            "batch_rows": self.batch_rows,
            "ramps": {n: [list(p) for p in r] for n, r in self.ramps.items()},
        }


def _check_ramp(name: str, ramp: Ramp) -> None:
    if not ramp:
        raise ModelError(f"schedule {name!r} has no points; give at least one [fraction, value]")
    fractions = [p[0] for p in ramp]
    if any(not 0 <= f <= 1 for f in fractions) or any(b < a for a, b in pairwise(fractions)):
        raise ModelError(f"schedule {name!r}: fractions {fractions} must rise within [0, 1] (fractions of the run)")
    if not all(math.isfinite(p[1]) for p in ramp):
        raise ModelError(f"schedule {name!r}: values {[p[1] for p in ramp]} must be finite")
