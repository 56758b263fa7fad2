"""An orthonormal dictionary by alternating exact steps: the largest entries of D x, then D from one singular value
decomposition (Lesage, Gribonval, Bimbot, Benaroya, ICASSP 2005; Bao, Cai, Ji, ICCV 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..base import Batch, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .coding import ATOMS, Coded, extended
from .steps import polar
from .sums import CodingSums, MomentSums, cross_of


@dataclass(frozen=True, kw_only=True)
class Procrustes(Coded):
    """At most D orthonormal atoms, by alternating exact steps; the squared error never rises."""

    coder: Literal["omp", "lasso", "threshold"] = "threshold"
    """`threshold` is exact for orthonormal atoms."""
    replace: bool = False
    """Never: none can be coherent, and the polar factor turns unused ones into what the others leave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replace:
            raise ModelError("replace=True: orthonormal atoms are not replaced; leave it at false")

    def schedule(self) -> Schedule:
        """Forty passes."""
        return Schedule(passes=40, update_every="pass", batch_rows=4096)

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """A random orthonormal system.

        Raises:
            ModelError: more atoms than dimensions.
        """
        if self.atoms > probe.dim:
            raise ModelError(
                f"atoms={self.atoms}: there are at most {probe.dim} orthonormal atoms for rows of {probe.dim} "
                "dimensions"
            )
        drawn = torch.randn(self.atoms, probe.dim, generator=generator, dtype=torch.float64)
        return polar(drawn.to(probe.mean.device))

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """A given dictionary's nearest orthonormal one."""
        adopted = super().adopt(name, given, own)
        return polar(adopted).to(own.dtype) if name == ATOMS else adopted

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> CodingSums:
        """B and the common sums; A is not needed."""
        codes, residual = self.coded(params, batch)
        common = self.common_sums(params, batch, codes, residual, stage)
        return extended(MomentSums, common, common.counts.new_zeros(0), cross_of(codes, batch.x, self.atoms))

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """The orthonormal dictionary of least squared error: the polar factor of B."""
        assert isinstance(stats, MomentSums)
        if not bool(stats.cross.any()):
            return params
        # Directions that no code uses are those of the dictionary before: a singular B must not draw new ones.
        scale = 1e-9 * torch.linalg.matrix_norm(stats.cross)
        return {**params, ATOMS: polar(stats.cross + scale * params[ATOMS].double()).to(self.torch_dtype)}

    def statistics_numbers(self, dim: int) -> int:
        """B."""
        return self.atoms * dim
