"""Byte-level GPTs that learn the source of Python's standard library, and what their residual stream loses by a change.

Two layers, contexts of 64 bytes. Files are split into those that the network learns, those whose activations are
harvested after the first block (`rows`), and those by which everything is judged (`held`).
"""

from __future__ import annotations

import json
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sparsefleet.storage import open_dataset
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.harvesting import harvest, read
from sparsefleet.workers.activations.job import HarvestJob
from sparsefleet.workers.activations.splicing import Change, losses
from sparsefleet.workers.activations.taps import Tap, record
from sparsefleet.workers.activations.windows import Windows
from sparsefleet.workers.communicator import Solo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CONTEXT, EXCERPT, HELD, HARVESTED, AT_ONCE = 64, 2000, 24, 80, 64
CPU = torch.device("cpu")
Texts = dict[str, list[str]]


@dataclass(frozen=True)
class Recipe:
    """What a network is and how it learns; `seed` gives its start values, its batches and which file serves what."""

    seed: int = 0
    steps: int = 2000
    rate: float = 3e-3
    dim: int = 64
    tied: bool = True
    """Whether the last linear layer has the weights of the embedding."""


def excerpts(seed: int) -> Texts:
    """Texts for the network, for autoencoders (`rows`) and to judge by (`held`); no file serves two of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "lib2to3"}
    files = sorted(p for p in library.rglob("*.py") if not left_out & set(p.relative_to(library).parts))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if len(text) >= EXCERPT and text.isascii()]
    order = np.random.default_rng(seed).permutation(len(texts))
    held, rows, whole = np.split(order, [HELD, HELD + HARVESTED])
    return {
        "held": [texts[i][-EXCERPT:] for i in held],
        "rows": [texts[i][-EXCERPT:] for i in rows],
        "network": [texts[i] for i in whole],
    }


def styled(texts: Texts) -> Texts:
    """Every text twice, one after the other: in capitals, and in small letters."""
    return {part: [copy for text in given for copy in (text.upper(), text.lower())] for part, given in texts.items()}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 tokens, one for each byte."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def train(folder: Path, texts: list[str], recipe: Recipe) -> None:
    """Learn to predict the bytes of `texts`; written to `folder` as transformers does."""
    torch.manual_seed(recipe.seed)
    tokenizer = byte_tokenizer()
    ids = torch.tensor(tokenizer("\n".join(texts), verbose=False)["input_ids"])
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=recipe.dim, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, activation_function="gelu", bos_token_id=0, eos_token_id=0, tie_word_embeddings=recipe.tied,
    )  # fmt: skip
    network = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=0.01)
    slope = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.05)
    begun = time.monotonic()
    for step in range(recipe.steps):
        at = torch.randint(len(ids) - CONTEXT, (32, 1)) + torch.arange(CONTEXT)
        loss = network(input_ids=ids[at], labels=ids[at]).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        slope.step()
        if step % 1000 == 999:
            said = f"loss {float(loss.detach()):.3f}, {time.monotonic() - begun:.0f} s"
            print(f"network {recipe.seed}: {step + 1} steps, {said}", flush=True)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def harvest_job(folder: Path, part: str, *, rows: int | None, gradients: bool) -> HarvestJob:
    """The job that writes the residual stream of one part of the texts."""
    return HarvestJob(
        model=str(folder / "host"), texts=[str(folder / f"{part}.jsonl")], out=str(folder / f"{part}.zarr"),
        layers=[0], gradients=gradients, context=CONTEXT, tokens=rows, dtype="float32", batch=64, overwrite=True,
    )  # fmt: skip


def prepare(folder: Path, recipe: Recipe, texts: Texts, *, rows: int, gradients: bool) -> None:
    """Make the network and the data set `rows.zarr`, unless they are in `folder`."""
    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    train(folder / "host", texts["network"], recipe)
    for part in ("rows", "held"):
        lines = [json.dumps({"text": text}) for text in texts[part]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for _ in harvest(harvest_job(folder, "rows", rows=rows, gradients=gradients), Solo(), CPU):
        pass
    (folder / "ready").touch()


@dataclass(frozen=True)
class Host:
    """A network, and the texts held back with what passes at the site."""

    network: Any
    tap: Tap
    windows: Windows
    x: Tensor
    """[N, D]"""
    gradients: list[Tensor]
    """Of each batch of windows, [n, D]: of the next bytes' summed cross-entropy; none where they were not asked for."""

    def rises(self, changes: dict[str, Change]) -> dict[str, float]:
        """Rise of the cross-entropy in nats by each change, and the network's own as `clean`."""
        found = losses(self.network, self.tap, self.windows, changes, CPU, batch=AT_ONCE)
        return {name: value - (0 if name == "clean" else found["clean"]) for name, value in found.items()}


def load(folder: Path, *, gradients: bool) -> Host:
    """Held-out activations and gradients, in the order in which `losses` comes by them."""
    job = harvest_job(folder, "held", rows=None, gradients=gradients)
    windows, network = read(job).windows, hosts.load_network(folder / "host", CPU)
    tap = Tap.parse(open_dataset(str(folder / "rows.zarr")).attributes["module"])
    x: list[Tensor] = []
    found: list[Tensor] = []
    for first in range(0, len(windows.starts), AT_ONCE):
        inputs = windows.batch(range(first, min(first + AT_ONCE, len(windows.starts))))
        loss = lambda given, labels=inputs.labels: hosts.next_token_loss(given, labels)  # noqa: E731
        forward = lambda inputs=inputs: hosts.feed(network, inputs, CPU)  # noqa: E731
        passed = record(network, [tap], forward, loss if gradients else None)
        x.append(passed.activations[tap].flatten(0, 1)[inputs.rows])
        if gradients:
            found.append(passed.gradients[tap].flatten(0, 1)[inputs.rows])
    return Host(network, tap, windows, torch.cat(x), found)
