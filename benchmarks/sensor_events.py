"""Events on the mixed channels of a sensor network, found online by an orthogonal dictionary (ODL-FW, reconstructed).

    python benchmarks/sensor_events.py [--seeds 3]

32 channels measure an orthogonal mixture of 32 sources that are rarely active (θ = 0.05), with noise. The stream is
seen once, in batches of 32 rows. Two questions: does one pass reach the sparsity ‖D y‖₄⁴ that batch
matching-stretching-projection reaches with all rows (asked: 95 %), and are events found? An event is a jolt of one
source, three times its usual strength; its score is the largest |D y| of a row in units of that source's usual size,
beside the same score of the raw channels and of principal components. AUROC 1 is perfect, 0.5 a guess.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from orthogonal_online import begin, learn, make_rows, matched_stretched, orthogonal
from sklearn.metrics import roc_auc_score
from sparsefleet.models.factorization.odlfw import ODLFW
from torch import Tensor

CHANNELS, THETA, NOISE, ROWS, BATCH = 32, 0.05, 0.05, 32_000, 32
EVENTS, JOLT = 500, 3.0


def scores(z: Tensor, reference: Tensor) -> Tensor:
    """[n] the largest entry of a row in units of its column's usual size."""
    usual = reference.abs().quantile(0.95, dim=0).clamp(min=1e-6)
    return (z.abs() / usual).amax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        truth = orthogonal(CHANNELS, seed)
        generator = torch.Generator().manual_seed(50 + seed)
        y = make_rows(truth, ROWS, THETA, 100 + seed, noise=NOISE)
        model = ODLFW(atoms=CHANNELS, dtype="float64")
        online = model.dictionary(learn(model, begin(model, y, seed), y, BATCH)).T
        batch = matched_stretched(y, 4, seed, iterations=20)
        sparsity = [float((y @ d.T).pow(4).sum()) for d in (online, batch)]

        test = make_rows(truth, 20_000, THETA, 900 + seed, noise=NOISE)
        labels = np.zeros(len(test), dtype=bool)
        labels[:EVENTS] = True
        source = torch.randint(CHANNELS, (EVENTS,), generator=generator)
        sign = torch.randint(0, 2, (EVENTS, 1), generator=generator) * 2 - 1
        quiet = test[EVENTS:10_000]
        test[:EVENTS] += JOLT * sign * truth[source]
        components = torch.linalg.eigh(y.T @ y).eigenvectors.T
        bases = {"learned atoms": online, "raw channels": torch.eye(CHANNELS).double(), "principal": components}
        found = {name: roc_auc_score(labels, scores(test @ d.T, quiet @ d.T).numpy()) for name, d in bases.items()}
        shown = ", ".join(f"{n} {v:.3f}" for n, v in found.items())
        print(f"seed {seed}: sparsity {sparsity[0] / sparsity[1]:.1%} of the batch method's; AUROC {shown}")


if __name__ == "__main__":
    main()
