"""`sparsefleet interpret`: its numbers are those of plain tensors, its examples the strongest rows in their texts."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsefleet.models import Batch
from sparsefleet.pipelines import harvest, learn
from sparsefleet.pipelines.examples import Strongest
from sparsefleet.pipelines.interpreting import InterpretJob, dictionary_of, interpret, spread
from sparsefleet.storage import open_dataset
from sparsefleet.workers import HarvestJob, JobError, LearnJob
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.progress import Progress

from ..networks import plain_loss
from .conftest import make_bars

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(llama, texts, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Activations, and an autoencoder of them."""
    folder = tmp_path_factory.mktemp("interpret")
    data, store = str(folder / "acts.zarr"), str(folder / "store")
    values = {"model": str(llama), "texts": [str(texts)], "out": data, "layers": "1", "context": 16, "skip": 1}
    harvest(HarvestJob.parse(values | {"dtype": "float32"}))
    learn(LearnJob.parse({
        "data": data, "store": store, "model": "abstopk", "atoms": 24, "settings": {"k": 3}, "passes": 20,
        "batch_rows": 32, "name": "features",
    }))  # fmt: skip
    out = str(folder / "report.html")
    return folder, {"data": data, "store": store, "dictionary": "features", "out": out, "overwrite": True}


def flags_of(values: dict[str, Any]) -> list[str]:
    """The job's values as flags."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]


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
    flags = flags_of(values)
    said = sparsefleet("interpret", *flags, "--json")
    assert said.code == 0, said.err
    assert 0 < said.json["metrics"]["fvu"] < 1 and 0 <= said.json["metrics"]["bidirectional_fraction"] <= 1
    assert sparsefleet("interpret", *flags, "--out", "no/such/a.html").code == 2
    texts = sparsefleet("interpret", *flags, "--texts", "x.txt")
    assert texts.code == 2 and "--model" in texts.err
    other = sparsefleet("interpret", *flags, "--dictionary", "nothing")
    assert other.code == 2


def test_a_report_is_overwritten_only_where_it_is_asked_for(sparsefleet, made, tmp_path):
    _, values = made
    out = tmp_path / "mine.html"
    out.write_text("mine")
    flags = flags_of({n: v for n, v in values.items() if n != "overwrite"} | {"out": out})
    # No work has begun: there is no such data set.
    said = sparsefleet("interpret", *flags, "--data=nowhere.zarr")
    assert said.code == 2 and said.err == f"error: out={str(out)!r} exists: choose another file or pass --overwrite\n"
    assert out.read_text() == "mine"
    said = sparsefleet("interpret", *flags, f"--out={tmp_path}", "--overwrite")
    assert said.code == 2 and "is a folder: give a file" in said.err
    assert sparsefleet("interpret", *flags, "--overwrite").code == 0
    assert "<svg" in out.read_text()


def test_every_phase_says_what_it_does(made, llama, texts):
    _, values = made
    told: list[Progress] = []
    job = InterpretJob(**values, model=str(llama), texts=[str(texts)], steer=3)
    result = interpret(job, told.append)
    begun = [p.message for p in told if p.kind == "start"]
    steps = {p.message: (p.step, p.steps) for p in told if p.kind == "step"}
    network = llama.name
    expected = (
        f"reads and codes {result.rows} rows",
        f"loads {network}",
        "cross-entropy: reads the texts",
        r"cross-entropy of [\d,]+ tokens, as they are and changed",
        "steering: adds 3 latents and 32 random directions in 32 contexts",
        r"contexts: looks up the strongest rows of \d+ latents",
        r"contexts: codes [\d,]+ rows",
        f"writes {re.escape(job.out)}",
    )
    assert len(begun) == len(expected)
    for pattern, message in zip(expected, begun):
        assert re.fullmatch(pattern, message), message
    # The last message of a phase that counts says that all is done.
    assert all(done == of for done, of in steps.values())
    assert list(steps) == [begun[i] for i in (0, 3, 4, 6)]
    assert steps[begun[0]] == (result.rows, result.rows) and steps[begun[4]] == (32, 32)
    assert told[-1].kind == "done" and told[-1].metrics == result.metrics


def test_the_command_says_what_it_does(sparsefleet, made):
    said = sparsefleet("interpret", *flags_of(made[1]))
    assert said.code == 0
    for part in ("interpret features: reads and codes", "interpret features: contexts: looks up", ": writes /"):
        assert part in said.err


def test_rows_that_it_was_learned_from_are_noted(sparsefleet, made, llama, texts, tmp_path):
    _, values = made
    note = "features@1 was learned from these very rows: on rows that it has not seen the numbers may be worse"
    said = sparsefleet("interpret", *flags_of(values))
    assert f"note: {note}\n" in said.out and f"<p><b>Note:</b> {note}.</p>" in Path(values["out"]).read_text()
    # The same rows at another place.
    shutil.copytree(values["data"], tmp_path / "copy.zarr")
    assert interpret(InterpretJob(**(values | {"data": str(tmp_path / "copy.zarr")}))).note == note
    # Others.
    data = str(tmp_path / "others.zarr")
    about = {"model": str(llama), "texts": [str(texts / "0.txt")], "layers": "1", "context": 16, "skip": 1}
    harvest(HarvestJob.parse(about | {"out": data, "dtype": "float32"}))
    said = sparsefleet("interpret", *flags_of(values | {"data": data}), "--json")
    assert said.json["note"] == "" and "Note:" not in Path(values["out"]).read_text()


def test_rows_of_another_place_are_noted(sparsefleet, made, llama, texts, tmp_path):
    _, values = made
    about = {"model": str(llama), "texts": [str(texts)], "context": 16, "skip": 1, "dtype": "float32"}
    harvest(HarvestJob.parse(about | {"out": str(tmp_path / "a.zarr"), "layers": "0"}))
    said = sparsefleet("interpret", *flags_of(values | {"data": str(tmp_path / "a.zarr")}))
    rows = "the residual stream after layer {} of llama0, one token a row"
    note = f"features@1 was learned from other rows ({rows.format(1)}), and these are {rows.format(0)}"
    assert f"note: {note}\n" in said.out and note in Path(values["out"]).read_text()


@pytest.mark.parametrize(
    ("model", "settings"),
    [("topk", {"k": 6, "code_width": 2}), ("relu", {"code_width": 2, "sparsity": 0.1}), ("batchtopk", {"k": 6})],
)
def test_codes_are_judged_whole(made, model, settings):
    """`code_width` is for what `encode` keeps: a shorter code would be judged for what it is not."""
    _, values = made
    about = {"data": values["data"], "store": values["store"], "model": model, "atoms": 24, "passes": 10}
    learn(LearnJob.parse(about | {"settings": settings, "batch_rows": 32, "name": f"whole-{model}"}))
    job = InterpretJob(**(values | {"dictionary": f"whole-{model}"}))
    metrics, found = interpret(job).metrics, dictionary_of(job)
    x = torch.from_numpy(open_dataset(values["data"]).read(0, open_dataset(values["data"]).rows))
    whole = dataclasses.replace(found.model, code_width=24)
    codes = whole.encode(found.params, Batch(x))
    active = (codes.values != 0).sum(1).double().mean()
    assert float(active) > 2
    error = (x - whole.reconstruct(found.params, codes)).double().square().sum()
    assert metrics["l0"] == pytest.approx(float(active))
    variance = (x.double() - x.double().mean(0)).square().sum()
    assert metrics["fvu"] == pytest.approx(float(error / variance), rel=1e-5)


def test_the_network_is_loaded_once_and_only_if_it_predicts(made, llama, bert, texts, tmp_path, monkeypatch):
    _, values = made
    loaded = []
    real = hosts.load_network
    monkeypatch.setattr(hosts, "load_network", lambda *given: (loaded.append(given), real(*given))[1])
    interpret(InterpretJob(**values, model=str(llama), texts=[str(texts / "0.txt")], steer=2))
    assert len(loaded) == 1
    interpret(InterpretJob(**values, model=str(llama)))
    assert len(loaded) == 1
    harvested = {"model": str(bert), "texts": [str(texts)], "layers": "1", "context": 16, "dtype": "float32"}
    harvest(HarvestJob.parse(harvested | {"out": str(tmp_path / "b.zarr")}))
    about = {"data": str(tmp_path / "b.zarr"), "store": values["store"], "model": "topk", "atoms": 8, "name": "bert"}
    learn(LearnJob.parse(about | {"settings": {"k": 2}, "passes": 1, "batch_rows": 32}))
    mine = values | {"data": str(tmp_path / "b.zarr"), "dictionary": "bert"}
    told: list[Progress] = []
    for more, what in (({"steer": 2}, "nothing to steer"), ({"texts": [str(texts)]}, "no loss to recover")):
        with pytest.raises(JobError, match=what):
            interpret(InterpretJob(**mine, model=str(bert), **more), told.append)
    assert not told, "said before any row is read"


def test_texts_alone_do_not_give_what_a_code_by_gradient_needs(llama, texts, tmp_path):
    data, store = str(tmp_path / "g.zarr"), str(tmp_path / "s")
    about = {"model": str(llama), "texts": [str(texts)], "out": data, "layers": "1", "context": 16, "gradients": True}
    harvest(HarvestJob.parse(about))
    settings = {"k": 3, "encode_by": "gradient"}
    given = {"data": data, "store": store, "model": "gsae", "atoms": 24, "settings": settings, "name": "g"}
    learn(LearnJob.parse(given | {"passes": 1, "batch_rows": 32}))
    job = InterpretJob(data=data, store=store, dictionary="g", out=str(tmp_path / "o.html"), model=str(llama))
    assert interpret(job).metrics["l0"] == 3
    with pytest.raises(JobError, match=r"texts: g@1 needs gradients to encode, .* leave out --texts"):
        interpret(job.model_copy(update={"texts": [str(texts)], "overwrite": True}))


def test_some_of_the_rows_that_it_was_learned_from(made, tmp_path):
    _, values = made
    few = {"data": values["data"], "store": str(tmp_path / "store"), "model": "topk", "atoms": 8, "rows": 40}
    learn(LearnJob.parse(few | {"settings": {"k": 2}, "passes": 1, "batch_rows": 20, "name": "few"}))
    about = values | {"store": few["store"], "dictionary": "few"}
    whole = interpret(InterpretJob(**about))
    assert f"learned from the first 40 of these {whole.rows:,} rows:" in whole.note
    assert "learned from these very rows:" in interpret(InterpretJob(**about, rows=30)).note


def test_another_model_or_dictionary_is_refused(made, bars, store, bert, tmp_path):
    _, values = made
    with pytest.raises(JobError, match=r"is not the one that .* was harvested from: that was 'llama0'"):
        interpret(InterpretJob(**values, model=str(bert)))
    namesake = tmp_path / "llama0"
    shutil.copytree(bert, namesake)
    with pytest.raises(JobError, match="that was other files of the name 'llama0'"):
        interpret(InterpretJob(**values, model=str(namesake)))
    with pytest.raises(JobError, match="was not harvested from any model; leave out --model"):
        interpret(InterpretJob(**(values | {"data": bars}), model=str(bert)))
    with pytest.raises(JobError, match="no sparse autoencoder, but a BSC"):
        interpret(InterpretJob(data=bars, dictionary="bars", store=store, out=values["out"], overwrite=True))
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
