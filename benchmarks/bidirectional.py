"""Does a latent that may be negative pay? TopK beside AbsTopK on features that have two poles, and on a control.

    python benchmarks/bidirectional.py [--seeds 0 1 2] [--steps 2500] [--aux-coefficient 1]

Rows of 64 numbers mix 96 random unit axes, each active with probability 5/96, magnitude exp(0.3 N(0, 1)), noise 0.02;
with a random sign ("signed"), or without ("non-negative", the control: there both must do equally well). 50,000 rows to
learn from and 10,000 others to judge by; k = 5, batches of 1,024 rows, Adam at 2e-3. Latents count as dead after five
batches, and AuxK has weight 1 rather than 1/32: Adam's second moments remember the gradients from before a latent died,
and with so few steps a weak term would hardly move it.

Expected (signed): with as many latents as axes AbsTopK has at most 0.6 of TopK's unexplained variance and recovers at
least 0.9 of the axes, TopK at most 0.5; with twice as many TopK spends two latents on an axis. Control: within 10 %.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from sparsefleet.models import Batch, Probe, Schedule, make_model
from sparsefleet.models.autoencoders.autoencoder import Autoencoder
from sparsefleet.models.autoencoders.measures import evaluate, recovery, summary
from torch import Tensor

DIM, AXES, ACTIVE, NOISE, BATCH = 64, 96, 5, 0.02, 1024


def synthetic_rows(
    rows: int, truth: Tensor, *, active: float, signed: bool, noise: float, generator: torch.Generator
) -> Tensor:
    """Rows [n, E] float32 that mix the directions `truth` [E, G].

    Every direction is active with probability `active` / G on its own, with magnitude exp(0.3 N(0, 1)) and a random
    sign if `signed`; Gaussian noise of standard deviation `noise` is added.
    """
    atoms = truth.shape[1]
    on = torch.rand(rows, atoms, generator=generator) < active / atoms
    codes = on * torch.exp(0.3 * torch.randn(rows, atoms, generator=generator))
    if signed:
        codes = codes * (2.0 * (torch.rand(rows, atoms, generator=generator) < 0.5) - 1)
    return codes @ truth.T.float() + noise * torch.randn(rows, truth.shape[0], generator=generator)


def learned_and_judged(
    model: Autoencoder, *, dim: int, axes: int, active: float, signed: bool, noise: float, seed: int, steps: int
) -> dict[str, float]:
    """Learn one dictionary from rows that mix `axes` random unit axes, and judge it by other rows."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(dim, axes, generator=generator), dim=0)
    options = {"active": active, "signed": signed, "noise": noise, "generator": generator}
    x, held = (synthetic_rows(n, truth, **options) for n in (50_000, 10_000))
    wide = x[:8192].double()
    params = model.init(Probe(len(x), wide.mean(0), wide.var(0), wide), generator)
    schedule = Schedule(passes=1, update_every="batch", batch_rows=BATCH)
    order = torch.randperm(len(x), generator=generator)
    for step in range(steps):
        at = step * BATCH % (len(x) - BATCH)
        batch, stage = Batch(x[order[at : at + BATCH]]), schedule.at(step, steps, seed=seed, rows=len(x))
        for _ in range(model.surveys_at(stage)):
            stage = model.refine(params, model.survey(params, batch, stage), stage)
        params = model.update(params, model.statistics(params, batch, stage), stage)
    return summary(evaluate(model, params, Batch(held))) | recovery(model.dictionary(params), truth)


def run(name: str, atoms: int, *, signed: bool, seed: int, steps: int, aux: float) -> dict[str, float]:
    """Learn one dictionary and judge it by other rows."""
    model = make_model(
        name, {"atoms": atoms, "k": 5, "learning_rate": 2e-3, "dead_tokens": 5 * BATCH, "aux_coefficient": aux}
    )
    assert isinstance(model, Autoencoder)
    about = {"dim": DIM, "axes": AXES, "active": ACTIVE, "noise": NOISE}
    return learned_and_judged(model, **about, signed=signed, seed=seed, steps=steps)


COLUMNS = ("fvu", "recovered", "atoms_per_direction", "bidirectional_fraction", "dead_fraction")


def main() -> None:
    """Prints a line for every data, width and model: means over seeds, and the range of fvu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--aux-coefficient", type=float, default=1.0, help="weight of AuxK; models have 0.03125")
    args = parser.parse_args()
    options = {"steps": args.steps, "aux": args.aux_coefficient}
    torch.set_num_threads(1)
    print("| data | latents | model | " + " | ".join(COLUMNS) + " | fvu, least to most |")
    for signed, atoms in ((True, AXES), (True, 2 * AXES), (False, AXES)):
        for name in ("topk", "abstopk"):
            found = [run(name, atoms, signed=signed, seed=seed, **options) for seed in args.seeds]
            means = [f"{statistics.mean(f[c] for f in found):.3f}" for c in COLUMNS]
            spread = f"{min(f['fvu'] for f in found):.3f} to {max(f['fvu'] for f in found):.3f}"
            data = "signed" if signed else "non-negative"
            print("| " + " | ".join([data, str(atoms), name, *means, spread]) + " |", flush=True)


if __name__ == "__main__":
    main()
