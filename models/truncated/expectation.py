"""What all models learned with Expectation Truncation share: candidates, annealing, data cut, start values, codes.

Lücke & Eggert, Expectation Truncation and the Benefits of Preselection, JMLR 11, 2010. A model adds its joints, its
statistics and its M-step.

Schedules of these models may set
    T            temperature of the posterior (1: none),
    ncut         strength of the data cut in [0, 1]: points that need more than γ atoms leave the M-step,
    partial      share of the points used in an update, drawn anew for each,
    W_noise, pi_noise, sigma_noise
                 standard deviation of the noise added to W, π and σ after an update; none after the last one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, inf, isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import TRAINING, Batch, Codes, Model, Params, Probe, Stats
from ..errors import ModelError
from ..kernels import native
from ..outputs import Wanted
from ..schedule import Ramp, Schedule, Stage
from .cut import ROUNDS, ScoreHistogram, histogram, kept, narrow
from .evolution import KEPT as KEPT_STATES
from .evolution import Evolution, Scene, code_dtype
from .hysteresis import KEPT as KEPT_CANDIDATES
from .inference import Listed, infer, strongest
from .prior import LOWEST
from .states import MOST_STATES, count_states
from .variation import Alphabet

PI_BOUND = 1e-5
# What an update gives at least: its square, and one divided by that, are ordinary numbers.
LEAST_SIGMA = 1e-15
# exp of a difference below -80 is a float32 denormal: it costs ten times an ordinary exp and adds nothing to a sum.
LOWEST_LOG = {torch.float32: -80.0, torch.float64: -700.0}
# Above this score-to-noise ratio the rounding of float32 joints exceeds 0.01 nats.
FLOAT32_LIMIT = 1e5
NOISE_KEY = -1 % 2**32


@dataclass(frozen=True, kw_only=True)
class Truncated(Model):
    """A model whose posterior is evaluated on few states, chosen per datapoint."""

    h_prime: int = 8
    """Candidate atoms per datapoint (H'); all atoms where there are fewer."""
    gamma: int = 5
    """Most active atoms in an evaluated state (γ)."""
    anneal_prior: bool = False
    """Whether the temperature also flattens the prior."""
    start: Literal["mean", "data"] = "mean"
    """Atoms start at the data's mean plus noise, or at datapoints drawn at random."""
    annealing: Literal["default", "none"] = "default"
    """The model's usual schedule, or temperature 1, no data cut and no noise; a job's own schedule.* override both."""
    missing: bool = False
    """Whether NaN entries of rows are missing values, which do not count; otherwise they are an error."""
    fixed: tuple[str, ...] = ()
    """Parameters that keep their start values: W, pi, sigma, …"""
    states: Literal["preselected", "evolutionary", "all"] = "preselected"
    """While learning, states are chosen anew in every pass; or every point keeps a set of its own that evolves; or all
    states are evaluated, where there are few atoms. The last two cut no data. Codes come from the same kind."""
    evolution: Evolution = Evolution()  # noqa: RUF009 (it is frozen)
    """How evolutionary states evolve: set as evolution.size, evolution.parents, …"""
    hysteresis: bool = False
    """Whether a point's candidates stay those of the last pass where these explain it better."""

    ramp_names: ClassVar[tuple[str, ...]] = ("T", "ncut", "partial", "W_noise", "pi_noise", "sigma_noise")
    ramp_limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "T": (1e-3, inf),
        "ncut": (0, 1),
        "partial": (1e-6, 1),
        "W_noise": (0, inf),
        "pi_noise": (0, inf),
        "sigma_noise": (0, inf),
    }

    def __post_init__(self) -> None:
        Model.__post_init__(self)
        if self.h_prime < 1:
            raise ModelError(f"h_prime={self.h_prime}: at least one candidate is needed")
        if not 1 <= self.gamma <= self.h_prime:
            raise ModelError(f"gamma={self.gamma} active atoms cannot be drawn from h_prime={self.h_prime} candidates")
        if self.start not in ("mean", "data"):
            raise ModelError(f"start={self.start!r}: choose mean or data")
        if self.annealing not in ("default", "none"):
            raise ModelError(f"annealing={self.annealing!r}: choose default or none")
        if self.states not in ("preselected", "evolutionary", "all"):
            raise ModelError(f"states={self.states!r}: choose preselected, evolutionary or all")
        if self.by_sets and self.hysteresis:
            raise ModelError("hysteresis=True belongs to preselected states; sets of states never get worse anyway")
        if self.by_sets and self.missing:
            raise ModelError(f"missing=True needs states='preselected', not {self.states!r}")
        if self.states == "all" and self.sets.size > MOST_STATES:
            raise ModelError(
                f"states='all': {self.atoms} atoms have {self.sets.size:,} states, over {MOST_STATES:,}; "
                "choose evolutionary or fewer atoms"
            )

    @property
    def accepts_missing(self) -> bool:
        """Where the setting `missing` says so."""
        return self.missing

    @property
    def candidates(self) -> int:
        """H', at most H."""
        return min(self.h_prime, self.atoms)

    @property
    def active(self) -> int:
        """γ, at most H'."""
        return min(self.gamma, self.candidates)

    @property
    def levels(self) -> int:
        """L, non-zero values that a latent can take in a state."""
        return 1

    @property
    def multi_states(self) -> int:
        """M, states of two or more atoms."""
        return count_states(self.candidates, self.active, self.levels)

    @property
    def evolves(self) -> bool:
        """Whether every point keeps a set of states."""
        return self.states == "evolutionary"

    @property
    def by_sets(self) -> bool:
        """Whether statistics are sums over sets of any states: evolutionary ones, or all."""
        return self.states != "preselected"

    @property
    def sets(self) -> Evolution:
        """The sets' sizes and how they evolve: not at all where they hold all states."""
        if self.states != "all":
            return self.evolution
        return replace(self.evolution, size=max((1 + self.levels) ** self.atoms, 2), warm_up=0)

    @property
    def alphabet(self) -> Alphabet:
        """The codes of the sets' states."""
        slots = self.atoms if self.states == "all" else min(self.evolution.most_active, self.atoms)
        return Alphabet(self.atoms, self.levels, slots)

    def kept_rows(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The sets of evolutionary states, or with hysteresis the candidates."""
        if self.evolves:
            codes = code_dtype(self.alphabet.none)
            return {KEPT_STATES: ((self.evolution.size, self.alphabet.slots), codes)}
        return {KEPT_CANDIDATES: ((self.candidates,), "int32")} if self.hysteresis else {}

    def schedule(self) -> Schedule:
        """The model's usual course; with `annealing="none"` as many passes without any of its ramps."""
        usual = self.usual_schedule()
        return replace(usual, ramps={}) if self.annealing == "none" else usual

    def usual_schedule(self) -> Schedule:
        """100 passes; cooled from T=2 to 1, then the data cut rises to its full strength."""
        return Schedule(
            passes=100,
            update_every="pass",
            batch_rows=4096,
            ramps=self.allowed({"T": ((0.05, 2.0), (0.4, 1.0)), "ncut": ((1 / 3, 0.0), (2 / 3, 1.0))}),
        )

    def allowed(self, ramps: dict[str, Ramp]) -> dict[str, Ramp]:
        """Those of a schedule's ramps that make sense: sets of states leave out no point."""
        return {name: ramp for name, ramp in ramps.items() if not (self.by_sets and name == "ncut")}

    @abstractmethod
    def mass(self, params: Params) -> float:
        """A, the prior probability of at most γ active atoms."""

    @abstractmethod
    def log_z(self, params: Params, batch: Batch, stage: Stage) -> Tensor:
        """[n] float64, log Σ of the tempered joints: ranks points for the data cut."""

    @abstractmethod
    def means(self, params: Params, x: Tensor) -> Tensor:
        """[n, H] posterior means of the coefficients: W times them is the reconstruction of a linear model."""

    def adopt(self, name: str, given: Tensor, own: Tensor) -> Tensor:
        """As `Model.adopt`; probabilities of 0 and 1 move to the nearest that the model can hold.

        Raises:
            ModelError: σ is below 1e-15, or π outside [0, 1].
        """
        if name == "sigma" and not bool((given >= LEAST_SIGMA).all()):
            raise ModelError(f"sigma={float(given.min())}: standard deviations must be above 0, at least {LEAST_SIGMA}")
        if name == "pi" and not bool(((given >= 0) & (given <= 1)).all()):
            raise ModelError(f"pi holds {float(given.min())} to {float(given.max())}: probabilities lie in [0, 1]")
        given = given.clamp(LOWEST, 1 - LOWEST) if name == "pi" else given
        return Model.adopt(self, name, given, own)

    @abstractmethod
    def scene(self, params: Params, stage: Stage | None, dim: int) -> Scene:
        """Landscapes of rows of `dim` dimensions, for sets of states."""

    @abstractmethod
    def listed(self, params: Params, x: Tensor) -> Listed:
        """The posterior of the rows `x` [n, D] at temperature 1, state by state."""

    def coefficients(self, params: Params, x: Tensor, atoms: Tensor, values: Tensor) -> Tensor:
        """[n, K, γ] E[coefficients | state, row] of states given by their atoms (-1: none) and latent values."""
        del params, x, atoms
        return values

    def reconstruction(self, params: Params, x: Tensor, found: Listed) -> Tensor:
        """[n, D] expected rows without noise."""
        del x
        return found.mean @ params["W"].T.to(found.mean.dtype)

    # -- start and noise -------------------------------------------------------------------------------------------

    def start_atoms(self, probe: Probe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """W [D, H] at the data's mean (or at datapoints) plus noise of a quarter of its spread, and the spread []."""
        spread = probe.variance.clamp(min=0).sqrt().mean().clamp(min=1e-12)
        noise = torch.randn(probe.dim, self.atoms, generator=generator, dtype=torch.float64) * spread / 4
        if self.start == "data":
            chosen = torch.randint(probe.sample.shape[0], (self.atoms,), generator=generator)
            weights = probe.sample[chosen].T + noise
        else:
            weights = probe.mean[:, None] + noise
        return weights.contiguous(), spread.reshape(()).clone()

    def disturbed(self, params: Params, stage: Stage) -> Params:
        """`params` with the schedule's noise on W, π and σ; a run's last update adds none."""
        if stage.step + 1 >= stage.steps or not any(stage.get(f"{n}_noise", 0.0) > 0 for n in ("W", "pi", "sigma")):
            return params
        generator = stage.generator(NOISE_KEY)
        draw = lambda p: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)  # noqa: E731
        weights, pi = params["W"], params["pi"]
        new = {
            "W": weights + stage.get("W_noise", 0.0) * draw(weights),
            "pi": self.disturbed_pi(pi, stage.get("pi_noise", 0.0), draw(pi)),
        }
        if "sigma" in params:
            sigma = params["sigma"]
            # Noise never takes more than nine tenths of σ, which stays positive.
            new["sigma"] = torch.maximum(sigma + stage.get("sigma_noise", 0.0) * draw(sigma), 0.1 * sigma)
        return {**params, **new}

    def check_start(self, params: Params) -> None:
        """As `Model.check_start`.

        Raises:
            ModelError: `fixed` names something else than a parameter.
        """
        known = sorted(name for name in params if not name.startswith(TRAINING))
        for name in self.fixed:
            if name not in known:
                raise ModelError(f"fixed={name!r} is no parameter of {type(self).__name__}: {', '.join(known)}")

    def learned(self, params: Params, new: Params) -> Params:
        """The new parameters, those that are fixed as they were.

        Raises:
            ModelError: `fixed` names something else than a parameter.
        """
        self.check_start(new)
        return {name: params[name] if name in self.fixed else value for name, value in new.items()}

    def disturbed_pi(self, pi: Tensor, scale: float, draw: Tensor) -> Tensor:
        """π with noise, inside its bounds."""
        return (pi + scale * draw).clamp(PI_BOUND, 1 - PI_BOUND)

    # -- the data cut ----------------------------------------------------------------------------------------------

    def check_schedule(self, schedule: Schedule) -> None:
        """As `Model.check_schedule`.

        Raises:
            ModelError: sets of states and a data cut, or a value out of range.
        """
        super().check_schedule(schedule)
        self._cuts(max((strength for _, strength in schedule.ramps.get("ncut", ())), default=0.0))

    def surveys_at(self, stage: Stage) -> int:
        """Three histograms where the schedule cuts data, none otherwise."""
        return len(ROUNDS) if self._cuts(stage.get("ncut", 0.0)) else 0

    def _cuts(self, strength: float) -> bool:
        if self.by_sets and strength > 0:
            raise ModelError(f"schedule.ncut: {self.states} states are not limited to gamma atoms, so no data is cut")
        return strength > 0

    def row_memory(self) -> int:
        """The score by which the data cut ranks a point, float64, and what outlives a pass."""
        return 8 + Model.row_memory(self)

    def survey(self, params: Params, batch: Batch, stage: Stage) -> ScoreHistogram:
        """A histogram of the points' tempered log Z, the score by which the data cut ranks them."""
        if "log_z" not in batch.memo:
            batch.memo["log_z"] = self.log_z(params, batch, stage)
        return histogram(batch.memo["log_z"], stage)

    def refine(self, params: Params, survey: Stats, stage: Stage) -> Stage:
        """Narrow the threshold above which ⌊N (1 - (1 - A(π)) ncut)⌋ points lie."""
        assert isinstance(survey, ScoreHistogram)
        keep = max(1, floor(stage.rows * (1 - (1 - self.mass(params)) * min(stage.get("ncut", 0.0), 1.0))))
        return narrow(survey, stage, keep)

    def used(self, log_z: Tensor, batch: Batch, stage: Stage) -> Tensor:
        """[n] bool: points that this update's M-step sees."""
        use = kept(log_z, stage)
        partial = stage.get("partial", 1.0)
        if partial < 1.0:
            draw = torch.rand(use.shape, generator=stage.generator(batch.start), dtype=torch.float64)
            use = use & (draw < partial).to(use.device)
        return use

    @property
    def has_kernel(self) -> bool:
        """Whether a compiled kernel computes this model's posteriors."""
        return native.library() is not None

    def compiled(self, x: Tensor) -> bool:
        """Whether the compiled kernel can do these rows: on the CPU, all entries observed."""
        return self.has_kernel and native.usable(x) and not (self.missing and bool(torch.isnan(x).any()))

    def fusible(self) -> bool:
        """Whether it can do the sums that this model learns from: its states are chosen anew in every pass."""
        return self.has_kernel and not self.by_sets and not self.hysteresis

    def rows_in_use(self, params: Params, batch: Batch, stage: Stage) -> Tensor | None:
        """As `used`, before the rows' posteriors are computed; None where all are."""
        log_z = batch.memo.get("log_z")
        if stage.get("cut_round", 0) < len(ROUNDS):
            if stage.get("partial", 1.0) >= 1.0:
                return None
            # No score counts without a threshold.
            log_z = batch.x.new_zeros(len(batch.x), dtype=torch.float64)
        return self.used(self.log_z(params, batch, stage) if log_z is None else log_z, batch, stage)

    # -- the contract ----------------------------------------------------------------------------------------------

    def encode(self, params: Params, batch: Batch) -> Codes:
        """Posterior means of the H' strongest atoms (with sets of states: of as many as a state may have, if these are
        more); entries below 1e-4 are left out."""
        if self.by_sets:
            found = infer(self, params, batch.x, Wanted())
            return Codes(found["indices"], found["values"])
        return Codes(*strongest(self.means(params, batch.x), self.candidates, batch.x.dtype))

    def infer(self, params: Params, batch: Batch, wanted: Wanted) -> dict[str, Tensor]:
        """Codes, and by what is wanted:

        marginals: `marginal_indices` [n, H'], the atoms most probably active, and `marginals` [n, H'] or [n, H', L].
        map: `map_indices` [n, γ] (-1: none) and `map_values`, the coefficients.
        top_states: `top_indices`, `top_values` [n, K, γ] and `top_probabilities` [n, K].
        reconstruction [n, D]; log_likelihood, entropy [n] float64.
        With `adaptive`, `gamma` and `h_prime` [n] say what was used, and widths are those of the largest.

        Raises:
            ModelError: `adaptive` would make too many states.
        """
        return infer(self, params, batch.x, wanted)

    def dictionary(self, params: Params) -> Tensor:
        """W, [D, H]."""
        return params["W"]


def temperatures(stage: Stage | None, anneal_prior: bool) -> tuple[float, float]:
    """(factor of the log-likelihood, factor of the log-prior) at this stage; 1 and 1 without one."""
    beta = 1.0 / stage.get("T", 1.0) if stage else 1.0
    return beta, beta if anneal_prior else 1.0


def normalise(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of [n, S] in place, and its log normaliser [n] in float64."""
    top = joint.amax(1, keepdim=True)
    weight = joint.sub_(top).clamp_(min=LOWEST_LOG[joint.dtype]).exp_()
    total = weight.sum(1, keepdim=True)
    return weight.div_(total), (top.double() + total.double().log()).squeeze(1)


def too_large(scores: Tensor, factor: float) -> bool:
    """Whether float32 cannot hold joints made of these scores times `factor` to 0.01 nats.

    Raises:
        ModelError: there are NaN or infinite values among the scores, which only such data gives.
    """
    if not scores.numel():
        return False
    low, high = torch.aminmax(scores)
    most = max(-float(low), float(high)) * factor
    if scores.dtype == torch.float32:
        return not most <= FLOAT32_LIMIT
    if not isfinite(most):
        raise ModelError("the rows hold NaN or infinite values, or values beyond 1e150; ingest them again without")
    return False


def solve(moments: Tensor, right: Tensor) -> Tensor:
    """right · moments⁺ for a symmetric positive semi-definite [H, H]; directions that no data supports give 0."""
    ridge = 1e-10 * moments.diagonal().mean().clamp(min=1e-30)
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    factor, info = torch.linalg.cholesky_ex(moments + ridge * eye)
    if int(info) == 0:
        return torch.cholesky_solve(right.T, factor).T
    values, vectors = torch.linalg.eigh(moments)
    inverse = torch.where(values > 1e-10 * values.max(), 1 / values, torch.zeros_like(values))
    return (right @ vectors) * inverse @ vectors.T
