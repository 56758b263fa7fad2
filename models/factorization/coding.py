"""What all models share whose statistics come from the codes of single rows: codes, replacement, metrics; and the
coders that most of them use.

A row x is represented as Dᵀ a. With a coder, a has few entries:
    omp        at most `nonzeros` entries, chosen greedily (orthogonal matching pursuit),
    lasso      the a that minimises ½‖x - Dᵀa‖² + penalty ‖a‖₁,
    threshold  the `nonzeros` largest entries of D x; the optimum where the atoms are orthonormal.

Shapes: n rows, D dimensions, H atoms (rows of `params["atoms"]` [H, D]), k entries of a code.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from ..base import Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..pursuit import batch_omp, lasso, threshold
from ..pursuit.problem import energies
from ..schedule import Stage
from . import replacement
from .replacement import LEVEL, REPLACED
from .start import distinct_rows
from .steps import normalised
from .sums import CodingSums, MomentSums, counts_of, cross_of, decode, moments_of

LOG = logging.getLogger(__name__)
ATOMS = "atoms"
LAST_UPDATES = 3


@dataclass(frozen=True, kw_only=True)
class Factorization(Model):
    """A dictionary of unit atoms, and codes of single rows under it."""

    replace: bool = True
    """Whether dead and coherent atoms are replaced by badly represented rows."""

    # -- start -----------------------------------------------------------------------------------------------------

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """Distinct rows of the data, normalised, and the state of the search for replacements, if there is one."""
        atoms = self.start_atoms(probe, generator)
        return {
            ATOMS: atoms.to(self.torch_dtype),
            **(replacement.start_values(probe.sample, probe.rows, self.atoms) if self.replace else {}),
            **self.start_state(probe),
        }

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """[H, D] float64 of norm 1."""
        return distinct_rows(probe.sample, self.atoms, generator)

    def start_state(self, probe: Probe) -> Params:
        """What else a model remembers between updates."""
        del probe
        return {}

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """A given dictionary with its atoms normalised; atoms of zeros are left as `init` made them. Both are said."""
        taken = super().adopt(name, given, own)
        if name != ATOMS:
            return taken
        units, good = normalised(given.double())
        changed = int(((torch.linalg.vector_norm(given.double(), dim=1) - 1).abs() > 1e-4).sum()) - int((~good).sum())
        if changed:
            LOG.warning("%d of %d given atoms did not have norm 1 and were normalised", changed, len(given))
        if not bool(good.all()):
            LOG.warning(
                "%d of %d given atoms are zero; rows of the data stand in for them", int((~good).sum()), len(given)
            )
        return torch.where(good[:, None], units.to(own.dtype), own)

    # -- codes -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def codes(self, atoms: Tensor, x: Tensor) -> Codes:
        """Codes of the rows `x` [n, D] under `atoms` [H, D], in the dtype of `x`."""

    @property
    def price(self) -> float:
        """What the loss counts for ‖a‖₁ of a row."""
        return 0.0

    @property
    def width(self) -> int:
        """Entries of a code, at most."""
        return self.atoms

    def encode(self, params: Params, batch: Batch) -> Codes:
        """The rows' codes under the dictionary.

        Raises:
            ModelError: a row holds NaN, infinite or too large values.
        """
        energies(batch.x)
        return self.codes(params[ATOMS], batch.x)

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> CodingSums:
        """A, B and the common sums, under the rows' codes."""
        codes, residual = self.coded(params, batch)
        common = self.common_sums(params, batch, codes, residual, stage)
        return extended(MomentSums, common, moments_of(codes, self.atoms), cross_of(codes, batch.x, self.atoms))

    def common_sums(self, params: Params, batch: Batch, codes: Codes, residual: Tensor, stage: Stage) -> CodingSums:
        """The sums that all these models have, from the rows' codes and residuals [n, D]."""
        x = batch.x
        energy, error = x.double().square().sum(1), residual.double().square().sum(1)
        errors, candidates = energy.new_zeros(0), energy.new_zeros(0)
        if self.replace:
            errors, candidates = replacement.histogram_and_candidates(
                params, x, error, energy, start=batch.start, step=stage.step, atoms=self.atoms
            )
        return CodingSums(
            counts=counts_of(codes, self.atoms),
            energy=energy.sum(),
            error=error.sum(),
            magnitude=codes.values.double().abs().sum(),
            rows=energy.new_tensor(float(len(x))),
            errors=errors,
            candidates=candidates,
        )

    def coded(self, params: Params, batch: Batch) -> tuple[Codes, Tensor]:
        """The rows' codes and residuals [n, D]."""
        energies(batch.x)
        codes = self.codes(params[ATOMS], batch.x)
        return codes, batch.x - decode(codes, params[ATOMS])

    # -- update ----------------------------------------------------------------------------------------------------

    @property
    def positive_atoms(self) -> bool:
        """Whether atoms may not have negative entries."""
        return False

    def replaces_at(self, stage: Stage) -> bool:
        """Whether atoms are replaced in this update: not in the last three, which could not fit the new ones."""
        return self.replace and stage.step < stage.steps - LAST_UPDATES

    def renewed(
        self, atoms: Tensor, counts: Tensor, power: Tensor, stats: CodingSums, stage: Stage
    ) -> tuple[Tensor, Tensor]:
        """`atoms` [H, D] float64 with dead and coherent ones replaced where this stage does so; and which, [H] bool."""
        if not self.replaces_at(stage):
            return atoms, torch.zeros_like(counts, dtype=torch.bool)
        bad = replacement.unused(counts, power) | replacement.coherent(atoms, counts)
        if not bool(bad.any()):
            return atoms, bad
        return replacement.replace(atoms, bad, counts, stats.candidates, nonnegative=self.positive_atoms)

    def search_state(self, stats: CodingSums, replaced: Tensor) -> Params:
        """The search's state, if there is one, after an update in which atoms were `replaced` [H] bool."""
        if not self.replace:
            return {}
        return {LEVEL: replacement.next_level(stats.errors, self.atoms), REPLACED: replaced.sum().double()}

    # -- the rest of the contract ----------------------------------------------------------------------------------

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Means over the update's rows.

        loss: ½‖x - Dᵀa‖², and the penalty on ‖a‖₁ where there is one; relative_error: the square root of
        Σ‖x - Dᵀa‖² / Σ‖x‖²; l0: entries of a code; dead_share: atoms that no row used; replaced: atoms replaced by the
        update before.
        """
        assert isinstance(stats, CodingSums)
        rows = max(1.0, float(stats.rows))
        return {
            "loss": (0.5 * float(stats.error) + self.price * float(stats.magnitude)) / rows,
            "relative_error": float((stats.error / stats.energy.clamp(min=1e-300)).sqrt()),
            "l0": float(stats.counts.sum()) / rows,
            "dead_share": float((stats.counts == 0).double().mean()),
            "replaced": float(params[REPLACED]) if REPLACED in params else 0.0,
        }

    def dictionary(self, params: Params) -> Tensor:
        """The atoms as columns, [D, H]."""
        return params[ATOMS].T

    def memory(self, rows: int, dim: int) -> int:
        """Rows, scores and codes of a batch; the statistics of a batch, their sum and their message; parameters."""
        item = self.torch_dtype.itemsize
        per_row = dim * (3 * item + 24) + 3 * self.atoms * item + self.width * (3 * item + 32)
        own = self.statistics_numbers(dim) + (replacement.slots(self.atoms) * (dim + 2) if self.replace else 0)
        fixed = 8 * (6 * own + 4 * self.atoms**2 + 6 * self.atoms * dim)
        return rows * per_row + fixed

    def statistics_numbers(self, dim: int) -> int:
        """How many numbers this model's own sums hold: A and B."""
        return self.atoms * (self.atoms + dim)


@dataclass(frozen=True, kw_only=True)
class Coded(Factorization):
    """Codes are found by `coder`."""

    coder: Literal["omp", "lasso", "threshold"] = "omp"
    """How codes are found."""
    nonzeros: int = 5
    """Most entries of a code (omp, threshold); omp finds at most D, which is what can be independent."""
    penalty: float = 0.1
    """Weight of ‖a‖₁ (lasso), in the units of the data."""
    nonnegative: bool = False
    """Codes without negative entries (lasso)."""
    tolerance: float = 1e-4
    """Duality gap at which a row's lasso is solved, relative to ½‖x‖²."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coder not in ("omp", "lasso", "threshold"):
            raise ModelError(f"coder={self.coder!r}: choose omp, lasso or threshold")
        if self.coder != "lasso" and not 1 <= self.nonzeros <= self.atoms:
            raise ModelError(f"nonzeros={self.nonzeros} of atoms={self.atoms}: choose from 1 to {self.atoms}")
        if not 0 <= self.penalty < float("inf") or (self.coder == "lasso" and self.penalty == 0):
            raise ModelError(f"penalty={self.penalty} must be above 0, for sparse lasso codes, and finite")
        if self.nonnegative and self.coder != "lasso":
            raise ModelError(f"nonnegative codes need coder lasso, not {self.coder!r}")
        if not 0 < self.tolerance < 1:
            raise ModelError(f"tolerance={self.tolerance} must lie between 0 and 1")

    def codes(self, atoms: Tensor, x: Tensor) -> Codes:
        """By the coder."""
        atoms = atoms.to(x.dtype)
        if self.coder == "threshold":
            return threshold(x, atoms.T, nonzeros=self.nonzeros).codes
        if self.coder == "lasso":
            return lasso(x, atoms.T, self.penalty, nonnegative=self.nonnegative, tolerance=self.tolerance).codes
        return batch_omp(x, atoms.T, nonzeros=min(self.nonzeros, *atoms.shape)).codes

    def encode(self, params: Params, batch: Batch) -> Codes:
        """See `Factorization.encode`; for lasso as many columns as there can be entries, the smaller of H and D."""
        codes = super().encode(params, batch)
        return codes if self.coder != "lasso" else columned(codes, min(params[ATOMS].shape))

    @property
    def price(self) -> float:
        """The penalty, for lasso."""
        return self.penalty if self.coder == "lasso" else 0.0

    @property
    def width(self) -> int:
        """All atoms for lasso, else `nonzeros`."""
        return self.atoms if self.coder == "lasso" else self.nonzeros

    def flops(self, dim: int) -> float:
        """Scores, the coder's rows of the Gram matrix, and the sums."""
        k = self.nonzeros if self.coder != "lasso" else max(1, self.atoms // 20)
        return 2.0 * dim * self.atoms + float(k * k * self.atoms) + 4.0 * dim * k


def columned(codes: Codes, width: int) -> Codes:
    """The same codes in `width` columns; the largest entries of those that have more."""
    more = width - codes.values.shape[1]
    if more >= 0:
        pad = torch.nn.functional.pad
        return Codes(pad(codes.indices, (0, more), value=-1), pad(codes.values, (0, more)))
    best = codes.values.abs().topk(width, dim=1).indices
    return Codes(codes.indices.gather(1, best), codes.values.gather(1, best))


def extended(kind: type[CodingSums], common: CodingSums, *more: Tensor) -> CodingSums:
    """`kind` with the fields of `common` and its own."""
    return kind(*(getattr(common, f.name) for f in fields(CodingSums)), *more)
