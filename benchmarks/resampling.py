"""What brings dead latents back? AuxK beside resampling beside neither, for autoencoders with a penalty.

    python benchmarks/resampling.py [--models relu gated] [--seeds 0 1 2] [--steps 3000]

Rows of 64 numbers mix 192 random unit axes, five of them active on average, magnitude exp(0.3 N(0, 1)), noise 0.02, no
signs. 50,000 rows to learn from and 10,000 others to judge by; twice as many latents as axes, batches of 1,024 rows,
Adam at 2e-3. Latents count as dead after 100 batches, so that the first quarter of the run shows which they are; the
penalty is strong enough for many to die.

Expected: fewer dead latents with resampling than with neither, and a reconstruction that is no worse.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from bidirectional import BATCH, learned_and_judged
from sparsefleet.models import make_model
from sparsefleet.models.autoencoders.autoencoder import Autoencoder

DIM, AXES, ACTIVE, NOISE, LATENTS = 64, 192, 5, 0.02, 384
MEANS = {
    "neither": {"aux_coefficient": 0.0},
    "AuxK": {},
    "AuxK, weight 1": {"aux_coefficient": 1.0},
    "resampling": {"aux_coefficient": 0.0, "resample": (0.25, 0.4, 0.55)},
}
COLUMNS = ("dead_fraction", "fvu", "l0", "recovered")


def run(name: str, settings: dict, *, sparsity: float, seed: int, steps: int) -> dict[str, float]:
    """Learn one dictionary and judge it by other rows."""
    common = {"atoms": LATENTS, "learning_rate": 2e-3, "dead_tokens": 100 * BATCH, "sparsity": sparsity}
    model = make_model(name, common | settings)
    assert isinstance(model, Autoencoder)
    about = {"dim": DIM, "axes": AXES, "active": ACTIVE, "noise": NOISE, "signed": False}
    return learned_and_judged(model, **about, seed=seed, steps=steps)


def main() -> int:
    """Prints a line for every model and means; 1 where what was expected does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["relu", "gated"], choices=["relu", "gated", "jumprelu"])
    parser.add_argument("--sparsity", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | what brings latents back | " + " | ".join(COLUMNS) + " | dead_fraction, least to most |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    held = True
    for name in args.models:
        mean: dict[str, dict[str, float]] = {}
        for title, settings in MEANS.items():
            found = [run(name, settings, sparsity=args.sparsity, seed=seed, steps=args.steps) for seed in args.seeds]
            mean[title] = {c: statistics.mean(f[c] for f in found) for c in COLUMNS}
            spread = [f["dead_fraction"] for f in found]
            values = [f"{mean[title][c]:.3f}" for c in COLUMNS]
            print(f"| {name} | {title} | {' | '.join(values)} | {min(spread):.3f} to {max(spread):.3f} |", flush=True)
        with_it, without = mean["resampling"], mean["neither"]
        held &= with_it["dead_fraction"] < without["dead_fraction"] and with_it["fvu"] <= 1.02 * without["fvu"]
    print("Fewer dead latents by resampling, no worse reconstruction: " + ("held" if held else "NOT held"))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
