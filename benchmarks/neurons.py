"""Semi-NMF of a language model's neurons: do its features steer the model towards the words they answer to?

    python benchmarks/neurons.py [--seeds 0 1 2] [--layer 21] [--folder ROWS]

SmolLM2 reads pages of Python's reference manual and source of the standard library (at hand in every installation);
the neurons of one MLP, after their non-linearity, are harvested. Layer 21 of 30 is the depth at which Shafran et al.
2025 steer Llama (23 of 32). From the same rows learn, through `learn`: `snmf` (100 features as in the paper, of which
5 % of the entries stay, the paper's choice for its smallest network; three passes, for docs/experiments.md says why
few), and `topk` with as many atoms (k = 10). Beside them stand difference-in-means (the mean of a class of texts
minus the mean of the others; a class is a package of the library, or the manual) and random directions.

A direction's words are the ten tokens of largest lift in its contexts: the 12 tokens on both sides of the 25 rows on
which a feature is strongest (of 200 rows of a class); lift is the share of these contexts that hold a token, a fifth or
more, divided by the share of contexts of random rows. A direction is added to the neurons at the last token of contexts
out of other documents, as strongly as moves the next token by 0.25 nats (KL, mean over contexts), found by bisection
upwards from 0, so that all do equal harm. Stated are the rise of the log-probability of its words, taken together; that
of the words of other directions of its kind, which rises where a direction flattens the prediction; and that of the
same words under random directions.

Expected (Shafran et al.): snmf above topk, and below or near difference-in-means; random directions about as much as
other directions' words. The command states what holds, of the rises themselves and less those of other directions'
words; it fails only where directions do not favour their own words.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sparsefleet.models import Batch
from sparsefleet.pipelines import harvest, learn
from sparsefleet.pipelines.examples import Texts
from sparsefleet.pipelines.steering import contexts as contexts_of
from sparsefleet.storage import Dataset, StoreConflict, open_dataset
from sparsefleet.workers import HarvestJob, LearnJob
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.steering import before_last, divergences, last_logits
from sparsefleet.workers.activations.taps import Tap
from sparsefleet.workers.job import EncodeJob
from sparsefleet.workers.start import load_dictionary
from torch import Tensor

MODEL, CPU = "input:smollm2", torch.device("cpu")
ATOMS, SHARE, K = 100, 0.05, 10
METHODS: dict[str, dict[str, Any]] = {
    "snmf": {"model": "snmf", "settings": {"share": SHARE}, "passes": 3},
    "topk": {"model": "topk", "settings": {"k": K}, "passes": 20, "batch_rows": 256},
}
MEANS = "class means"
FILES, LEAST, BEGIN, LENGTH = 8, 3000, 500, 2000
"""A class has at least so many files of at least so many characters; so many of each are read, from there on."""
PER_PART = {"learn": 6, "judge": 1}
"""Documents of a class to learn from; contexts to steer in are drawn from the others."""
STRONGEST, OF_CLASS, BASE, WORDS, COMMON = 25, 200, 2000, 10, 0.2
DIRECTIONS, RANDOM, CONTEXTS, LONGEST = 25, 10, 6, 64
KL, ROUNDS, CLOSE = 0.25, 14, 0.03


# -- texts and rows ----------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> None:
    """The classes' documents, in `learn` and in `judge`, a folder for each class; no document is in both."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings"}
    classes: dict[str, list[str]] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if len(parts) > 1 and not left_out & set(parts):
            classes.setdefault(parts[0], []).append(path.read_text(encoding="utf-8", errors="ignore"))
    classes["manual"] = [text for _, text in sorted(topics.items())]
    for name, texts in classes.items():
        long = [text[BEGIN : BEGIN + LENGTH] for text in texts if len(text) >= LEAST]
        if len(long) < FILES:
            continue
        for part, chosen in (("learn", long[::2]), ("judge", long[1::2])):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i, text in enumerate(chosen[: PER_PART[part]]):
                (folder / part / name / f"{i}.txt").write_text(text, encoding="utf-8")


def rows_of(folder: Path, layer: int) -> tuple[Dataset, Dataset]:
    """The neurons of the documents to learn from, and of those to judge by; what is there already stays."""
    found: list[Dataset] = []
    if not (folder / "learn").is_dir():
        write_texts(folder)
    for part in ("learn", "judge"):
        out = str(folder / f"{part}-{layer}.zarr")
        job = {"model": MODEL, "texts": [str(folder / part)], "out": out, "layers": layer, "site": "neurons"}
        # One that is finished is refused.
        with suppress(StoreConflict):
            harvest(HarvestJob.parse({**job, "dtype": "float32", "context": 128, "threads": 1}))
        found.append(open_dataset(out))
    return found[0], found[1]


# -- directions and their words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directions:
    """Directions at the site, and the words of each."""

    vectors: Tensor
    """[n, D]."""
    words: list[list[int]]
    """Tokens of each; at least one."""


class Words:
    """The tokens that are typical of the surroundings of rows."""

    def __init__(self, data: Dataset, rng: np.random.Generator) -> None:
        self._texts = Texts(data)
        self._size = int(data.read(0, data.rows, "token").max()) + 1
        self._base = self._shares(rng.choice(data.rows, BASE, replace=False)).clip(1 / BASE)

    def of(self, rows: np.ndarray) -> list[int]:
        """The tokens of largest lift, the best first."""
        shares = self._shares(rows)
        lift = np.where(shares >= COMMON, shares / self._base, 0)
        best = np.argsort(-lift, kind="stable")[:WORDS]
        return best[lift[best] > 1].tolist()

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        """[V] share of the rows' contexts that hold each token."""
        counts = np.zeros(self._size)
        for row in rows.tolist():
            counts[list({self._texts.token(r) for r in self._texts.around(row).tolist()})] += 1
        return counts / len(rows)


def learned(data: Dataset, method: dict[str, Any], seed: int, folder: Path) -> tuple[Tensor, Tensor, float]:
    """Atoms [H, D], codes [N, H] of all rows and the FVU."""
    store = str(folder / "artifacts")
    job = {"data": data.uri, "store": store, "name": method["model"], "atoms": ATOMS, "seed": seed, "threads": 1}
    made = learn(LearnJob.parse(job | method | {"dtype": "float32"}))
    found = load_dictionary(
        EncodeJob.parse({"data": data.uri, "dictionary": f"{made.name}@{made.number}", "store": store, "out": "-"})
    )
    x = torch.from_numpy(data.read(0, data.rows))
    codes = found.model.encode(found.params, Batch(x)).dense(ATOMS)
    atoms = found.model.dictionary(found.params).T
    offset = found.params["b_dec"] / found.params["scale"] if "b_dec" in found.params else 0.0
    error = (x - codes.float() @ atoms - offset).square().sum()
    return atoms.float(), codes, float(error / (x - x.mean(0)).square().sum())


def features(atoms: Tensor, codes: Tensor, words: Words, rng: np.random.Generator) -> Directions:
    """Some of the atoms that are active in enough rows and have words."""
    alive = np.flatnonzero((codes > 0).sum(0).numpy() >= STRONGEST)
    found: dict[int, list[int]] = {}
    for atom in rng.permutation(alive).tolist():
        if len(found) == DIRECTIONS:
            break
        typical = words.of(codes[:, atom].topk(STRONGEST).indices.numpy())
        if typical:
            found[atom] = typical
    return Directions(atoms[list(found)], list(found.values()))


def class_means(data: Dataset, words: Words, rng: np.random.Generator) -> Directions:
    """Every class's mean minus the mean of all others."""
    from sparsefleet.pipelines.labels import labels_of

    x, label = data.read(0, data.rows), np.array(labels_of("folders", data))[data.read(0, data.rows, "document")]
    vectors, typical = [], []
    for name in np.unique(label):
        mine = np.flatnonzero(label == name)
        found = words.of(rng.choice(mine, OF_CLASS, replace=False))
        if found:
            vectors.append(x[mine].mean(0) - x[label != name].mean(0))
            typical.append(found)
    return Directions(torch.from_numpy(np.stack(vectors)), typical)


# -- steering ----------------------------------------------------------------------------------------------------------


class Steered:
    """The network at the last token of some contexts."""

    def __init__(self, network: Any, tap: Tap, contexts: list[Tensor], length: float, dim: int) -> None:
        self._network, self._tap, self._length = network, tap, length
        self._prompts = [(ids[None], before_last(network, ids[None])) for ids in contexts]
        nothing = torch.zeros(1, dim)
        self._clean = [last_logits(network, tap, ids, before, nothing) for ids, before in self._prompts]

    def rises(self, vectors: Tensor, sets: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """[n, sets] rise of each set's log-probability, mean over contexts; α [n] and the KL [n] that it comes to."""
        unit = torch.nn.functional.normalize(vectors, dim=1)
        n = len(unit)
        low, high = torch.zeros(n, dtype=torch.float64), torch.full((n,), torch.inf, dtype=torch.float64)
        alpha = torch.full((n,), 0.1 * self._length, dtype=torch.float64)
        moved, rise = torch.zeros(n, dtype=torch.float64), torch.zeros(n, len(sets), dtype=torch.float64)
        todo = torch.arange(n)
        for left in reversed(range(ROUNDS)):
            moved[todo], rise[todo] = self._at(unit[todo], alpha[todo], sets)
            above = moved >= KL
            high = torch.where(above, high.minimum(alpha), high)
            low = torch.where(above, low, low.maximum(alpha))
            todo = torch.nonzero((moved / KL - 1).abs() > CLOSE).flatten()
            # What is returned belongs together: α stays where it was measured last.
            if not left or not len(todo):
                break
            # Of small changes the divergence grows with the square of α.
            guess = alpha * (KL / moved.clamp(min=1e-9)).sqrt().clamp(0.25, 4)
            middle = torch.where(high.isfinite(), (low + high) / 2, 2 * alpha)
            inside = (guess > low) & (guess < high)
            alpha[todo] = torch.where(inside, guess, middle)[todo]
        return rise, alpha, moved

    def _at(self, unit: Tensor, alpha: Tensor, sets: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Mean KL [n] and rises [n, sets] over contexts of α times unit vectors."""
        divergence, rise = torch.zeros(len(unit), dtype=torch.float64), torch.zeros(len(unit), len(sets)).double()
        added = alpha[:, None].float() * unit
        for (ids, before), clean in zip(self._prompts, self._clean, strict=True):
            for part in torch.arange(len(unit)).split(64):
                changed = last_logits(self._network, self._tap, ids, before, added[part])
                divergence[part] += divergences(clean, changed)
                rise[part] += _of_sets(changed, sets) - _of_sets(clean, sets)
        return divergence / len(self._prompts), rise / len(self._prompts)


def _of_sets(logits: Tensor, sets: list[list[int]]) -> Tensor:
    """[n, sets] log-probability that the next token is of each set."""
    found = logits.log_softmax(1)
    return torch.stack([found[:, one].logsumexp(1) for one in sets], dim=1)


def measured(
    learn_on: Dataset, judge_on: Dataset, seed: int, network: Any, folder: Path
) -> dict[str, dict[str, float]]:
    """What is stated about one seed, by method."""
    rng = np.random.default_rng(seed)
    x = learn_on.read(0, learn_on.rows)
    length = float(np.linalg.norm(x, axis=1).mean())
    drawn = [ids[-LONGEST:] for ids in contexts_of(judge_on, judge_on.rows, CONTEXTS, seed)]
    steered = Steered(network, Tap.parse(learn_on.attributes["module"]), drawn, length, x.shape[1])
    words = Words(learn_on, rng)
    found: dict[str, Directions] = {}
    table: dict[str, dict[str, float]] = {}
    for name, method in METHODS.items():
        atoms, codes, fvu = learned(learn_on, method, seed, folder)
        found[name] = features(atoms, codes, words, rng)
        table[name] = {"FVU": fvu}
    found[MEANS] = class_means(learn_on, words, rng)
    everything = [one for group in found.values() for one in group.words]
    noise = torch.from_numpy(rng.standard_normal((RANDOM, x.shape[1])).astype(np.float32))
    by_chance = steered.rises(noise, everything)[0].mean(0)
    first = 0
    for name, group in found.items():
        n = len(group.words)
        rise, alpha, moved = steered.rises(group.vectors, group.words)
        own = rise.diagonal()
        others = (rise.sum(1) - own) / (n - 1)
        table.setdefault(name, {"FVU": float("nan")})
        table[name] |= {
            "own words": float(own.mean()),
            "words of others": float(others.mean()),
            "random directions": float(by_chance[first : first + n].mean()),
            "own above others": float((own > others).double().mean()),
            "α / mean norm": float(alpha.mean()) / length,
            "not at the KL": float(((moved / KL - 1).abs() > CLOSE).double().mean()),
            "directions": n,
        }
        first += n
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layer", type=int, default=21)
    parser.add_argument("--folder", type=Path, help="keeps texts and rows, to be used again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        learn_on, judge_on = rows_of(folder, options.layer)
        network = hosts.load_network(hosts.find_model(MODEL), CPU)
        print(f"{learn_on.rows} rows to learn from, {judge_on.rows} to judge by", flush=True)
        seeds: list[dict[str, dict[str, float]]] = []
        for seed in options.seeds:
            seeds.append(measured(learn_on, judge_on, seed, network, Path(scratch)))
            found = ", ".join(f"{name} {row['own words']:+.3f}" for name, row in seeds[-1].items())
            print(f"seed {seed}: {found}, {time.monotonic() - begun:.0f} s", flush=True)
    columns = list(seeds[0][MEANS])
    print(f"layer {options.layer}, KL {KL}, means of seeds {options.seeds}")
    print("| | " + " | ".join(columns) + " | own words by seed |")
    own = {name: np.array([s[name]["own words"] for s in seeds]) for name in seeds[0]}
    net = {name: own[name] - [s[name]["words of others"] for s in seeds] for name in seeds[0]}
    listed = lambda values: ", ".join(f"{v:+.3f}" for v in values)  # noqa: E731
    for name in seeds[0]:
        cells = " | ".join(f"{np.mean([s[name][c] for s in seeds]):.3f}" for c in columns)
        print(f"| {name} | {cells} | {listed(own[name])} |")
    relations = {
        "snmf above topk": own["snmf"] - own["topk"],
        f"snmf not above {MEANS}": own[MEANS] - own["snmf"],
        "snmf above topk, less the words of others": net["snmf"] - net["topk"],
        f"snmf not above {MEANS}, less the words of others": net[MEANS] - net["snmf"],
    }
    for what, gaps in relations.items():
        holds = gaps.mean() > 0 and (gaps > 0).mean() > 0.5
        print(f"  {what}: by {gaps.mean():+.3f} ({listed(gaps)}): {'holds' if holds else 'does not hold'}")
    print(f"{time.monotonic() - begun:.0f} s")
    lost = [name for name in net if net[name].mean() <= 0]
    if lost:
        raise SystemExit(f"directions do not favour their own words: {', '.join(lost)}")


if __name__ == "__main__":
    main()
