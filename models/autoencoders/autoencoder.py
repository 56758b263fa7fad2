"""What all sparse autoencoders share: one hidden layer whose code is sparse, taught by gradients.

    u = W_enc (s x - b_dec) + b_enc,   z = σ(u),   s x ~ W_dec^T z + b_dec

A variant is its activation σ, a choice of entries of u that stay (one step of proximal gradient descent from z = 0,
whatever the penalty), and what its loss adds to the squared error |s x - W_dec^T z - b_dec|^2. An active entry is one
that is not 0, whatever its sign. Latents that have not fired for `dead_tokens` rows are revived by AuxK
(`auxiliary.py`). Rows of W_dec have norm 1; the gradient along them is removed before each step (Bricken et al. 2023).
Those of an autoencoder that was imported may have any norm; they are normalised where a run starts from it.

With `target` the decoder predicts another array of the data set instead of the rows themselves (a transcoder, Dunefsky
et al. 2024): s' y ~ W_dec^T z + b_dec, and nothing is subtracted from x.

Statistics are the gradient of the loss summed over rows. Quantities that would tie the rows of a batch together come
from the parameters or from a survey instead, so that gradients add.

Where peers share the latents (`sliced`), each encodes all rows with its own, the sum of all their reconstructions is
what the loss is of, and gradients of latents stay where they are.

Shapes: n rows, D dimensions in, E out (D = E without `target`), H latents (atoms), of which a worker holds H / A. W_enc
[H, D] and W_dec [H, E] both lie latent by latent, so that every sparse operation gathers rows.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ..base import Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..kernels import Adam, Moments, tangent
from ..peers import ALONE, Peers
from ..peers import total as over_peers
from ..schedule import Schedule, Stage
from . import start
from .auxiliary import Auxiliary, add_auxiliary, auxiliary, auxiliary_bytes
from .names import DEAD, FIRST, RESIDUAL, SECOND, SILENT, STEPS, TOKENS, VARIANCE
from .rates import warm_and_decay
from .selection import Precision, check_precision, chunk_rows, joined, pre_activations
from .sparse import Code, make_code
from .sums import GradientSums, Rows, zeros

LOG = logging.getLogger(__name__)
WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Model):
    """A sparse autoencoder trained by Adam.

    `codes` are in the units of the data: a row is approximately `dictionary @ code + b_dec / scale`.
    """

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
    target: str | None = None
    """Array of the data set that is to be predicted from the rows (a transcoder); None: the rows themselves."""
    code_width: int | None = None
    """Entries that `encode` keeps of a row, the largest; None: all of a row that has k, else at most 512."""
    encoder_precision: Literal["tf32", "bfloat16"] | None = None
    """Precision of the encoder's product, by far the largest, under float32: "bfloat16" or "tf32" (GPUs) are faster
    where the hardware has them. Selected entries are computed again in full precision; `relu`, `gated` and `jumprelu`
    take the rounded ones. None: that of `dtype`, as everything else."""

    ramp_names: ClassVar[tuple[str, ...]] = ("learning_rate",)
    ramp_limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "learning_rate": (0, math.inf),
        "sparsity": (0, math.inf),
    }
    signed: ClassVar[bool] = False
    """Whether codes may be below 0."""
    own: ClassVar[tuple[str, ...]] = ()
    """Weights beside `WEIGHTS`, [H] each."""
    tallies: ClassVar[int] = 0
    """Sums beside those of every variant, [H] each."""
    atom_parallel: ClassVar[bool] = False
    """Whether this variant can be `sliced`."""
    peers: ClassVar[Peers] = ALONE
    """Those who hold the other latents; set by `sliced`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("aux_k", "dead_tokens", "learning_rate", "clip", "code_width"):
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
        own = type(self).__name__ if self.selects_its_own_way else ""
        check_precision(self.encoder_precision, target=self.target, selection=own)

    # -- what a variant is -----------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The (indices, values) of the codes of some rows, [m, w] each, empty slots having value 0.

        Args:
            params: the parameters.
            u: [m, H] pre-activations; may be overwritten.
            raw: [m, …] the rows themselves, with all columns that the model reads.
        """

    def code(self, params: Params, rows: Rows, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """(indices, values) of the codes of all rows; `stage` is None where nothing is learned."""
        del stage
        return self.chosen(params, rows, self.select)

    def chosen(
        self, params: Params, rows: Rows, select: Callable[[Params, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What `select` takes of all rows, in full precision."""
        found = pre_activations(rows.inputs, params["W_enc"], params["b_enc"], self.rounding)
        parts = ((at, select(params, u, rows.raw[at])) for at, u in found)
        return joined([self.exact(params, rows.inputs[at], *code) for at, code in parts])

    def exact(self, params: Params, inputs: Tensor, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The code that was chosen, with values in the precision of `inputs` [m, D] where they were rounded."""
        del params, inputs
        return indices, values

    def add_rows(self, sums: GradientSums, params: Params, rows: Rows, stage: Stage) -> Tensor:
        """Add the rows' gradients and counts to `sums`; returns reconstruction - target, [n, E]."""
        return self.fit(sums, params, make_code(*self.code(params, rows, stage), self.held), rows)

    def own_gradients(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """Gradients of `own`, summed over rows like all others."""
        del params, sums, stage
        return {}

    def pull(self, params: Params, sums: GradientSums) -> Tensor:
        """[H] the loss's derivative by the pre-activations before their bias, summed over rows."""
        del params
        return sums.encoder_bias

    def finish(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """What changes after Adam's step: the parameters that do."""
        del params, sums, stage
        return {}

    def pieces(self, rows: int) -> int:
        """Rows that `add_rows` gets at once."""
        return rows

    # -- latents that others hold ----------------------------------------------------------------------------------

    def sliced(self, peers: Peers) -> Self:
        """See `Model.sliced`; the worker of rank a holds the latents from a H / A on."""
        # What selects in its own way does not know of the other peers' entries, unless its class says that it does.
        if not self.atom_parallel or (self.selects_its_own_way and "atom_parallel" not in vars(type(self))):
            return super().sliced(peers)
        if self.atoms % peers.size:
            raise ModelError(f"atom_groups={peers.size} do not divide atoms={self.atoms}: choose a number that does")
        mine = replace(self)
        object.__setattr__(mine, "peers", peers)
        return mine

    @property
    def selects_its_own_way(self) -> bool:
        """Whether `select` is defined elsewhere than here: a selection of a user's own."""
        return type(self).select.__module__.rpartition(".")[0] != __package__

    @property
    def held(self) -> int:
        """Latents on this worker."""
        return self.atoms // self.peers.size

    @property
    def first(self) -> int:
        """The first of them."""
        return self.held * self.peers.rank

    @property
    def per_atom(self) -> tuple[str, ...]:
        """Weights of latents with their moments, and how long each was silent."""
        weights = [name for name in (*WEIGHTS, *self.own) if name != "b_dec"]
        return (*(before + name for name in weights for before in ("", FIRST, SECOND)), SILENT)

    def peer_bytes(self, rows: int, dim: int) -> int:
        """A ring's part of the reconstructions, once more for AuxK, and what each offers for the selections."""
        item, side, others = self.torch_dtype.itemsize, int(dim / len(self.arrays)), self.peers.size - 1
        aux = self.aux_coefficient > 0
        offered = self.offered() + (min(self._aux_k(side), self.held) if aux else 0)
        return int(rows * item * others * ((1 + aux) * 2 * side / self.peers.size + offered))

    def offered(self) -> int:
        """Values of a row that a peer offers for the selection; 0 where it selects alone."""
        return 0

    # -- the contract ----------------------------------------------------------------------------------------------

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays of the data set that make up a row, side by side."""
        return ("data",) if self.target is None else ("data", self.target)

    def schedule(self) -> Schedule:
        """Twenty passes in batches of 1024 rows: a thousand updates on 50,000 rows."""
        return Schedule(passes=20, update_every="batch", batch_rows=1024)

    def init(self, probe: Probe, generator: torch.Generator) -> Params:
        """Unit random rows for W_enc = W_dec, no encoder bias, the geometric median of the sample as b_dec.

        With `target` W_dec is drawn apart, and b_enc subtracts the geometric median of x.
        """
        dtype, device = self.torch_dtype, generator.device
        parts = start.columns(probe, len(self.arrays))
        inputs, outputs = parts[0], parts[0 if self.target is None else 1]
        scales = [start.root_dim_scale(part) if self.normalize == "scalar" else 1.0 for part in (inputs, outputs)]
        held = slice(self.first, self.first + self.held)
        encoder = start.random_rows(self.atoms, inputs.shape[1], generator, held).to(dtype)
        params: Params = {
            "W_enc": encoder,
            "W_dec": encoder.clone(),
            "b_enc": torch.zeros(self.held, dtype=dtype, device=device),
            "b_dec": (scales[1] * start.geometric_median(outputs)).to(device, dtype),
            "scale": torch.tensor(scales[0], dtype=dtype, device=device),
        }
        if self.target is not None:
            centre = (scales[0] * start.geometric_median(inputs)).to(device, dtype)
            params["W_dec"] = start.random_rows(self.atoms, outputs.shape[1], generator, held).to(dtype)
            params["b_enc"] = -(encoder @ centre)
            params["target_scale"] = torch.tensor(scales[1], dtype=dtype, device=device)
        params |= self.init_own(params, probe)
        for name in (*WEIGHTS, *self.own):
            params[FIRST + name] = torch.zeros_like(params[name])
            params[SECOND + name] = torch.zeros_like(params[name])
        for name in (STEPS, TOKENS):
            params[name] = torch.zeros((), dtype=torch.int64, device=device)
        params[SILENT] = torch.zeros(self.held, dtype=torch.int64, device=device)
        # No latent can be dead before the first update.
        params[DEAD] = torch.ones((), dtype=torch.int64, device=device)
        params[RESIDUAL] = torch.zeros((), dtype=dtype, device=device)
        params[VARIANCE] = outputs.var(0, correction=0).sum().to(device, dtype)
        return params

    def init_own(self, params: Params, probe: Probe) -> Params:
        """Parameters that only this variant has, `own` among them."""
        del params, probe
        return {}

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """See `Model.adopt`; given atoms are normalised, which is said (rows of zeros stay)."""
        taken = super().adopt(name, given, own)
        if name != "W_dec":
            return taken
        changed = int(((torch.linalg.vector_norm(given, dim=1) - 1).abs() > 1e-4).sum())
        if changed:
            LOG.warning("%d of %d given atoms did not have norm 1 and were normalised", changed, len(given))
        return start.unit_rows(given).to(own.dtype)

    def statistics(self, params: Params, batch: Batch, stage: Stage) -> GradientSums:
        """The gradient of the loss summed over the batch's rows, and the sums behind the counters and metrics."""
        sums = zeros(params, self.tallies)
        term = self._auxiliary(params)
        for rows in self._rows(params, batch):
            error = self.add_rows(sums, params, rows, stage)
            if term is not None:
                add_auxiliary(sums, params, term, rows, error, self.aux_coefficient, self.peers, signed=self.signed)
            sums.residual.sub_(error.sum(0))
            sums.squared.add_(error.square().sum())
        sums.rows.add_(batch.x.shape[0])
        if self.target is None:
            # b_dec is added to the output and subtracted from the input of the encoder.
            sums.decoder_bias.sub_(self.pull(params, sums) @ params["W_enc"])
        return sums

    def fit(self, sums: GradientSums, params: Params, code: Code, rows: Rows, slope: float = 0.0) -> Tensor:
        """Add the squared error's gradients, and the code's counts; returns reconstruction - target, [n, E]."""
        error = over_peers(self.peers, code.decode(params["W_dec"])).sub_(rows.targets)
        upstream = 2 * error
        code.add_gradients(sums.weights, params["W_dec"], upstream, rows.inputs, slope)
        self.add_bias(sums, upstream)
        sums.l1.add_(code.count(sums.fired, sums.negative))
        return error

    def add_bias(self, sums: GradientSums, upstream: Tensor) -> None:
        """Add the gradient of b_dec as it is added to the output; what all peers know alike the first one counts."""
        if self.peers.rank == 0:
            sums.decoder_bias.add_(upstream.sum(0))

    def update(self, params: Params, stats: Stats, stage: Stage) -> Params:
        """One Adam step along the mean gradient, then unit atoms and the counters of silent latents.

        Raises:
            ModelError: the gradient is not finite.
        """
        assert isinstance(stats, GradientSums)
        rows = int(stats.rows)
        if rows == 0:
            return dict(params)
        atoms = tangent(stats.decoder, params["W_dec"])
        gradients = {"W_enc": stats.encoder, "b_enc": stats.encoder_bias}
        gradients |= self.own_gradients(params, stats, stage)
        norms = torch.stack([torch.linalg.vector_norm(g).double() for g in gradients.values()])
        squares = norms.square().sum() + atoms.norm**2
        parts = over_peers(self.peers, torch.cat([stats.decoder_bias.double(), squares[None]]))
        gradients["b_dec"] = parts[:-1].to(stats.decoder_bias)
        norm = float((parts[-1] + parts[:-1].square().sum()).sqrt()) / rows
        steps = int(params[STEPS]) + 1
        if not math.isfinite(norm):
            raise ModelError(f"the gradient is not finite at update {steps}: lower learning_rate={self.peak:.3g}")
        factor = min(1.0, self.clip / (norm + 1e-6)) if self.clip is not None else 1.0
        adam = Adam(rate=self.rate(stage) * self.warmth(params, stage), betas=self.betas, eps=self.eps, count=steps)
        new = dict(params)
        for name, total in (gradients | {"W_dec": stats.decoder}).items():
            old = Moments(params[name], params[FIRST + name], params[SECOND + name])
            moments = adam.step(old, total, factor / rows, orthogonal=atoms if name == "W_dec" else None)
            new[name], new[FIRST + name], new[SECOND + name] = moments.value, moments.first, moments.second
        tokens = int(params[TOKENS]) + rows
        new[STEPS] = torch.full_like(params[STEPS], steps)
        new[TOKENS] = torch.full_like(params[TOKENS], tokens)
        new[SILENT] = torch.where(stats.fired > 0, 0, params[SILENT] + rows)
        new[DEAD] = torch.full_like(params[DEAD], self._dead_after(stage.steps * tokens / steps))
        new[RESIDUAL] = stats.squared / rows - (stats.residual / rows).square().sum()
        return new | self.finish(new, stats, stage)

    @property
    def peak(self) -> float:
        """The largest learning rate of a run."""
        return self.learning_rate if self.learning_rate is not None else 2e-4 * (2**14 / self.atoms) ** 0.5

    def rate(self, stage: Stage) -> float:
        """The learning rate of one update."""
        return self.peak * warm_and_decay(stage.step, stage.steps) * stage.get("learning_rate", 1.0)

    def warmth(self, params: Params, stage: Stage) -> float:
        """Factor of the learning rate that depends on what happened in the run."""
        del params, stage
        return 1.0

    @property
    def rounding(self) -> Precision | None:
        """`encoder_precision` where it is less than that of `dtype`."""
        return self.encoder_precision if self.dtype == "float32" else None

    def prepare(self, params: Params) -> Params:
        """`params` in this model's dtype, which may be another one than that of learning."""
        return {n: p.to(self.torch_dtype) if p.is_floating_point() and p.ndim else p for n, p in params.items()}

    def encode(self, params: Params, batch: Batch) -> Codes:
        """The active entries of each row, the largest magnitude first, in the units of the data (see `reconstruct`): as
        many as fit into `slots`."""
        return self.codes(params, batch, self.slots())

    def codes(self, params: Params, batch: Batch, width: int | None = None) -> Codes:
        """The same in `width` columns; None: all entries, in as many columns as the fullest row needs."""
        inputs = self._inputs(params, batch.x)
        indices, values = self.code(params, Rows(inputs, inputs, batch.x), None)
        width = values.shape[1] if width is None else width
        if values.shape[1] < width:
            indices, values = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (indices, values))
        order = values.abs().sort(dim=1, descending=True, stable=True).indices[:, :width]
        values = values.gather(1, order)
        indices = indices.gather(1, order).masked_fill_(values == 0, -1)
        return Codes(indices.to(torch.int32), values / self._target_scale(params))

    def slots(self) -> int:
        """Entries of a row that `encode` returns, empty ones included."""
        return min(self.atoms, self.code_width if self.code_width is not None else 512)

    def entries(self) -> int:
        """Entries of a row's code while learning, empty ones included."""
        return self.slots()

    def reconstruct(self, params: Params, codes: Codes) -> Tensor:
        """The rows [n, E] that `codes` stand for, in the units of the data: codes @ W_dec + b_dec / scale."""
        code = make_code(codes.indices.clamp(min=0).long(), codes.values, self.atoms)
        return code.decode(params["W_dec"]) + params["b_dec"] / self._target_scale(params)

    def metrics(self, params: Params, stats: Stats) -> dict[str, float]:
        """Means over the rows of the update.

        loss: squared error of a row, in the units of the data; fvu: the same divided by the data set's variance (0
        where the data do not vary); explained_variance: 1 - fvu; l0: active latents of a row; l1: Σ |code| of a row,
        in the units of the data; dead_fraction: latents that had not fired for `dead_tokens` rows; aux_loss: the AuxK
        term without its coefficient.
        """
        assert isinstance(stats, GradientSums)
        rows, scale = max(1.0, float(stats.rows)), self._target_scale(params)
        loss = float(stats.squared / scale.square()) / rows
        variance = float(params[VARIANCE])
        fvu = loss / variance if variance > 0 else 0.0
        term = self._auxiliary(params)
        dead = (params[SILENT] >= params[DEAD]).sum()
        l0, l1, dead = over_peers(self.peers, torch.stack([stats.fired.sum(), stats.l1, dead]).double()).tolist()
        return {
            "loss": loss,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "l0": l0 / rows,
            "l1": l1 / float(scale) / rows,
            "dead_fraction": dead / self.atoms,
            "aux_loss": term.factor * float(stats.auxiliary) / rows if term is not None else 0.0,
        }

    def dictionary(self, params: Params) -> Tensor:
        """The decoder's atoms as columns, [E, H], each of norm 1; atoms from elsewhere as they came."""
        return params["W_dec"].T

    def input_dim(self, params: Params) -> int:
        """D."""
        return params["W_enc"].shape[1]

    def memory(self, rows: int, dim: int) -> int:
        """Bytes at the peak: parameters and moments before and after an update with its gradients, or a batch's
        gradients on the way to their sum, whichever is more; beside it what a batch needs."""
        item = self.torch_dtype.itemsize
        side = dim / len(self.arrays)
        # W_enc or W_dec, with its share of what is kept per latent.
        weights = int(self.held * (side * item + 40))
        # Old and new parameters 12, the sums and their flat copy 4; an allocator that does not give freed memory back
        # at once takes the rest.
        update = 20 * weights
        # Parameters 6, sums so far, of this batch and of both 6, and the previous update's 4.
        statistics = 16 * weights
        return max(update, statistics + self.batch_bytes(rows, int(side), item))

    def batch_bytes(self, rows: int, dim: int, item: int) -> int:
        """Bytes beside parameters and gradients that the rows of a batch need."""
        chunk = chunk_rows(rows, self.held, item, torch.device("cpu")) * self.held * item
        aux = auxiliary_bytes(rows, self.held, self._aux_k(dim), item) if self.aux_coefficient > 0 else 0
        # What peers offer, twice, and the places of what is taken.
        offers = (self.peers.size - 1) * max(self.offered(), min(self._aux_k(dim), self.held)) * (2 * item + 8)
        entries = max(self.slots(), self.entries()) * (32 + 4 * item)
        rounded = 0
        if self.rounding:
            rounded = 2 * (self.held * dim + chunk // item + rows * dim) + rows * self.entries() * (24 + 4 * item)
        return 2 * chunk + rows * (6 * dim * item + entries + offers) + aux + rounded

    def flops(self, dim: int) -> float:
        """The encoder's product and four sparse ones."""
        side = dim / len(self.arrays)
        return 2.0 * side * self.held + 8.0 * side * self.entries()

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _rows(self, params: Params, batch: Batch) -> Iterator[Rows]:
        n = batch.x.shape[0]
        size = self.pieces(n)
        for begin in range(0, n, max(size, 1)):
            raw = batch.x[begin : begin + size]
            inputs = self._inputs(params, raw)
            memo = batch.memo if size >= n else {}
            if self.target is None:
                yield Rows(inputs, inputs, raw, memo)
                continue
            yield Rows(inputs, self._targets(params, raw), raw, memo)

    def _inputs(self, params: Params, raw: Tensor) -> Tensor:
        inputs = raw[:, : self.input_dim(params)] * params["scale"]
        return inputs.sub_(params["b_dec"]) if self.target is None else inputs

    def _targets(self, params: Params, raw: Tensor) -> Tensor:
        at = self.input_dim(params)
        return raw[:, at : at + params["W_dec"].shape[1]] * params["target_scale"] - params["b_dec"]

    def _target_scale(self, params: Params) -> Tensor:
        return params["scale" if self.target is None else "target_scale"]

    def _aux_k(self, dim: int) -> int:
        return self.aux_k if self.aux_k is not None else max(1, min(512, dim // 2))

    def _auxiliary(self, params: Params) -> Auxiliary | None:
        if self.aux_coefficient == 0:
            return None
        return auxiliary(params, self._aux_k(params["b_dec"].shape[0]), self.peers)

    def _dead_after(self, tokens: float) -> int:
        """Rows of silence that make a latent dead in a run of `tokens` rows."""
        return self.dead_tokens if self.dead_tokens is not None else max(1, int(min(1e7, 0.1 * tokens)))
