"""The bars recipes over many seeds: are all bars found, and are prior and noise those of the data?

Every seed draws new data and new start values. "found" counts the seeds in which every bar has an atom of its own with
a cosine above 0.95; where a recipe has several starts, the one of highest free energy counts. The numbers behind it
are over those seeds: the largest error of π and σ, the mean relative error of the atoms, the smallest gain in free
energy per datapoint over the parameters that made the data (nats).

    python benchmarks/bars.py [--seeds 10] [--only bars-mca,bars-gsc] [--set starts=1]
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from sparsefleet.pipelines import ingest, learn
from sparsefleet.pipelines.recipes import load_recipe, recipe_names
from sparsefleet.pipelines.recipes.checks import measure
from sparsefleet.workers import LearnJob
from sparsefleet.workers.job import apply_assignments

COLUMNS = {
    "pi_error": (np.max, "max err π", "{:.4f}"),
    "sigma_error": (np.max, "max err σ", "{:.1%}"),
    "atoms_error": (np.mean, "mean err W", "{:.3f}"),
    "power_error": (np.mean, "mean err power", "{:.1%}"),
    "gain": (np.min, "min gain F", "{:+.2f}"),
}


def one_seed(name: str, seed: int, changes: list[str]) -> dict[str, float]:
    """What the recipe's check measures, for data and starts of this seed."""
    recipe = load_recipe(name)
    with tempfile.TemporaryDirectory() as folder:
        data = ingest(recipe.ingest(f"{folder}/bars.zarr", [f"seed={seed}"]))
        values = recipe.values() | {"data": data.uri, "store": f"{folder}/store", "seed": seed, "threads": 1}
        job = LearnJob.parse(apply_assignments(values, changes))
        result = learn(job)
        second = recipe.second(job, result.ref)
        if second is not None:
            job, result = second, learn(second)
        outcome = measure(recipe, job, result)
    return outcome.values | {"met": float(not outcome.unmet)}


def row(name: str, runs: list[dict[str, float]], seconds: float) -> str:
    """One line of the table."""
    wanted = load_recipe(name).expect["found"][0]
    good = [r for r in runs if r["found"] >= wanted]
    cells = [
        form.format(fold([r[key] for r in good])) if good and key in good[0] else "–"
        for key, (fold, _, form) in COLUMNS.items()
    ]
    met = sum(r["met"] for r in runs)
    return f"| `{name}` | {len(good)}/{len(runs)} | {met:.0f}/{len(runs)} | {' | '.join(cells)} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="recipes, separated by commas")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="change the job: starts=1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.only.split(",") if options.only else [n for n in recipe_names() if n.startswith("bars-")]
    titles = [title for _, title, _ in COLUMNS.values()]
    print(f"| recipe | all found | expectations met | {' | '.join(titles)} | CPU s per run |")
    print("| --- " * (len(titles) + 4) + "|")
    for name in chosen:
        begun = time.process_time()
        runs = [one_seed(name, seed, options.changes) for seed in range(options.seeds)]
        print(row(name, runs, (time.process_time() - begun) / options.seeds), flush=True)


if __name__ == "__main__":
    main()
