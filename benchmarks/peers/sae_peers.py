"""One contender of `sparse_autoencoders.py`, in a process of its own: a training step for every line on its input.

Each library makes its own step, as its own trainer does, with Adam at the same rate and no warm-up; nothing is logged.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Literal

# Everybody gets what this project sets for itself: large tensors in huge pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch import Tensor

POOL = 16_384
Step = Callable[[Tensor], float]
"""Takes a batch, makes one update, returns the mean squared error of a row before it."""


def make_rows(rows: int, dim: int) -> Tensor:
    """Sparse mixtures of 2048 random axes with a mean and noise, float32."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(2048, dim, generator=generator), dim=1)
    chosen = torch.randint(0, 2048, (rows, 20), generator=generator)
    weights = torch.rand(rows, 20, generator=generator) + 0.3
    mixed = torch.nn.functional.embedding_bag(chosen, axes, per_sample_weights=weights, mode="sum")
    return mixed + 0.1 * axes[0] + 0.02 * torch.randn(rows, dim, generator=generator)


def rate(atoms: int) -> float:
    """The learning rate of everybody."""
    return 2e-4 / (atoms / 2**14) ** 0.5


def start(x: Tensor, atoms: int, k: int, precision: Literal["bfloat16"] | None = None):
    """Our model with its start values, without the warm-up (a constant rate, as the peers have)."""
    from sparsefleet.models import Probe
    from sparsefleet.models.autoencoders.topk import TopK

    model = TopK(atoms=atoms, k=k, normalize="none", dead_tokens=10_000_000, encoder_precision=precision)
    wide = x[:8192].double()
    return model, model.init(Probe(len(x), wide.mean(0), wide.var(0), wide), torch.Generator().manual_seed(0))


def ours(x: Tensor, atoms: int, k: int, rows: int, precision: Literal["bfloat16"] | None = None) -> Step:
    """Statistics, their reduction and the update, as the learning loop makes them with one worker."""
    from sparsefleet.models import Batch, Stage
    from sparsefleet.workers.communicator import Solo
    from sparsefleet.workers.program import total

    model, params = start(x, atoms, k, precision)
    stage, solo = Stage(step=5_000, steps=10_000), Solo()

    def step(batch: Tensor) -> float:
        nonlocal params
        stats, _ = total(model, params, [Batch(batch)], stage, solo, 0.0)
        params = model.update(params, stats, stage)
        return float(stats.squared) / len(batch)  # pyright: ignore[reportAttributeAccessIssue]

    return step


def ours_bfloat16(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """The same with the encoder's product in bfloat16, and exact values of what it finds."""
    return ours(x, atoms, k, rows, "bfloat16")


def dense_autograd(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """The same loss and update in the plain way: dense codes, autograd, torch's Adam."""
    from sparsefleet.models.autoencoders.autoencoder import WEIGHTS

    model, params = start(x, atoms, k)
    w = {name: params[name].clone().requires_grad_(True) for name in WEIGHTS}
    adam = torch.optim.Adam(w.values(), lr=rate(atoms), betas=model.betas, eps=model.eps)

    def step(batch: Tensor) -> float:
        u = (batch - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        kept = u.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(u).scatter(1, kept.indices, kept.values.relu())
        loss = (batch - z @ w["W_dec"] - w["b_dec"]).square().sum() / len(batch)
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            rows, gradient = w["W_dec"], w["W_dec"].grad
            assert gradient is not None
            gradient -= (gradient * rows).sum(1, keepdim=True) * rows
            torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
            adam.step()
            rows /= rows.norm(dim=1, keepdim=True)
        return float(loss.detach())

    return step


def bound(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """One encoder product in float32 and torch's top-k: whatever a step does besides is overhead."""
    _, params = start(x, atoms, k)
    out = torch.empty(0)

    def step(batch: Tensor) -> float:
        nonlocal out
        if not len(out):
            out = torch.empty(len(batch), atoms)
        torch.addmm(params["b_enc"], batch, params["W_enc"].T, out=out).topk(k, dim=1, sorted=False)
        return float("nan")

    return step


def sparsify(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """eai-sparsify, with Adam instead of its signum; decoder norm, projection and counters as in its trainer."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=atoms, k=k))
    sae.b_dec.data = x[:8192].mean(0)
    adam = torch.optim.Adam(sae.parameters(), lr=rate(atoms))
    since = torch.zeros(atoms, dtype=torch.long)

    def step(batch: Tensor) -> float:
        nonlocal since
        sae.set_decoder_norm_to_unit_norm()
        fired = torch.zeros(atoms, dtype=torch.bool)
        out = sae(batch, dead_mask=since > 10_000_000)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        since += len(batch)
        since[fired] = 0
        return float((out.sae_out.detach() - batch).square().sum(1).mean())

    return step


def dictionary_learning(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """dictionary-learning's own trainer."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000,
        activation_dim=x.shape[1],
        dict_size=atoms,
        k=k,
        layer=0,
        lm_name="none",
        warmup_steps=0,
        seed=0,
        device="cpu",
    )
    number = 0

    def step(batch: Tensor) -> float:
        nonlocal number
        loss = trainer.update(number, batch)
        number += 1
        return loss

    return step


def sae_lens(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """sae-lens's own trainer with its default TopK."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=atoms, k=k))
    cfg = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=rows, lr=rate(atoms), lr_end=rate(atoms)
    )
    trainer = SAETrainer(cfg, sae, iter([x]))

    def step(batch: Tensor) -> float:
        out = trainer.step(batch)
        trainer.n_training_steps += 1
        return float(out.losses["mse_loss"].detach())

    return step


def overcomplete(x: Tensor, atoms: int, k: int, rows: int) -> Step:
    """overcomplete's loop with its monitoring off."""
    # The package's own start imports vision libraries that its autoencoders do not need.
    spec = importlib.util.find_spec("overcomplete")
    assert spec is not None and spec.submodule_search_locations is not None
    package = types.ModuleType("overcomplete")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["overcomplete"] = package
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    torch.manual_seed(0)
    sae = TopKSAE(x.shape[1], nb_concepts=atoms, top_k=k, device="cpu")
    adam = torch.optim.Adam(sae.parameters(), lr=rate(atoms))
    tracker = DeadCodeTracker(atoms, "cpu")

    def step(batch: Tensor) -> float:
        adam.zero_grad()
        _, z, again = sae(batch)
        loss = (batch - again).square().mean()
        tracker.update(z)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        return float(loss.detach()) * batch.shape[1]

    return step


PEERS = {
    "sparsify": ("eai-sparsify", sparsify),
    "overcomplete": ("overcomplete", overcomplete),
    "dictionary_learning": ("dictionary-learning", dictionary_learning),
    "sae_lens": ("sae-lens", sae_lens),
}
"""Module -> (distribution on PyPI, its step)."""
OWN = {"sparsefleet": ours, "sparsefleet, bfloat16": ours_bfloat16, "dense autograd": dense_autograd, "bound": bound}


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else float("nan")


def now_mb() -> float:
    """Resident memory of this process, MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else float("nan")


def batches(x: Tensor, rows: int) -> Iterator[Tensor]:
    """The pool, batch after batch, over and over."""
    return cycle(x.split(rows))


def main() -> None:
    """NAME DIM ATOMS K ROWS THREADS: answers each line with one step's times, error and memory as a line of JSON."""
    name, dim, atoms, k, rows, threads = sys.argv[1], *map(int, sys.argv[2:7])
    torch.set_num_threads(threads)
    x = make_rows(POOL, dim)
    step = (PEERS[name][1] if name in PEERS else OWN[name])(x, atoms, k, rows)
    before = now_mb()
    source = batches(x, rows)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        batch = next(source)
        wall, cpu = time.perf_counter(), time.process_time()
        error = step(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            json.dumps({"wall": wall, "cpu": cpu, "error": error, "peak": peak_mb(), "own": peak_mb() - before}),
            flush=True,
        )


if __name__ == "__main__":
    main()
