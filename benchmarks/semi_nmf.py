"""Semi-NMF of what a network computes: do its features steer the network towards the digit they stand for?

    python benchmarks/semi_nmf.py [--atoms 20 40]

A perceptron 64-256-10 learns scikit-learn's digits. Its hidden activations of 1,400 digits are factorised (`snmf` from
k-means, half of each feature's entries kept); the peers are a TopK autoencoder of the same capacity (k = 4), the means
of classes minus the mean, and random directions. A feature is assigned to the class on whose digits it is most active;
it is added to the activations of the other 397 digits as strongly as moves the predictions by 0.5 nats (KL), and the
gain in that class's mean probability counts (Shafran et al. 2025, on a network of our own).
"""

from __future__ import annotations

import argparse
import warnings
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sparsefleet.models import Batch, Model, Params, Probe, Stage, make_model
from torch import Tensor

KL, SEEDS = 0.5, 3


def network(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Hidden activations to learn from [1400, 256] with their classes, others [397, 256], and the last layer."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    x, y = digits.data[order] / 16, digits.target[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = MLPClassifier((256,), random_state=seed, max_iter=100).fit(x[:1400], y[:1400])
    hidden = torch.from_numpy(np.maximum(x @ net.coefs_[0] + net.intercepts_[0], 0))
    last, bias = torch.from_numpy(net.coefs_[1]), torch.from_numpy(net.intercepts_[1])
    return hidden[:1400], torch.from_numpy(y[:1400]), hidden[1400:], last, bias, float(net.score(x[1400:], y[1400:]))


def learn(model: Model, x: Tensor, steps: int, rows: int, seed: int) -> tuple[Params, list[float]]:
    """Parameters after `steps` updates with batches of `rows` rows, and the loss before each."""
    params = model.init(Probe(len(x), x.mean(0), x.var(0), x), torch.Generator().manual_seed(seed))
    losses: list[float] = []
    batches = x.split(rows)
    for step in range(steps):
        stage = Stage(step=step, steps=steps, rows=len(x))
        stats = model.statistics(params, Batch(batches[step % len(batches)].to(model.torch_dtype)), stage)
        losses.append(model.metrics(params, stats)["loss"])
        params = model.update(params, stats, stage)
    return params, losses


def steered(directions: Tensor, classes: Tensor, h: Tensor, last: Tensor, bias: Tensor) -> float:
    """Mean gain in the probability of each direction's class at a KL of 0.5 nats."""
    before = torch.log_softmax(h @ last + bias, 1)
    gains: list[float] = []
    for direction, label in zip(directions, classes, strict=True):
        shift = direction / direction.norm().clamp(min=1e-12) @ last
        low, high = 0.0, 1.0
        after = before
        for _ in range(60):
            middle = high if low == 0 else (low + high) / 2
            after = torch.log_softmax(h @ last + bias + middle * shift, 1)
            moved = float((before.exp() * (before - after)).sum(1).mean())
            if moved < KL and low == 0 and high < 1e6:
                low, high = (0.0, high * 2) if moved < KL / 4 else (middle, high * 4)
            elif moved < KL:
                low = middle
            else:
                low, high = max(low, 1e-9), middle
        gains.append(float((after.exp() - before.exp())[:, label].mean()))
    return float(np.mean(gains))


def assigned(codes: Tensor, labels: Tensor) -> Tensor:
    """The class on whose rows each feature is most active, [H]."""
    return torch.stack([codes[labels == c].mean(0) for c in range(10)]).argmax(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[20, 40])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for atoms in options.atoms:
        rows: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            x, labels, others, last, bias, accuracy = network(seed)
            energy = float((x**2).sum(1).mean())
            snmf = make_model("snmf", {"atoms": atoms, "share": 0.5, "dtype": "float64"})
            params, _ = learn(snmf, x, 100, len(x), seed)
            codes = snmf.encode(params, Batch(x)).dense(atoms)
            features = snmf.dictionary(params).T
            fvu = float((x - codes @ features).square().sum() / (x - x.mean(0)).square().sum())
            whole = make_model("snmf", {"atoms": atoms, "dtype": "float64"})
            _, losses = learn(whole, x, 100, len(x), seed)
            rises = sum(b > a + 1e-9 * energy for a, b in pairwise(losses))
            sae = make_model("topk", {"atoms": atoms, "k": 4})
            trained, _ = learn(sae, x, 1500, 200, seed)
            dense = sae.encode(trained, Batch(x.float())).dense(atoms).double()
            decoder = sae.dictionary(trained).T.double()
            means = torch.stack([x[labels == c].mean(0) for c in range(10)]) - x.mean(0)
            random = torch.randn(atoms, x.shape[1], generator=torch.Generator().manual_seed(seed)).double()
            found = {
                "snmf": steered(features, assigned(codes, labels), others, last, bias),
                "topk": steered(decoder, assigned(dense, labels), others, last, bias),
                "class means": steered(means, torch.arange(10), others, last, bias),
                "random": steered(random, assigned(x @ random.T, labels), others, last, bias),
                "FVU": fvu,
                "rises without winners": float(rises),
                "accuracy": accuracy,
            }
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
        shown = ", ".join(f"{n} {np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for n, v in rows.items())
        print(f"H={atoms}: {shown}", flush=True)


if __name__ == "__main__":
    main()
