"""Denoising photographs with dictionaries learned from the noisy picture itself (Elad, Aharon 2006).

    python benchmarks/denoising_pursuit.py [--sigma 25] [--models ksvd mod online] [--pictures china flower lena boat]

`lena` and `boat` are standard pictures of the denoising literature, which the package spams-bin brings along. 8×8
patches without their means, 256 atoms that start at the overcomplete cosine dictionary, 10 passes over 40,000 patches
of the noisy picture, OMP down to (1.15 σ)² per pixel for the picture. Learning uses codes of 4 entries, and only
patches that are not explained by noise. The peer on the same noise is the cosine dictionary itself.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import distribution

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from sparsefleet.models import Batch, Probe, Stage, make_model
from sparsefleet.models.factorization.coding import ATOMS
from sparsefleet.models.factorization.denoising import GAIN, denoise, psnr
from torch import Tensor

SIDE, ATOMS_COUNT, PASSES = 8, 256, 10


def cosines(side: int, count: int) -> Tensor:
    """The overcomplete cosine dictionary [count, side²], without means but for the first atom."""
    per_axis = round(count**0.5)
    grid = torch.arange(side, dtype=torch.float64)[None] * torch.arange(per_axis, dtype=torch.float64)[:, None]
    waves = torch.cos(grid * torch.pi / per_axis)
    waves[1:] -= waves[1:].mean(1, keepdim=True)
    both = torch.einsum("ai,bj->abij", waves, waves).reshape(count, side * side)
    return torch.nn.functional.normalize(both, dim=1)


def picture(name: str) -> Tensor:
    """A grey photograph, 0 … 255: of scikit-learn, or a test picture that spams-bin installs."""
    if name in ("china", "flower"):
        found = load_sample_image(f"{name}.jpg").mean(2)
    else:
        files = distribution("spams-bin").files or []
        found = Image.open(next(f for f in files if f.name == f"{name}.png").locate())
    return torch.from_numpy(np.asarray(found, dtype=np.float64))


def learned(name: str, noisy: Tensor, sigma: float) -> Tensor:
    """Atoms [H, SIDE²] learned from patches of the noisy picture."""
    rows = noisy.unfold(0, SIDE, 1).unfold(1, SIDE, 1).reshape(-1, SIDE * SIDE)
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows[rows.square().mean(1) > (GAIN * sigma) ** 2]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows = rows[order[:40_000]]
    online = name == "online"
    model = make_model(name, {"atoms": ATOMS_COUNT, "coder": "omp", "nonzeros": 4, "dtype": "float64"})
    params = model.init(Probe(len(rows), rows.mean(0), rows.var(0), rows[:4096]), torch.Generator().manual_seed(0))
    params[ATOMS] = model.adopt(ATOMS, cosines(SIDE, ATOMS_COUNT), params[ATOMS])
    batches = rows.split(512 if online else len(rows))
    steps = len(batches) * PASSES
    for step in range(steps):
        stage = Stage(step=step, steps=steps, rows=len(rows))
        params = model.update(params, model.statistics(params, Batch(batches[step % len(batches)]), stage), stage)
    return params[ATOMS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--models", nargs="+", default=["ksvd", "mod", "online"])
    parser.add_argument("--pictures", nargs="+", default=["china", "flower", "lena", "boat"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.pictures:
        truth = picture(name)
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noisy = truth + options.sigma * noise
        results = {"noisy": f"{psnr(noisy, truth):.2f}"}
        results["cosines"] = f"{psnr(denoise(noisy, cosines(SIDE, ATOMS_COUNT), options.sigma), truth):.2f}"
        for model in options.models:
            begun = time.process_time()
            found = denoise(noisy, learned(model, noisy, options.sigma), options.sigma)
            results[model] = f"{psnr(found, truth):.2f} ({time.process_time() - begun:.0f} s)"
        shown = "  ".join(f"{n} {v}" for n, v in results.items())
        print(f"{name} {tuple(truth.shape)} σ={options.sigma:g}, PSNR in dB: {shown}", flush=True)


if __name__ == "__main__":
    main()
