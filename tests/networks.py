"""A small random language model and an encoder with their tokenizers, saved as transformers saves them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = ("the", "cat", "dog", "sat", "on", "mat", "a", "house", "ran", "to", "fro", "red", "blue", "green", "was", "is")


def save_tokenizer(folder: Path, *, around: bool) -> int:
    """A word tokenizer; `around` puts [CLS] and [SEP] around sequences. Returns the size of the vocabulary."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra activations")
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "[CLS]", "[SEP]", *WORDS]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if around:
        made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of 3 layers, D = 16."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="needs the extra activations")
    folder = tmp_path_factory.mktemp("llama")
    size = save_tokenizer(folder, around=False)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 2 layers, D = 12."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="needs the extra activations")
    folder = tmp_path_factory.mktemp("bert")
    size = save_tokenizer(folder, around=True)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 1 to 60 words: files, and lines of JSON."""
    import json
    import random

    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("texts")
    write = lambda n: " ".join(draw.choice(WORDS) for _ in range(n))  # noqa: E731
    for i, length in enumerate((60, 1, 7, 40)):
        (folder / f"{i}.txt").write_text(write(length))
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": write(n)}) + "\n" for n in (33, 5, 21)))
    return folder


def plain_loss(network: Any, module: str, ids: list[int], change: Callable[[Any, Any], Any]) -> float:
    """Mean cross-entropy in nats of the next token over windows of 16 tokens that overlap by one, by a plain hook: what
    `module` gives for all tokens but a window's first is change(what it takes, what it gives), each [n, D]."""
    import torch

    def hook(_: object, args: tuple[Any, ...], out: Any) -> Any:
        return torch.cat([out[:, :1], change(args[0][0, 1:], out[0, 1:])[None]], 1)

    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, 15):
        window, following = ids[start : start + 16], torch.tensor(ids[start + 1 : start + 17])
        handle = network.get_submodule(module).register_forward_hook(hook)
        with torch.no_grad():
            logits = network(torch.tensor([window])).logits[0]
        handle.remove()
        total += float(torch.nn.functional.cross_entropy(logits[: len(following)], following, reduction="sum"))
        count += len(following)
    return total / count
