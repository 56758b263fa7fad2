"""What came out of a recipe, measured: numbers by name, one sentence, pictures.

Shapes: N rows, D observed, H atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...models import Batch, Codes, Model, Params, Stage
from ...models.factorization.denoising import denoise, psnr
from ...models.factorization.nonnegative import as_codes, nonnegative_codes
from ...models.pursuit import squared_errors
from ...models.receptive import fit_field
from ...models.recovery import recover
from ...storage import ArtifactStore, Dataset, open_dataset
from ...storage.ingest import GeneratedSource
from ...storage.ingest.generated import TRUTH, draw
from ...storage.ingest.images import SKLEARN, find_images, read_photo
from ...storage.ingest.series import HELD_OUT, MARKS
from ...workers.job import LearnJob
from ..errors import PipelineError
from ..fields import receptive_fields, usage_of_codes
from ..ground_truth import source_of
from ..learning import LearnResult
from ..report import can_plot, fits_picture, usage_picture
from ..reporter import metrics_line
from .recipe import Recipe

BATCH = 4096
NOISY_PICTURE, NOISE = "flower.jpg", 25.0
ALARM = 0.99
CHILD = 0.15
EXAMPLES = 12
"""Fields of each kind in the picture, the most used ones."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe's check found."""

    sentence: str
    values: dict[str, float]
    unmet: list[str]
    """Expectations that do not hold, one sentence each."""
    figures: dict[str, bytes]
    """PNG pictures by file name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"sentence": self.sentence, "values": self.values, "met": not self.unmet, "unmet": self.unmet}


@dataclass(frozen=True)
class Learned:
    """A published version beside the data it was learned from."""

    job: LearnJob
    model: Model
    params: Params
    data: Dataset
    metrics: Mapping[str, float]

    @property
    def atoms(self) -> NDArray[np.float64]:
        """[D, H]."""
        return self.model.dictionary(self.params).double().numpy()


@dataclass(frozen=True)
class Found:
    """What a check measured, one sentence about it, and pictures by file name."""

    values: dict[str, float]
    sentence: str
    figures: dict[str, bytes]


Check = Callable[[Learned], Found]


def measure(recipe: Recipe, job: LearnJob, result: LearnResult) -> Outcome:
    """Measures `result` as the recipe says and compares it with what the recipe expects.

    Raises:
        PipelineError: the recipe's check is unknown, or needs data of another kind.
        ImportError: a package is missing.
    """
    if recipe.check not in CHECKS:
        raise PipelineError(f"recipe {recipe.name!r}: check={recipe.check!r} is none of {', '.join(CHECKS)}")
    arrays = ArtifactStore(job.store, create=False).load(result.ref).arrays
    params = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    learned = Learned(job, job.build_model(), params, open_dataset(job.data), result.fit.metrics)
    found = CHECKS[recipe.check](learned)
    values = {**result.fit.metrics, **found.values}
    unmet = [_unmet(name, values.get(name), *bounds) for name, bounds in recipe.expect.items()]
    return Outcome(found.sentence, values, [text for text in unmet if text], found.figures)


def _unmet(name: str, value: float | None, low: float, high: float) -> str:
    if value is None:
        return f"{name} was not measured"
    return "" if low <= value <= high else f"{name} is {value:.4g}, expected {low:g} to {high:g}"


def metrics(learned: Learned) -> Found:
    """The run's own metrics, nothing more."""
    return Found({}, metrics_line(learned.metrics), {})


# -- generated data: the truth is known ------------------------------------------------------------------------------


def recovery(learned: Learned) -> Found:
    """Are all true atoms found, and are prior and noise those of the data?"""
    source, truth, data = source_of(learned.data), learned.data.side(TRUTH), learned.data
    if source is None or truth is None:
        raise PipelineError(
            f"{data.uri} keeps no true atoms to compare with: make it with `sparsefleet ingest generated`"
        )
    slab = source.slab_mean is not None
    both_signs = slab or {-v for v in source.values} == set(source.values)
    found = recover(learned.atoms, truth, signs=both_signs)
    values: dict[str, float] = {
        "found": found.found,
        "least_cosine": float(found.cosines.min()),
        "atoms_error": found.error(truth, unit=slab),
    }
    said = f"{found.found} of {truth.shape[1]} true atoms found (least cosine {found.cosines.min():.3f})"
    if learned.atoms.shape[1] == truth.shape[1]:
        frequency = _frequencies(source, truth, data)
        pi = _prior(learned.params, frequency, source)
        values["pi_error"] = float(np.abs(pi - frequency).max()) if len(pi) == len(frequency) else float("nan")
        said += f", π {_list(pi)} (data {_list(frequency)})"
        values["gain"] = free_energy(learned.model, learned.params, data) - free_energy(
            learned.model, _true_params(learned, source, truth), data
        )
    else:
        values |= _surplus(learned, found.partners)
        said += f", the other {values['surplus']:.0f} atoms carry {values['surplus_usage']:.1%} of the activity"
    sigma = float(learned.params["sigma"]) if "sigma" in learned.params else float("nan")
    values["sigma_error"] = abs(sigma / source.sigma - 1) if source.sigma else abs(sigma)
    said += f", σ {sigma:.3f} (data {source.sigma:g})"
    if slab:
        values["power_error"] = _power_error(learned.params, source, truth, found.partners)
        said += f", slab power off by {values['power_error']:.1%}"
    return Found(values, said, {})


def free_energy(model: Model, params: Params, data: Dataset) -> float:
    """Free energy per datapoint of all rows at temperature 1, no row cut."""
    stage = Stage(step=0, steps=1, rows=data.rows)
    total: Any = None
    for start in range(0, data.rows, BATCH):
        rows = data.read(start, min(start + BATCH, data.rows))
        stats = model.statistics(params, Batch(torch.from_numpy(rows).to(model.torch_dtype), start), stage)
        total = stats if total is None else total + stats
    return model.metrics(params, total)["free_energy"]


def _frequencies(source: GeneratedSource, truth: NDArray[Any], data: Dataset) -> NDArray[np.float64]:
    """How often latents took each value [K] in this very data; [1] how often they were active where a model has one
    probability for all other values."""
    counts = np.zeros(len(source.values))
    for shard in data.shards():
        latents = draw(source, truth, shard)[1]
        counts += [(latents == value).sum() for value in source.values]
    return counts / counts.sum()


def _prior(params: Params, frequency: NDArray[np.float64], source: GeneratedSource) -> NDArray[np.float64]:
    """π in the order of the source's values; where the model has one probability of being active, that is split as the
    data is."""
    pi = params["pi"].double().numpy()
    if "values" in params:
        order = [params["values"].tolist().index(v) for v in source.values]
        return pi[order]
    active = np.asarray(source.values) != 0
    out = np.where(active, float(pi.mean()) * frequency / frequency[active].sum(), 1 - float(pi.mean()))
    return out


def _true_params(learned: Learned, source: GeneratedSource, truth: NDArray[Any]) -> Params:
    """The learned parameters with those that made the data in their place."""
    double = lambda value: torch.as_tensor(value, dtype=torch.float64)  # noqa: E731
    pi = double(sum(p for p, v in zip(source.p, source.values) if v != 0)).expand(learned.params["pi"].shape)
    if "values" in learned.params:
        pi = double([source.p[source.values.index(v)] for v in learned.params["values"].tolist()])
    out = {**learned.params, "W": double(truth), "pi": pi.clone(), "sigma": double(source.sigma)}
    if source.slab_mean is not None:
        ones = torch.ones(truth.shape[1], dtype=torch.float64)
        out |= {"mu": ones * source.slab_mean, "psi": ones * source.slab_std**2}
    return out


def _power_error(params: Params, source: GeneratedSource, truth: NDArray[Any], partners: NDArray[np.integer]) -> float:
    """Mean relative error of ‖W_h‖² (μ_h² + ψ_h), which no rescaling of an atom changes."""
    assert source.slab_mean is not None
    psi = params["psi"] if params["psi"].ndim == 1 else params["psi"].diagonal()
    power = (params["W"].square().sum(0) * (params["mu"] ** 2 + psi)).numpy()[partners]
    true = (source.slab_mean**2 + source.slab_std**2) * np.square(truth).sum(0)
    return float(np.abs(power / true - 1).mean())


def _surplus(learned: Learned, partners: NDArray[np.integer]) -> dict[str, float]:
    """Atoms without a true partner, and their share of all activity."""
    usage = usage_of_codes(learned.model, learned.params, learned.data)
    others = np.setdiff1d(np.arange(len(usage)), partners)
    return {"surplus": len(others), "surplus_usage": float(usage[others].sum() / max(usage.sum(), 1e-300))}


def _list(values: NDArray[np.float64]) -> str:
    return f"{values[1]:.4f}" if len(values) == 2 else "(" + ", ".join(f"{v:.4f}" for v in values) + ")"


# -- natural data: what do the atoms look like? -----------------------------------------------------------------------


def fields(learned: Learned) -> Found:
    """Which share of the receptive fields is globular, how well the fits explain them, how many atoms are used."""
    shape = learned.data.patch_shape
    if shape is None or len(shape) != 2:
        raise PipelineError(f"{learned.data.uri} holds no grey patches: the check 'fields' needs pictures")
    usage = usage_of_codes(learned.model, learned.params, learned.data)
    seen = receptive_fields(learned.data, learned.atoms)
    order = [h for h in np.argsort(-usage, kind="stable") if usage[h] > 0]
    fits = {h: fit_field(seen[h]) for h in order}
    values, figures = _usage_values(usage), _usage_figure(usage)
    if fits:
        values["globular_share"] = float(np.mean([fit.globular for fit in fits.values()]))
        values["fit_share"] = float(np.mean([max(fit.gabor, fit.dog) for fit in fits.values()]))
        shown = [[h for h in order if fits[h].globular is globular][:EXAMPLES] for globular in (False, True)]
        chosen = [*shown[0], *shown[1]]
        figures["fields.png"] = fits_picture(seen[chosen], np.stack([fits[h].fitted for h in chosen]))
    globular, explained = (values.get(name, float("nan")) for name in ("globular_share", "fit_share"))
    return Found(
        values,
        f"{values['used_atoms']:.0f} of {len(usage)} atoms in use, {globular:.1%} of them globular, the others "
        f"Gabor-like (the better fit explains {explained:.0%} of a field); {_sparsity(learned)}",
        figures,
    )


def usage(learned: Learned) -> Found:
    """How evenly the atoms are used."""
    found = usage_of_codes(learned.model, learned.params, learned.data)
    values = _usage_values(found)
    said = f"{values['used_atoms']:.0f} of {len(found)} atoms in use; {_sparsity(learned)}"
    return Found(values, said, _usage_figure(found))


def _usage_figure(found: NDArray[np.float64]) -> dict[str, bytes]:
    return {"usage.png": usage_picture(found)} if can_plot() else {}


def _usage_values(found: NDArray[np.float64]) -> dict[str, float]:
    return {"used_atoms": float((found > 0).sum()), "median_usage": float(np.median(found))}


def _sparsity(learned: Learned) -> str:
    named = {"active_atoms": "active atoms", "l0": "entries per code", "pi": "π", "sigma": "σ"}
    named |= {"free_energy": "free energy", "relative_error": "relative error"}
    return ", ".join(f"{text} {learned.metrics[n]:.4g}" for n, text in named.items() if n in learned.metrics)


def denoising(learned: Learned) -> Found:
    """How much noise of σ = 25 grey levels the atoms take from a photograph that they were not learned from."""
    shape = learned.data.patch_shape
    if shape is None or len(shape) != 2:
        raise PipelineError(f"{learned.data.uri} holds no grey patches: the check 'denoising' needs pictures")
    photo = read_photo(find_images([SKLEARN + NOISY_PICTURE])[0], color=False, prefilter=False)
    truth = 255 * torch.from_numpy(photo.pixels).double()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(learned.job.seed), dtype=torch.float64)
    noisy = truth + NOISE * noise
    before, after = psnr(noisy, truth), psnr(denoise(noisy, torch.from_numpy(learned.atoms.T), NOISE), truth)
    said = f"{NOISY_PICTURE} with noise of {NOISE:g} grey levels: {before:.2f} dB, denoised {after:.2f} dB"
    return Found({"psnr_noisy": before, "psnr": after}, said, {})


# -- series: are the events seen? ------------------------------------------------------------------------------------


def events(learned: Learned) -> Found:
    """Are marked windows told from others that were not learned from? Both are scored by what their codes leave over,
    ‖x - D a‖²; the peer is ‖x‖² itself. The alarm is the 99 % quantile of the windows learned from."""
    held_out, marks = learned.data.side(HELD_OUT), learned.data.side(MARKS)
    if held_out is None or marks is None or not 0 < marks.sum() < len(marks):
        raise PipelineError(
            f"{learned.data.uri} holds out no windows with and without events: make it with `sparsefleet ingest series "
            "… --label COLUMN --learn 0.5`"
        )
    marked = marks.astype(bool)
    rows = learned.data.read(0, learned.data.rows)
    values: dict[str, float] = {"events": float(marked.sum()), "quiet": float((~marked).sum())}
    scores = {"": (_left_over(learned, held_out), _left_over(learned, rows))}
    scores["energy_"] = ((held_out**2).sum(1, dtype=np.float64), (rows**2).sum(1, dtype=np.float64))
    for name, (found, usual) in scores.items():
        alarm = found > np.quantile(usual, ALARM)
        values[f"{name}auroc"] = auroc(found[marked], found[~marked])
        values[f"{name}found"] = float(alarm[marked].mean())
        values[f"{name}false_alarms"] = float(alarm[~marked].mean())
    said = (
        f"{values['found']:.1%} of {values['events']:.0f} windows with events found, {values['false_alarms']:.2%} of "
        f"{values['quiet']:.0f} others called events, AUROC {values['auroc']:.4f} (energy alone: "
        f"{values['energy_found']:.1%}, {values['energy_false_alarms']:.2%}, {values['energy_auroc']:.4f})"
    )
    return Found(values, said, {})


def auroc(high: NDArray[Any], low: NDArray[Any]) -> float:
    """The probability that one of `high` exceeds one of `low`; ties count half."""
    ordered = np.sort(low)
    wins = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(wins.mean() / (2 * len(low)))


def _left_over(learned: Learned, rows: NDArray[Any]) -> NDArray[np.float64]:
    """[n] ‖x - D a‖²."""
    x = torch.from_numpy(np.ascontiguousarray(rows)).to(learned.model.torch_dtype)
    codes = learned.model.encode(learned.params, Batch(x))
    return squared_errors(x.double(), torch.from_numpy(learned.atoms), codes).numpy()


# -- features of features ------------------------------------------------------------------------------------------


def hierarchy(learned: Learned) -> Found:
    """How much each level's features explain alone of the rows, and together with all weights of the lowest features;
    the least weight, and for how many features below one above is made (weights of at least 15 % of its largest)."""
    sizes: tuple[int, ...] = getattr(learned.model, "levels", ())
    if not sizes:
        raise PipelineError("the check 'hierarchy' needs model snmf with levels: --set model.levels=[50,20]")
    found = usage_of_codes(learned.model, learned.params, learned.data)
    x = learned.data.read(0, learned.data.rows)
    codes = learned.model.encode(learned.params, Batch(torch.from_numpy(x).to(learned.model.torch_dtype)))
    atoms = learned.params["atoms"].double()
    values = _usage_values(found) | {"share": float((atoms != 0).double().mean(1).max())}
    values["relative_error"] = _relative(x, atoms.T, codes)
    said = [f"{len(atoms)} features: error {values['relative_error']:.3f}"]
    # Levels are made from the features below times √Σg², their use.
    use = Codes(codes.indices, codes.values.double().square()).dense(len(atoms)).sum(0).sqrt()
    below = atoms * use[:, None]
    mixed, length = torch.eye(len(atoms), dtype=torch.float64), torch.ones(len(atoms), dtype=torch.float64)
    for level, size in enumerate(sizes, start=1):
        upper, weights = (learned.params[f"level{level}/{n}"].double() for n in ("atoms", "weights"))
        mixed = (mixed / length.clamp(min=1e-300)) @ weights
        length = torch.linalg.vector_norm(weights, dim=0)
        children = float((weights >= CHILD * weights.amax(0).clamp(min=1e-300)).sum(0).double().mean())
        alone = as_codes(nonnegative_codes(torch.from_numpy(x), upper))
        values |= {
            f"level{level}_error": _relative(x, upper.T, alone),
            f"level{level}_features_error": float((below - mixed @ upper).norm() / below.norm().clamp(min=1e-300)),
            f"level{level}_children": children,
            f"level{level}_least_weight": float(weights.min()),
        }
        said.append(
            f"{size} above: error {values[f'level{level}_error']:.3f} alone, of the features "
            f"{values[f'level{level}_features_error']:.3f}, each made for {children:.1f} of those below"
        )
    return Found(values, "; ".join(said), {})


def _relative(rows: NDArray[Any], atoms: torch.Tensor, codes: Codes) -> float:
    """√(Σ‖x - D a‖² / Σ‖x‖²) for atoms D [D, H]."""
    x = torch.from_numpy(rows).double()
    wide = Codes(codes.indices, codes.values.double())
    return float((squared_errors(x, atoms, wide).sum() / x.square().sum().clamp(min=1e-300)).sqrt())


CHECKS: dict[str, Check] = {
    "metrics": metrics,
    "recovery": recovery,
    "fields": fields,
    "usage": usage,
    "denoising": denoising,
    "events": events,
    "hierarchy": hierarchy,
}
"""One line a check."""
