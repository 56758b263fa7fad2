"""Networks and tokenizers of transformers, from files on this machine only: nothing is ever asked of a hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage.ingest.sources import file_fingerprint
from ...storage.inputs import SCHEME, find_input
from ..documents import read_short
from ..errors import JobError
from .windows import IGNORED, Context, Inputs

GGUF = ".gguf"
TEXTS_AT_ONCE = 64
SINKS = 2
"""Tokens at the beginning of a context on which attention rests, where the tokenizer adds none for that. Their
activations are a hundred times longer than others (Sun et al. 2024, Massive Activations in Large Language Models), and
a thousandth of all rows would then hold most of the variance."""
MISSING = "harvesting needs transformers: pip install 'sparsefleet[activations]'"
WEIGHTS = ("*.safetensors", "*.bin")


def find_model(model: str) -> Path:
    """The folder or .gguf file that a job's `model` names.

    Raises:
        JobError: there is none, or it is no model.
        StorageError: an input that has not been brought in.
    """
    if model.startswith(SCHEME):
        return find_input(model.removeprefix(SCHEME))
    path = Path(model)
    if path.is_file() and path.suffix == GGUF:
        return path
    if (path / "config.json").is_file():
        return path
    inside = sorted(path.glob(f"*{GGUF}")) if path.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    what = "has no config.json" if path.is_dir() else "is no folder or .gguf file on this machine"
    raise JobError(
        f"model={model!r} {what}: give the folder that save_pretrained made, a .gguf file, or input:smollm2 "
        "(nothing is fetched from a hub)"
    )


def name_of(model: str, path: Path) -> str:
    """What data sets and messages call the model that `find_model` found at `path`: an input as the user does, others
    by the path's last part."""
    return model if model.startswith(SCHEME) else path.name


def fingerprint(path: Path, name: str = "") -> dict[str, Any]:
    """Name (by default the path's last part) and hashes of a model's files."""
    if path.is_file():
        return {"name": name or path.name, "files": [file_fingerprint(path)]}
    weights = sorted(p for pattern in WEIGHTS for p in path.glob(pattern))
    tokens = [p for p in (path / "tokenizer.json", path / "vocab.txt") if p.is_file()][:1]
    files = [file_fingerprint(p) for p in (path / "config.json", *weights, *tokens)]
    return {"name": name or path.name, "files": files}


def require_packages() -> None:
    """JobError where transformers is not installed; imports nothing."""
    if find_spec("transformers") is None:
        raise JobError(MISSING)


def predicts_next(path: Path) -> bool:
    """Whether a model predicts next tokens, by what its configuration says; .gguf files do."""
    if path.is_file():
        return True
    try:
        found = json.loads(read_short(path / "config.json"))
        names = found.get("architectures") or []
    except (OSError, ValueError, AttributeError) as err:
        raise JobError(f"{path / 'config.json'} cannot be read: {_line(err)}") from err
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def load_network(path: Path, device: torch.device, compute: str = "float32") -> torch.nn.Module:
    """The network of a model, ready for inference; one that predicts next tokens with the head that does so.

    Args:
        path: a folder, or a .gguf file.
        device: where it shall be.
        compute: dtype of its parameters.

    Raises:
        JobError: transformers is missing or cannot load it.
    """
    transformers = _transformers()
    where, options = _place(path)
    kind = transformers.AutoModelForCausalLM if predicts_next(path) else transformers.AutoModel
    with _loading(path), _quiet(transformers):
        network = kind.from_pretrained(where, dtype=getattr(torch, compute), local_files_only=True, **options)
    return network.to(device).eval()


def load_tokenizer(path: Path) -> Any:
    """The model's own tokenizer. Raises as `load_network`."""
    transformers = _transformers()
    where, options = _place(path)
    with _loading(path), _quiet(transformers):
        return transformers.AutoTokenizer.from_pretrained(where, local_files_only=True, **options)


def tokenize(
    tokenizer: Any, texts: Iterable[str], check: Callable[[], None] = lambda: None
) -> Generator[NDArray[np.int32]]:
    """Each text's own tokens, without those that the tokenizer adds to a sequence."""
    waiting: list[str] = []
    # A text may be longer than the network's context: it is cut later.
    ask = lambda: tokenizer(waiting, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    for text in texts:
        waiting.append(text)
        if len(waiting) == TEXTS_AT_ONCE:
            check()
            yield from (np.asarray(ids, dtype=np.int32) for ids in ask())
            waiting.clear()
    if waiting:
        yield from (np.asarray(ids, dtype=np.int32) for ids in ask())


def context_of(tokenizer: Any, length: int, skip: int | None) -> Context:
    """How documents are cut for this tokenizer: with the tokens that it puts around a sequence.

    Raises:
        JobError: nothing would be left of a context.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    around = list(tokenizer("a")["input_ids"])
    at = next((i for i in range(len(around)) if around[i : i + len(plain)] == plain), 0)
    prefix, suffix = tuple(around[:at]), tuple(around[at + len(plain) :])
    context = Context(length, (0 if prefix else SINKS) if skip is None else skip, prefix, suffix)
    if context.stride < 1:
        added = f"{len(prefix) + len(suffix)} tokens that the tokenizer adds"
        raise JobError(f"context={length}: nothing is left beside skip={context.skip} and {added}")
    return context


def feed(network: Any, inputs: Inputs, device: torch.device) -> Any:
    """What the network gives for a batch."""
    mask = {} if inputs.mask is None else {"attention_mask": inputs.mask.to(device)}
    more = {"use_cache": False} if getattr(network.config, "use_cache", None) is not None else {}
    return network(input_ids=inputs.ids.to(device), **mask, **more)


def next_token_loss(given: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next tokens in nats, summed over positions, so that a token's gradient does not depend on
    how long its context or how large its batch is."""
    logits = given.logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.to(logits.device).flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _place(path: Path) -> tuple[str, dict[str, str]]:
    return (str(path), {}) if path.is_dir() else (str(path.parent), {"gguf_file": path.name})


def _transformers() -> Any:
    # Read when huggingface_hub is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return import_module("transformers")
    except ImportError as err:
        raise JobError(MISSING) from err


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """Without the bars that transformers draws while it loads: our own bar is on the screen. (Those of .gguf files
    cannot be switched off.) What goes wrong is raised, not written."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _loading(path: Path) -> Generator[None]:
    try:
        yield
    except ImportError as err:
        raise JobError(f"{path} needs more packages ({_line(err)}): pip install 'sparsefleet[activations]'") from err
    except (OSError, ValueError, KeyError, RuntimeError) as err:
        raise JobError(f"transformers cannot load {path}: {_line(err)}") from err


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]
