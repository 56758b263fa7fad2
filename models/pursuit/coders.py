"""Coders by name, one line each: the ways to encode under a dictionary that is given. Each is a frozen dataclass of its
settings that can be called."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ModelError
from ..registry import configured
from .iht import Step, iht
from .lasso import Solver, lasso
from .omp import batch_omp
from .problem import Pursued, padded_to
from .simultaneous import simultaneous_omp
from .staged import Rule, staged
from .threshold import threshold


@dataclass(frozen=True, kw_only=True)
class Coder(ABC):
    """Base of all coders. Checks belong into `__post_init__` and raise `ModelError`."""

    normalises: ClassVar[bool] = True
    """Whether atoms are brought to length one inside."""

    @property
    def together(self) -> int:
        """How many consecutive rows are coded together: shards must hold whole groups of them."""
        return 1

    @abstractmethod
    def width(self, dim: int, atoms: int) -> int:
        """Columns of the codes under a dictionary [dim, atoms]."""

    @abstractmethod
    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """Codes of x [n, D] under atoms [D, H]; `gram` is their Gram matrix if it is at hand.

        It is taken as it is: as `gram_matrix` forms it, once for many calls.
        """

    def note(self, dim: int, atoms: int) -> str:
        """What is said of the settings before the first code; empty if nothing."""
        del dim, atoms
        return ""

    def __call__(self, x: Tensor, atoms: Tensor, gram: Tensor | None = None) -> Pursued:
        """As `code`, always `width` columns."""
        found = self.code(x, atoms, gram)
        return Pursued(padded_to(found.codes, self.width(*atoms.shape)), found.status, found.error)


@dataclass(frozen=True, kw_only=True)
class Greedy(Coder):
    """Base of the coders that stop at a number of non-zeros."""

    nonzeros: int = 10
    """k, most entries of a code."""

    def __post_init__(self) -> None:
        if self.nonzeros < 1:
            raise ModelError(f"nonzeros={self.nonzeros}: a code needs at least one")

    def width(self, dim: int, atoms: int) -> int:
        """k, or what can be independent."""
        return min(self.nonzeros, dim, atoms)

    def note(self, dim: int, atoms: int) -> str:
        """What is said where fewer entries are given than asked for."""
        most = self.width(dim, atoms)
        cut = f"nonzeros={self.nonzeros} is more than {atoms} atoms of {dim} dimensions allow: {most} are used"
        return cut if most < self.nonzeros else ""


@dataclass(frozen=True, kw_only=True)
class Stopped(Greedy):
    """Base of the coders that stop at a number of non-zeros or at an error, whichever comes first."""

    error: float | None = None
    """Stop where ‖x - D a‖² is at most this."""
    relative_error: float | None = None
    """Stop where ‖x - D a‖² is at most this share of ‖x‖²."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("error", "relative_error"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ModelError(f"{name}={value}: must not be negative")
        if self.error is not None and self.relative_error is not None:
            raise ModelError("error and relative_error are both given; choose one")

    def allowed(self, x: Tensor) -> Tensor | float | None:
        """The error at which each signal stops."""
        if self.relative_error is None:
            return self.error
        return self.relative_error * torch.linalg.vecdot(x, x)


@dataclass(frozen=True, kw_only=True)
class OMP(Stopped):
    """Orthogonal matching pursuit: the most correlated atom joins, all coefficients are fitted again."""

    select: Literal["omp", "ols"] = "omp"
    """omp: the most correlated atom joins; ols: the one that lowers the error most."""
    penalty: float = 0.0
    """λ of ½‖x - D a‖² + λ‖a‖₀: stop before the atom that does not lower it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < float("inf"):
            raise ModelError(f"penalty={self.penalty}: must be finite and not negative")

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `batch_omp`."""
        return batch_omp(
            *(x, atoms),
            nonzeros=self.width(*atoms.shape),
            error=self.allowed(x),
            penalty=self.penalty,
            gram=gram,
            trust_gram=True,
            select=self.select,
        )


@dataclass(frozen=True, kw_only=True)
class SOMP(Stopped):
    """Simultaneous OMP: consecutive rows share their atoms."""

    group: int = 8
    """Consecutive rows that share their atoms."""
    norm: Literal["l1", "l2"] = "l2"
    """Correlations of a group add by magnitude or by square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise ModelError(f"group={self.group}: at least one row makes a group")
        if self.norm not in ("l1", "l2"):
            raise ModelError(f"norm={self.norm!r}: choose l1 or l2")

    @property
    def together(self) -> int:
        """The group."""
        return self.group

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `simultaneous_omp`."""
        del gram
        return simultaneous_omp(
            *(x, atoms), groups=self.group, nonzeros=self.width(*atoms.shape), error=self.allowed(x), norm=self.norm
        )


@dataclass(frozen=True, kw_only=True)
class Staged(Stopped):
    """Base of the coders that exchange several atoms at a time."""

    rule: ClassVar[Rule]
    """Which pursuit."""

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `staged`."""
        return staged(
            *(x, atoms, self.rule),
            nonzeros=self.width(*atoms.shape),
            error=self.allowed(x),
            gram=gram,
            trust_gram=True,
            **self.extra(),
        )

    def extra(self) -> dict[str, Any]:
        """Further options of `staged`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class NNOMP(Staged):
    """Orthogonal matching pursuit with codes >= 0."""

    rule: ClassVar[Rule] = "nnomp"


@dataclass(frozen=True, kw_only=True)
class GOMP(Staged):
    """Generalised OMP: several atoms join at a time."""

    rule: ClassVar[Rule] = "gomp"

    group: int = 3
    """Atoms that join per stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise ModelError(f"group={self.group}: at least one atom must join")

    def extra(self) -> dict[str, Any]:
        """The group."""
        return {"group": self.group}


@dataclass(frozen=True, kw_only=True)
class StOMP(Staged):
    """Stagewise OMP: all atoms above a threshold join."""

    rule: ClassVar[Rule] = "stomp"

    strictness: float = 2.5
    """t: atoms join whose correlation exceeds t·‖r‖/√D."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strictness > 0:
            raise ModelError(f"strictness={self.strictness}: must be positive")

    def extra(self) -> dict[str, Any]:
        """The threshold."""
        return {"strictness": self.strictness}


@dataclass(frozen=True, kw_only=True)
class CoSaMP(Staged):
    """CoSaMP: 2k atoms compete with the k at hand."""

    rule: ClassVar[Rule] = "cosamp"


@dataclass(frozen=True, kw_only=True)
class SP(Staged):
    """Subspace pursuit: k atoms compete with the k at hand."""

    rule: ClassVar[Rule] = "sp"


@dataclass(frozen=True, kw_only=True)
class MP(Staged):
    """Matching pursuit: coefficients are never fitted again."""

    rule: ClassVar[Rule] = "mp"


@dataclass(frozen=True, kw_only=True)
class IHT(Greedy):
    """Iterative hard thresholding: for many non-zeros."""

    step: Step = "accelerated"
    """fixed (1/λmax), normalised, or accelerated."""
    iterations: int = 100
    """At most so many."""
    tolerance: float = 1e-6
    """Done where an iteration lowers ‖r‖² by less than this share of ‖x‖²."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ModelError(f"iterations={self.iterations}: at least one is needed")
        if not self.tolerance > 0:
            raise ModelError(f"tolerance={self.tolerance}: must be positive")

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `iht`."""
        del gram
        return iht(
            x,
            atoms,
            nonzeros=self.width(*atoms.shape),
            step=self.step,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )


@dataclass(frozen=True, kw_only=True)
class Lasso(Coder):
    """Lasso: ½‖x - D a‖² + penalty·‖a‖₁, to a duality gap."""

    normalises: ClassVar[bool] = False

    penalty: float = 0.1
    """λ; correlations below it give no entry."""
    nonnegative: bool = False
    """Demand codes >= 0."""
    nonzeros: int | None = None
    """Entries to keep, the largest; by default all that there can be."""
    tolerance: float = 1e-4
    """Largest duality gap, as a share of ½‖x‖²."""
    solver: Solver = "auto"
    """homotopy, descent, fista, or auto: homotopy; without the compiled kernels, and on GPUs, always fista."""

    def __post_init__(self) -> None:
        if not 0 < self.penalty < float("inf"):
            raise ModelError(f"penalty={self.penalty}: must be positive")
        if not self.tolerance > 0:
            raise ModelError(f"tolerance={self.tolerance}: must be positive")
        if self.nonzeros is not None and self.nonzeros < 1:
            raise ModelError(f"nonzeros={self.nonzeros}: a code needs at least one")

    def weight(self) -> float:
        """λ₂ of the elastic net."""
        return 0.0

    def width(self, dim: int, atoms: int) -> int:
        """A lasso code has no more entries than dimensions; an elastic net's may have as many as atoms."""
        return min(self.nonzeros or atoms, atoms if self.weight() > 0 else min(dim, atoms))

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `lasso`."""
        return lasso(
            x,
            atoms,
            self.penalty,
            ridge=self.weight(),
            nonnegative=self.nonnegative,
            tolerance=self.tolerance,
            nonzeros=self.width(*atoms.shape),
            solver=self.solver,
            gram=gram,
            trust_gram=True,
        )


@dataclass(frozen=True, kw_only=True)
class ElasticNet(Lasso):
    """Elastic net: the lasso and ½ ridge·‖a‖²."""

    ridge: float = 0.01
    """λ₂."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ridge < float("inf"):
            raise ModelError(f"ridge={self.ridge}: must be finite and not negative")

    def weight(self) -> float:
        """λ₂."""
        return self.ridge


@dataclass(frozen=True, kw_only=True)
class Threshold(Greedy):
    """The largest correlations, once: exact for orthonormal atoms."""

    normalises: ClassVar[bool] = False

    penalty: float = 0.0
    """Soft threshold on the correlations."""
    nonnegative: bool = False
    """Keep positive correlations only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < float("inf"):
            raise ModelError(f"penalty={self.penalty}: must be finite and not negative")

    def width(self, dim: int, atoms: int) -> int:
        """k, or all atoms: they need not be independent."""
        del dim
        return min(self.nonzeros, atoms)

    def code(self, x: Tensor, atoms: Tensor, gram: Tensor | None) -> Pursued:
        """As `threshold`."""
        del gram
        return threshold(x, atoms, nonzeros=self.nonzeros, penalty=self.penalty, nonnegative=self.nonnegative)


CODERS: dict[str, type[Coder]] = {
    "omp": OMP,
    "somp": SOMP,
    "nnomp": NNOMP,
    "gomp": GOMP,
    "stomp": StOMP,
    "cosamp": CoSaMP,
    "sp": SP,
    "mp": MP,
    "iht": IHT,
    "lasso": Lasso,
    "elasticnet": ElasticNet,
    "threshold": Threshold,
}


def load_coder_class(name: str) -> type[Coder]:
    """The coder class called `name`.

    Raises:
        ModelError: there is none; the nearest is suggested.
    """
    if name not in CODERS:
        near = difflib.get_close_matches(name, CODERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ModelError(f"unknown coder {name!r}{hint} Choose one of {', '.join(CODERS)}")
    return CODERS[name]


def make_coder(name: str, settings: dict[str, Any]) -> Coder:
    """The coder `name` with `settings`, checked.

    Raises:
        ModelError: an unknown coder or setting, a value of the wrong type or out of range.
    """
    return configured("coder", name, load_coder_class(name), settings)
