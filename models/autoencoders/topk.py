"""The TopK sparse autoencoder with the auxiliary loss for dead latents (Gao et al. 2024, "Scaling and evaluating sparse
autoencoders").

    u = W_enc (s x - b_dec) + b_enc,   z = the k largest entries of relu(u),   s x ~ W_dec^T z + b_dec

The loss of a row is |s x - W_dec^T z - b_dec|^2 plus `aux_coefficient` times the AuxK term: dead latents (that have
not fired for `dead_tokens` rows) predict the residual with their own `aux_k` largest pre-activations. Rows of W_dec
have norm 1; the gradient along them is removed before each step (Bricken et al. 2023).

Statistics are the gradient of the loss summed over rows. Two quantities that would tie the rows of a batch together
come from the parameters instead, so that gradients add: the set of dead latents is the one before the batch, and the
AuxK term is normalised by the residual's variance in the previous update.

Shapes: n rows, D dimensions, H latents (atoms), M dead latents, k and k_aux kept entries. W_enc and W_dec are both
[H, D], so that every sparse operation gathers rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..schedule import Schedule, Stage
from .adam import Adam, Moments, warm_and_decay
from .selection import chunk_rows, top_k
from .sparse import Code, Gradients, make_code
from .start import geometric_median, root_dim_scale, unit_rows

WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")
FIRST, SECOND = f"{TRAINING}first/", f"{TRAINING}second/"
STEPS, TOKENS, SILENT = f"{TRAINING}steps", f"{TRAINING}tokens", f"{TRAINING}silent"
DEAD, RESIDUAL, VARIANCE = f"{TRAINING}dead_tokens", f"{TRAINING}residual_variance", f"{TRAINING}variance"


@dataclass(frozen=True, slots=True)
class GradientSums(Stats):
    """Sums over rows, in the scaled units s x."""

    encoder: Tensor
    """[H, D] gradient with respect to W_enc."""
    decoder: Tensor
    """[H, D] gradient with respect to W_dec, not yet projected."""
    encoder_bias: Tensor
    """[H]"""
    decoder_bias: Tensor
    """[D]"""
    fired: Tensor
    """[H] rows in which a latent was kept with a value above 0."""
    residual: Tensor
    """[D] sum of e = s x - reconstruction."""
    squared: Tensor
    """Sum of |e|^2."""
    auxiliary: Tensor
    """Sum of |e - prediction of the dead latents|^2; 0 while there are none."""
    rows: Tensor
    """Number of rows."""


class _Aux(NamedTuple):
    """What the AuxK term needs besides the batch."""

    dead: Tensor
    """[M] int64, latents."""
    k: int
    factor: float
    """min(M / k_aux, 1) / variance of the residual."""


@dataclass(frozen=True, kw_only=True)
class TopK(Model):
    """TopK sparse autoencoder trained by Adam.

    `codes` are in the units of the data: a row is approximately `dictionary @ code + b_dec / scale`.
    """

    k: int = 32
    """Active latents per row."""
    aux_k: int | None = None
    """Dead latents that predict the residual of a row; None: D / 2, at most 512."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK term; 0 switches it off."""
    dead_tokens: int | None = None
    """Rows without firing after which a latent is dead; None: a tenth of the run's rows, at most 10 million."""
    learning_rate: float | None = None
    """Peak learning rate; None: 2e-4 / sqrt(H / 2^14). It rises and falls as `warm_and_decay` says, and a schedule
    for `learning_rate` multiplies it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = 6.25e-10
    """Adam's epsilon."""
    clip: float | None = 1.0
    """Largest norm of the gradient of all weights, after the projection; None: no limit."""
    normalize: Literal["none", "scalar"] = "scalar"
    """"scalar" multiplies the data by one number so that the mean norm of a row is sqrt(D): learning rates then carry
    over between data sets."""

    ramp_names: ClassVar[tuple[str, ...]] = ("learning_rate",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.atoms:
            raise ModelError(f"k={self.k} active latents of atoms={self.atoms}: choose k from 1 to {self.atoms}")
        for name in ("aux_k", "dead_tokens", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ModelError(f"{name}={value} must be above 0 (or None for its default)")
        if not self.aux_coefficient >= 0:
            raise ModelError(f"aux_coefficient={self.aux_coefficient} must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ModelError(f"betas={self.betas} must lie in [0, 1)")
        if not self.eps > 0:
            raise ModelError(f"eps={self.eps} must be above 0")
        if self.normalize not in ("none", "scalar"):
            raise ModelError(f"normalize={self.normalize!r}: choose none or scalar")

    def schedule(self) -> Schedule:
        """Twenty passes in batches of 1024 rows: a thousand updates on 50,000 rows."""
        return Schedule(passes=20, update_every="batch", batch_rows=1024)

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """Unit random rows for W_enc = W_dec, no encoder bias, the geometric median of the sample as b_dec."""
        dtype = self.torch_dtype
        scale = root_dim_scale(probe.sample) if self.normalize == "scalar" else 1.0
        # Drawn in float32 for either dtype, so that both start from the same numbers.
        drawn = torch.randn(self.atoms, probe.dim, generator=generator, device=generator.device)
        weights = unit_rows(drawn.to(dtype))
        device = weights.device
        params: Params = {
            "W_enc": weights,
            "W_dec": weights.clone(),
            "b_enc": torch.zeros(self.atoms, dtype=dtype, device=device),
            "b_dec": (scale * geometric_median(probe.sample)).to(device, dtype),
            "scale": torch.tensor(scale, dtype=dtype, device=device),
        }
        for name in WEIGHTS:
            params[FIRST + name] = torch.zeros_like(params[name])
            params[SECOND + name] = torch.zeros_like(params[name])
        for name in (STEPS, TOKENS):
            params[name] = torch.zeros((), dtype=torch.int64, device=device)
        params[SILENT] = torch.zeros(self.atoms, dtype=torch.int64, device=device)
        # No latent can be dead before the first update.
        params[DEAD] = torch.ones((), dtype=torch.int64, device=device)
        params[RESIDUAL] = torch.zeros((), dtype=dtype, device=device)
        params[VARIANCE] = probe.variance.sum().to(device, dtype)
        return params

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> GradientSums:
        """The gradient of the loss summed over the batch's rows, and the sums behind the counters and metrics."""
        del stage
        rows = batch.x.shape[0]
        zero = params["b_dec"].new_zeros(())
        if rows == 0:
            empty = {name: torch.zeros_like(params[name]) for name in WEIGHTS}
            fired, residual = torch.zeros_like(params["b_enc"]), torch.zeros_like(params["b_dec"])
            return GradientSums(
                empty["W_enc"], empty["W_dec"], empty["b_enc"], empty["b_dec"], fired, residual, zero, zero, zero
            )
        centred = batch.x * params["scale"] - params["b_dec"]
        aux = self._auxiliary(params)
        (indices, values), dead_code = self._select(params, centred, aux)
        code = make_code(indices, values, self.atoms)
        error = code.decode(params["W_dec"]).sub_(centred)
        upstream = 2 * error
        gradients = code.gradients(params["W_dec"], upstream, centred)
        loss = (
            zero
            if aux is None or dead_code is None
            else self._add_auxiliary(params, gradients, aux, make_code(*dead_code, aux.dead.numel()), error, centred)
        )
        # b_dec is added to the output and subtracted from the input of the encoder.
        decoder_bias = upstream.sum(0) - gradients.bias @ params["W_enc"]
        return GradientSums(
            encoder=gradients.encoder,
            decoder=gradients.decoder,
            encoder_bias=gradients.bias,
            decoder_bias=decoder_bias,
            fired=zero.new_zeros(self.atoms).index_add_(0, indices.flatten(), (values > 0).to(zero.dtype).flatten()),
            residual=-error.sum(0),
            squared=error.square().sum(),
            auxiliary=loss,
            rows=zero + rows,
        )

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """One Adam step along the mean gradient, then unit atoms and the counters of silent latents."""
        assert isinstance(stats, GradientSums)
        rows = int(stats.rows)
        if rows == 0:
            return dict(params)
        along = (stats.decoder * params["W_dec"]).sum(1, keepdim=True)
        sums = {
            "W_enc": stats.encoder,
            "W_dec": torch.addcmul(stats.decoder, along, params["W_dec"], value=-1),
            "b_enc": stats.encoder_bias,
            "b_dec": stats.decoder_bias,
        }
        norm = float(torch.stack([torch.linalg.vector_norm(g) for g in sums.values()]).norm()) / rows
        factor = min(1.0, self.clip / (norm + 1e-6)) if self.clip is not None else 1.0
        steps = int(params[STEPS]) + 1
        adam = Adam(rate=self.rate(stage), betas=self.betas, eps=self.eps, count=steps)
        new = dict(params)
        for name, total in sums.items():
            old = Moments(params[name], params[FIRST + name], params[SECOND + name])
            moments = adam.step(old, total, factor / rows)
            new[name], new[FIRST + name], new[SECOND + name] = moments.value, moments.first, moments.second
        new["W_dec"] = unit_rows(new["W_dec"])
        tokens = int(params[TOKENS]) + rows
        new[STEPS] = torch.full_like(params[STEPS], steps)
        new[TOKENS] = torch.full_like(params[TOKENS], tokens)
        new[SILENT] = torch.where(stats.fired > 0, 0, params[SILENT] + rows)
        new[DEAD] = torch.full_like(params[DEAD], self._dead_after(stage.steps * tokens / steps))
        new[RESIDUAL] = stats.squared / rows - (stats.residual / rows).square().sum()
        return new

    def rate(self, stage: Stage) -> float:
        """The learning rate of one update."""
        peak = self.learning_rate if self.learning_rate is not None else 2e-4 * (2**14 / self.atoms) ** 0.5
        return peak * warm_and_decay(stage.step, stage.steps) * stage.get("learning_rate", 1.0)

    def encode(self, params: Params, batch: Batch) -> Codes:
        """At most k entries a row, the largest first, in the units of the data (see `reconstruct`)."""
        centred = batch.x * params["scale"] - params["b_dec"]
        (indices, values), _ = self._select(params, centred, None)
        values, order = values.sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order).masked_fill_(values <= 0, -1)
        return Codes(indices.to(torch.int32), values / params["scale"])

    def reconstruct(self, params: Params, codes: Codes) -> Tensor:
        """The rows [n, D] that `codes` stand for, in the units of the data: codes @ W_dec + b_dec / scale."""
        code = make_code(codes.indices.clamp(min=0).long(), codes.values, self.atoms)
        return code.decode(params["W_dec"]) + params["b_dec"] / params["scale"]

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Means over the rows of the update.

        loss: squared error of a row, in the units of the data; fvu: the same divided by the data set's variance (0
        where the data do not vary); explained_variance: 1 - fvu; l0: latents that fired in a row; dead_fraction:
        latents that had not fired for `dead_tokens` rows; aux_loss: the AuxK term without its coefficient.
        """
        assert isinstance(stats, GradientSums)
        rows = max(1.0, float(stats.rows))
        loss = float(stats.squared / params["scale"].square()) / rows
        variance = float(params[VARIANCE])
        fvu = loss / variance if variance > 0 else 0.0
        aux = self._auxiliary(params)
        return {
            "loss": loss,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "l0": float(stats.fired.sum()) / rows,
            "dead_fraction": float((params[SILENT] >= params[DEAD]).double().mean()),
            "aux_loss": aux.factor * float(stats.auxiliary) / rows if aux is not None else 0.0,
        }

    def dictionary(self, params: Params) -> Tensor:
        """The decoder's atoms as columns, [D, H], each of norm 1."""
        return params["W_dec"].T

    def memory(self, rows: int, dim: int) -> int:
        """Bytes at the peak: parameters and moments before and after an update with its gradients, or a batch's
        gradients on the way to their sum, whichever is more; beside it what a batch needs."""
        item = self.torch_dtype.itemsize
        weights = self.atoms * (dim * item + 40)
        aux_k = min(self._aux_k(dim), self.atoms) if self.aux_coefficient > 0 else 0
        # Matrices [H, D]: old and new parameters 12, the sums and their flat copy 4, the step's own 3; an allocator
        # that does not give freed memory back at once takes the rest.
        update = 22 * weights
        # Parameters 6, sums so far, of this batch and of both 6, and the previous update's 4.
        statistics = 16 * weights
        chunk = chunk_rows(rows, self.atoms, item, torch.device("cpu")) * self.atoms * item
        batch = rows * (6 * dim * item + (self.k + aux_k) * (40 + 6 * item))
        return max(update, statistics + 5 * chunk // 2 + batch)

    def flops(self, dim: int) -> float:
        """The encoder's product and four sparse ones."""
        return 2.0 * dim * self.atoms + 8.0 * dim * self.k

    def _aux_k(self, dim: int) -> int:
        return self.aux_k if self.aux_k is not None else max(1, min(512, dim // 2))

    def _dead_after(self, tokens: float) -> int:
        """Rows of silence that make a latent dead in a run of `tokens` rows."""
        return self.dead_tokens if self.dead_tokens is not None else max(1, int(min(1e7, 0.1 * tokens)))

    def _auxiliary(self, params: Params) -> _Aux | None:
        """The AuxK term that the parameters imply, or None where it is 0."""
        dead = (params[SILENT] >= params[DEAD]).nonzero().flatten()
        variance = float(params[RESIDUAL])
        if self.aux_coefficient == 0 or dead.numel() == 0 or not variance > 0:
            return None
        aux_k = self._aux_k(params["b_dec"].shape[0])
        return _Aux(dead, min(aux_k, dead.numel()), min(dead.numel() / aux_k, 1.0) / variance)

    def _select(
        self, params: Params, centred: Tensor, aux: _Aux | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """(indices, values >= 0) of the k largest latents of each row, and of the aux.k largest dead ones, whose
        indices count within `aux.dead`. Holds the pre-activations of a few rows at a time."""
        n = centred.shape[0]
        size = chunk_rows(n, self.atoms, centred.element_size(), centred.device)
        buffer = centred.new_empty(size, self.atoms)
        main: list[tuple[Tensor, Tensor]] = []
        dead: list[tuple[Tensor, Tensor]] = []
        for rows in centred.split(size):
            u = torch.addmm(params["b_enc"], rows, params["W_enc"].T, out=buffer[: rows.shape[0]])
            main.append(top_k(u, self.k))
            if aux is not None:
                dead.append(top_k(u[:, aux.dead], aux.k))
        return _join(main), _join(dead) if aux is not None else None

    def _add_auxiliary(
        self, params: Params, gradients: Gradients, aux: _Aux, code: Code, error: Tensor, centred: Tensor
    ) -> Tensor:
        """Adds the AuxK term's gradient to `gradients` in place; returns the summed squared error that it leaves."""
        decoder = params["W_dec"][aux.dead]
        left = code.decode(decoder).add_(error)
        part = code.gradients(decoder, left * (2 * self.aux_coefficient * aux.factor), centred)
        gradients.encoder.index_add_(0, aux.dead, part.encoder)
        gradients.decoder.index_add_(0, aux.dead, part.decoder)
        gradients.bias.index_add_(0, aux.dead, part.bias)
        return left.square_().sum()


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Chunks of (values, indices) as one (indices, values) with relu applied."""
    values, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return indices, values.clamp_(min=0)
