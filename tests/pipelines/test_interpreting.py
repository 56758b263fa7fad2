"""`sparsefleet interpret`: its numbers are those of plain tensors, its examples the strongest rows in their texts."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsefleet.models import Batch
from sparsefleet.pipelines.examples import Strongest
from sparsefleet.pipelines.interpreting import InterpretJob, dictionary_of, interpret, spread
from sparsefleet.storage import open_dataset
from sparsefleet.workers import JobError
from sparsefleet.workers.activations import hosts

from ..networks import plain_loss
from .conftest import make_bars

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(llama, texts, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Activations, and an autoencoder of them."""
    from sparsefleet.pipelines import harvest, learn
    from sparsefleet.workers import HarvestJob, LearnJob

    folder = tmp_path_factory.mktemp("interpret")
    data, store = str(folder / "acts.zarr"), str(folder / "store")
    values = {"model": str(llama), "texts": [str(texts)], "out": data, "layers": "1", "context": 16, "skip": 1}
    harvest(HarvestJob.parse(values | {"dtype": "float32"}))
    learn(LearnJob.parse({
        "data": data, "store": store, "model": "abstopk", "atoms": 24, "settings": {"k": 3}, "passes": 20,
        "batch_rows": 32, "name": "features",
    }))  # fmt: skip
    return folder, {"data": data, "store": store, "dictionary": "features", "out": str(folder / "report.html")}


class Whole(HTMLParser):
    """Counts open elements, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.fetched += [v for n, v in attrs if n in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_numbers_and_examples_are_those_of_plain_tensors(made, llama, texts):
    _, values = made
    result = interpret(InterpretJob(**values, model=str(llama), texts=[str(texts)], atoms=24, examples=3))
    data, found = open_dataset(values["data"]), dictionary_of(InterpretJob(**values))
    x = torch.from_numpy(data.read(0, data.rows))
    codes = found.model.encode(found.params, Batch(x))
    dense, again = codes.dense(24).double(), found.model.reconstruct(found.params, codes).double()
    fvu = (x - again).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert result.metrics["fvu"] == pytest.approx(float(fvu), rel=1e-5)
    assert result.metrics["l0"] == pytest.approx(float((dense != 0).sum(1).double().mean()))
    assert result.rows == data.rows
    page = Path(result.out).read_text()
    # The strongest row of every latent that is shown, by its value and its words.
    tokenizer = hosts.load_tokenizer(llama)
    alive = (dense != 0).any(0)
    assert page.count("<h3") == int(alive.sum())
    for atom in torch.nonzero(alive).flatten().tolist():
        row = int(dense[:, atom].abs().argmax())
        section = page.partition(f'id="latent-{atom}"')[2].partition("<h3")[0]
        first = re.search(r"<p class=x><b>\s*(\S+)</b>.*?<u>(?:<span[^>]*>)?([^<]+)", section)
        assert first
        assert float(first[1]) == pytest.approx(float(dense[row, atom]), rel=1e-2)
        assert first[2] == tokenizer.decode([int(data.read(row, row + 1, "token")[0])])


def test_the_loss_recovered_is_that_of_plain_hooks(made, llama, texts):
    _, values = made
    job = InterpretJob(**values, model=str(llama), texts=[str(texts / "0.txt")])
    metrics = interpret(job).metrics
    found = dictionary_of(job)
    network = hosts.load_network(llama, CPU)
    ids = hosts.load_tokenizer(llama)((texts / "0.txt").read_text())["input_ids"]
    x = torch.from_numpy(open_dataset(values["data"]).read(0, open_dataset(values["data"]).rows))
    changes = {
        "clean": lambda h: h,
        "zero": torch.zeros_like,
        "mean": lambda h: x.double().mean(0).float().expand_as(h),
        "reconstruction": lambda h: found.model.reconstruct(found.params, found.model.encode(found.params, Batch(h))),
    }
    for name, change in changes.items():
        found_loss = plain_loss(network, "model.layers.1", ids, lambda _, out, change=change: change(out))
        assert metrics[f"ce_{name}"] == pytest.approx(found_loss, rel=1e-4), name
    damage = metrics["ce_zero"] - metrics["ce_clean"]
    assert metrics["ce_recovered_zero"] == pytest.approx((metrics["ce_zero"] - metrics["ce_reconstruction"]) / damage)


def test_the_report_needs_nothing_else(made):
    _, values = made
    text = Path(interpret(InterpretJob(**values, atoms=5)).out).read_text()
    parser = Whole()
    parser.feed(text)
    assert not parser.open and not parser.fetched
    assert "http" not in text and "<script" not in text and "<svg" in text


def test_the_command(sparsefleet, made, llama):
    _, values = made
    flags = [f"--{name}={value}" for name, value in values.items()]
    said = sparsefleet("interpret", *flags, "--json")
    assert said.code == 0, said.err
    assert 0 < said.json["metrics"]["fvu"] < 1 and 0 <= said.json["metrics"]["bidirectional_fraction"] <= 1
    assert sparsefleet("interpret", *flags, "--out", "no/such/a.html").code == 2
    texts = sparsefleet("interpret", *flags, "--texts", "x.txt")
    assert texts.code == 2 and "--model" in texts.err
    other = sparsefleet("interpret", *flags, "--dictionary", "nothing")
    assert other.code == 2


def test_another_model_or_dictionary_is_refused(made, bars, store, bert, tmp_path):
    _, values = made
    with pytest.raises(JobError, match="is not the one that"):
        interpret(InterpretJob(**values, model=str(bert)))
    with pytest.raises(JobError, match="no sparse autoencoder, but a BSC"):
        interpret(InterpretJob(data=bars, dictionary="bars", store=store, out=values["out"]))
    with pytest.raises(JobError, match="is for rows of 16 dimensions"):
        interpret(InterpretJob(**(values | {"data": make_bars(str(tmp_path / "small.zarr"), size=3)})))


@given(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_the_strongest_do_not_depend_on_batches(examples, sizes, seed):
    rng = np.random.default_rng(seed)
    n, k, latents = sum(sizes), 3, 5
    indices = np.stack([rng.choice(latents, k, replace=False) for _ in range(n)]).astype(np.int32)
    values = rng.integers(-3, 4, (n, k)).astype(np.float32)
    found, start = Strongest(latents, examples), 0
    for size in sizes:
        found.add(start, indices[start : start + size], values[start : start + size])
        start += size
    for atom in range(latents):
        entries = [(r, float(values[r, j])) for r in range(n) for j in range(k) if indices[r, j] == atom]
        expected = sorted((e for e in entries if e[1]), key=lambda e: (-abs(e[1]), e[0]))[:examples]
        assert found.of(atom) == expected


def test_latents_are_spread_from_rare_to_frequent():
    assert spread(np.array([0, 5, 1, 9, 0, 3]), 3) == [2, 5, 3] or spread(np.array([0, 5, 1, 9, 0, 3]), 3) == [2, 1, 3]
    assert spread(np.zeros(4), 3) == [] and spread(np.ones(4), 0) == []
