"""Byte-level GPTs that learn the source of Python's standard library.

Two layers, contexts of 64 bytes. Files are split into those that the network learns, those whose activations are
harvested after the first block (`rows`), and those by which everything is judged (`held`).
"""

from __future__ import annotations

import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hosts.harvested import Site, Texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CONTEXT, EXCERPT, HELD, HARVESTED = 64, 2000, 24, 80


@dataclass(frozen=True)
class Recipe:
    """What a network is and how it learns; `seed` gives its start values, its batches and which file serves what."""

    seed: int = 0
    steps: int = 2000
    rate: float = 3e-3
    dim: int = 64
    tied: bool = True
    """Whether the last linear layer has the weights of the embedding."""


def excerpts(seed: int, *, harvested: int = HARVESTED) -> Texts:
    """Texts for the network, for autoencoders (`rows`, of so many files) and to judge by (`held`); no file serves two
    of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "lib2to3"}
    files = sorted(p for p in library.rglob("*.py") if not left_out & set(p.relative_to(library).parts))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if len(text) >= EXCERPT and text.isascii()]
    order = np.random.default_rng(seed).permutation(len(texts))
    held, rows, whole = np.split(order, [HELD, HELD + harvested])
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


def prepare(folder: Path, recipe: Recipe, texts: Texts, *, rows: int, gradients: bool) -> Site:
    """Make the network and the data set `rows.zarr`, unless they are in `folder`."""
    site = Site(str(folder / "host"), layer=0, context=CONTEXT, at_once=64)
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder / "host", texts["network"], recipe)
        site.harvest(folder, texts, rows=rows, gradients=gradients)
        (folder / "ready").touch()
    return site
