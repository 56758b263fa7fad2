"""The gradient sparse autoencoder (g-SAE): TopK that prefers latents which matter to what comes after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Params, Probe
from ..errors import ModelError
from ..kernels import top_k
from ..schedule import Stage
from .start import columns
from .sums import Rows
from .topk import TopK


@dataclass(frozen=True, kw_only=True)
class GradientTopK(TopK):
    """Gradient autoencoder (g-SAE): TopK that prefers latents with a downstream effect.

    Kept is relu(u_j) for the k largest relu(u_j) (1 + beta sqrt(D) |<atom_j, g>|).

    g is the gradient of a downstream loss, summed over positions, by the row that is reconstructed; the data set holds
    it in the array `gradients`. It enters in the units in which its norm is 1 on average, which is independent of the
    scale of the data (scaling rows by s divides their gradients by s). Selection itself is not differentiated.
    """

    beta: float = 1.0
    """Weight of the downstream effect; 0: plain TopK."""
    gradients: str = "gradients"
    """Array of the data set that holds g."""
    encode_by: Literal["activation", "gradient"] = "activation"
    """How `encode` selects: as plain TopK, which needs no gradients, or as in training."""

    atom_parallel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ModelError(f"beta={self.beta} must be 0 or more")
        if self.encode_by not in ("activation", "gradient"):
            raise ModelError(f"encode_by={self.encode_by!r}: choose activation or gradient")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays of the data set that make up a row, side by side."""
        return (*super().arrays, self.gradients)

    def init_own(self, params: Params, probe: Probe) -> Params:
        """`gradient_scale`: what gives the sample's gradients a mean norm of 1."""
        gradients = columns(probe, len(self.arrays))[-1]
        if gradients.shape[1] != params["W_dec"].shape[1]:
            raise ModelError(
                f"array {self.gradients!r} has {gradients.shape[1]} columns, but the decoder's rows have "
                f"{params['W_dec'].shape[1]}: it must hold one number for each of them"
            )
        mean = float(torch.linalg.vector_norm(gradients, dim=1).mean())
        scale = torch.tensor(1 / mean if mean > 0 else 1.0)
        return {"gradient_scale": scale.to(params["scale"])}

    def code(self, params: Params, rows: Rows, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.code`; where g takes part the rows need all of `arrays`.

        Raises:
            ModelError: they have not.
        """
        if stage is None and self.encode_by == "activation":
            return self.chosen(params, rows, super().select)
        width = self.input_dim(params) + (len(self.arrays) - 1) * params["W_dec"].shape[1]
        if rows.raw.shape[1] != width:
            raise ModelError(
                f"rows have {rows.raw.shape[1]} columns, but {', '.join(self.arrays)} side by side have {width}"
            )
        return super().code(params, rows, stage)

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        dim = params["W_dec"].shape[1]
        effect = (raw[:, -dim:] * params["gradient_scale"]) @ params["W_dec"].T
        values = u.clamp_(min=0)
        _, indices = top_k(effect.abs_().mul_(self.beta * dim**0.5).add_(1).mul_(values), self.k)
        return indices, values.gather(1, indices)

    @property
    def encode_arrays(self) -> tuple[str, ...]:
        """Arrays of the data set that `encode` reads."""
        return self.arrays if self.encode_by == "gradient" else self.arrays[:1]
