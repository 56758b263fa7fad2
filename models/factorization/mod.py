"""Method of optimal directions: all atoms at once by least squares (Engan, Aase, Husøy, ICASSP 1999)."""

from __future__ import annotations

from dataclasses import dataclass

from ..base import Params, Stats
from ..schedule import Schedule, Stage
from .coding import ATOMS, Coded
from .steps import least_squares, normalised
from .sums import MomentSums


@dataclass(frozen=True, kw_only=True)
class MOD(Coded):
    """Method of optimal directions: all atoms at once by least squares, after every pass over the data."""

    def schedule(self) -> Schedule:
        """Forty passes."""
        return Schedule(passes=40, update_every="pass", batch_rows=4096)

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """The least-squares dictionary, normalised, dead and coherent atoms replaced."""
        assert isinstance(stats, MomentSums)
        if float(stats.rows) == 0:
            return params
        atoms = params[ATOMS].double()
        fitted, good = normalised(least_squares(atoms, stats.moments, stats.cross))
        atoms, replaced = self.renewed(
            fitted.where(good[:, None], atoms), stats.counts, stats.moments.diagonal(), stats, stage
        )
        return {**params, ATOMS: atoms.to(self.torch_dtype), **self.search_state(stats, replaced)}
