"""Non-negative matrix factorisation: atoms and codes without negative entries (Lee, Seung, Nature 401, 1999), by
hierarchical alternating least squares (Cichocki, Zdunek, Amari, ICA 2007)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .coding import ATOMS
from .nonnegative import NonnegativeCodes
from .steps import coordinate_sweep, normalised
from .sums import MomentSums


@dataclass(frozen=True, kw_only=True)
class NMF(NonnegativeCodes):
    """Non-negative matrix factorisation: atoms and codes are not negative. Negative data count as error."""

    penalty: float = 0.0
    """Price of a unit of a code's entries: larger ones make codes sparser."""
    sweeps: int = 3
    """Sweeps over the atoms after every pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < float("inf"):
            raise ModelError(f"penalty={self.penalty} must be 0 or more, and finite")
        if self.sweeps < 1:
            raise ModelError(f"sweeps={self.sweeps}: at least one is needed")

    @property
    def price(self) -> float:
        """The penalty."""
        return self.penalty

    @property
    def positive_atoms(self) -> bool:
        """Always."""
        return True

    def schedule(self) -> Schedule:
        """A hundred passes."""
        return Schedule(passes=100, update_every="pass", batch_rows=4096)

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """Distinct rows; negative entries count by their absolute value."""
        return super().start_atoms(probe, generator).abs()

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """As for all of these models; negative entries are refused.

        Raises:
            ModelError: there are some.
        """
        if name == ATOMS and bool((given < 0).any()):
            raise ModelError(f"{name} has negative entries; nmf has none, snmf takes any")
        return super().adopt(name, given, own)

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """Sweeps over the atoms, each at its non-negative optimum; dead and coherent ones are replaced."""
        assert isinstance(stats, MomentSums)
        if float(stats.rows) == 0:
            return params
        atoms = coordinate_sweep(
            params[ATOMS].double(), stats.moments, stats.cross, nonnegative=True, sweeps=self.sweeps
        )
        atoms, replaced = self.renewed(atoms, stats.counts, stats.moments.diagonal(), stats, stage)
        return {**params, ATOMS: normalised(atoms)[0].to(self.torch_dtype), **self.search_state(stats, replaced)}
