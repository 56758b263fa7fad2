"""A dictionary that is given, with a coder for its inference: what encodes like any model, and does not learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..base import Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .coders import Coder
from .problem import BUDGET, gram_matrix

ATOMS, GRAM = "W", "gram"
LARGEST_GRAM = 2**30
"""Bytes up to which the Gram matrix is kept for all batches."""


@dataclass(frozen=True, kw_only=True)
class Given(Model):
    """The atoms W [D, H] of `params`, encoded by `coder`."""

    coder: Coder
    """How codes are found."""

    def prepare(self, params: Params) -> Params:
        """The same with the Gram matrix, which every batch needs; not where it is too large."""
        atoms = params[ATOMS]
        if atoms.shape[1] ** 2 * atoms.itemsize > LARGEST_GRAM:
            return params
        return {**params, GRAM: gram_matrix(atoms)}

    def note(self, params: Params) -> str:
        """What is said of the atoms before the first code: greedy coders normalise them, the others do not."""
        more = self.coder.note(*params[ATOMS].shape)
        return self._lengths(params[ATOMS]) + (f"; {more}" if more else "")

    def _lengths(self, atoms: Tensor) -> str:
        norms = torch.linalg.vector_norm(atoms, dim=0)
        least, most = float(norms.min()), float(norms.max())
        if abs(least - 1) <= 1e-3 and abs(most - 1) <= 1e-3:
            return "atoms of length 1"
        zeros = int((norms == 0).sum())
        how = "normalised inside" if self.coder.normalises else "used as they are"
        return f"atoms of length {least:.3g} to {most:.3g}, {how}" + (f"; {zeros} are zero" if zeros else "")

    def encode(self, params: Params, batch: Batch) -> Codes:
        """The coder's codes."""
        return self.coder(batch.x, params[ATOMS], params.get(GRAM)).codes

    def dictionary(self, params: Params) -> Tensor:
        """W."""
        return params[ATOMS]

    def memory(self, rows: int, dim: int) -> int:
        """Atoms, the Gram matrix, rows and codes, and the pursuit's own scratch."""
        gram = min(LARGEST_GRAM, self.atoms**2 * self.torch_dtype.itemsize)
        width = self.coder.width(dim, self.atoms)
        return gram + self.torch_dtype.itemsize * (dim * self.atoms + rows * (dim + 3 * width)) + BUDGET

    def schedule(self) -> Schedule:
        """None: it does not learn."""
        self._refuse()

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """None: it does not learn."""
        self._refuse()

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> Stats:
        """None: it does not learn."""
        self._refuse()

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """None: it does not learn."""
        self._refuse()

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """None: it does not learn."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError("a given dictionary is not learned; it only encodes")
