"""`sparsefleet interpret --labels … --steer N`: classes of texts, passages, contexts, and what the report says."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, Codes
from sparsefleet.models.autoencoders.probing import held_out
from sparsefleet.pipelines import harvest, learn
from sparsefleet.pipelines.interpreting import InterpretJob, dictionary_of, interpret
from sparsefleet.pipelines.labels import labels_of
from sparsefleet.pipelines.probing import Passages, Pooling, keys_of
from sparsefleet.pipelines.steering import contexts
from sparsefleet.storage import open_dataset
from sparsefleet.workers import HarvestJob, JobError, LearnJob
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.steering import steer
from sparsefleet.workers.activations.taps import Tap
from sparsefleet.workers.progress import Progress

from .conftest import make_bars
from .test_interpreting import Whole, flags_of

pytest.importorskip("sklearn", reason="needs the extra activations")
ANIMALS, COLOURS = ("cat", "dog", "sat", "ran", "mat"), ("red", "blue", "green", "house", "was")
CONTEXT = 16


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Texts of two classes in two folders and lines of JSON, their activations, and an autoencoder of them."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    write = lambda words, n: " ".join(draw.choice(words) for _ in range(n))  # noqa: E731
    for kind, words in (("animals", ANIMALS), ("colours", COLOURS)):
        (folder / kind).mkdir()
        for i in range(6):
            (folder / kind / f"{i}.txt").write_text(write(words, 50 + i))
    (folder / "colours" / "more.jsonl").write_text("\n".join(json.dumps({"text": write(COLOURS, 9)}) for _ in range(3)))
    data, store = str(folder / "acts.zarr"), str(folder / "store")
    texts = [str(folder / "animals"), str(folder / "colours")]
    values = {"model": str(llama), "texts": texts, "out": data, "layers": "1", "context": CONTEXT, "skip": 1}
    harvest(HarvestJob.parse(values | {"dtype": "float32"}))
    learn(LearnJob.parse({
        "data": data, "store": store, "model": "abstopk", "atoms": 24, "settings": {"k": 3}, "passes": 20,
        "batch_rows": 64, "name": "features",
    }))  # fmt: skip
    out = str(folder / "report.html")
    return folder, {"data": data, "store": store, "dictionary": "features", "out": out, "overwrite": True}


def table(folder: Path, *lines: str) -> str:
    path = folder / "labels.csv"
    path.write_text("\n".join(("document,label", *lines)) + "\n")
    return str(path)


def test_the_probe_is_that_of_plain_means_over_passages(made):
    from sklearn.linear_model import LogisticRegression

    _, values = made
    job = InterpretJob(**values, labels="folders", atoms=2)
    told: list[Progress] = []
    metrics = interpret(job, told.append).metrics
    probing = [(p.kind, p.step, p.steps) for p in told if re.fullmatch(r"probes \d+ passages of 2 classes", p.message)]
    assert probing == [("start", 0, 1), ("step", 1, 1)]
    data, found = open_dataset(job.data), dictionary_of(job)
    x = torch.from_numpy(data.read(0, data.rows))
    dense = found.model.encode(found.params, Batch(x)).dense(24).double().numpy()
    classes = labels_of("folders", data)
    document, position = (data.read(0, data.rows, name) for name in ("document", "position"))
    places = sorted({(int(d), int(p) // CONTEXT) for d, p in zip(document, position)})
    rows = [np.flatnonzero((document == d) & (position // CONTEXT == p)) for d, p in places]
    positive = np.array([classes[d] == "colours" for d, _ in places])
    # The documents to test on are those that the same seed gives; what follows is written out.
    names = np.array([classes[d] for d, _ in places])
    test = held_out(names, np.array([d for d, _ in places]))
    for kind, values_ in (("latents", dense), ("raw", x.double().numpy())):
        means = np.stack([values_[r].mean(0) for r in rows])
        gap = np.abs(means[~test & positive].mean(0) - means[~test & ~positive].mean(0))
        for m in (1, 2, 5):
            best = means[:, np.argsort(-gap, kind="stable")[:m]]
            mean, size = best[~test].mean(0), best[~test].std(0)
            fitted = LogisticRegression(max_iter=1000).fit((best[~test] - mean) / size, positive[~test])
            expected = fitted.score((best[test] - mean) / size, positive[test])
            assert metrics[f"probe_{kind}_{m}"] == pytest.approx(expected), (kind, m)
    share = positive[test].mean()
    assert metrics["probe_majority"] == pytest.approx(max(share, 1 - share))
    assert metrics["probe_latents_5"] > 0.9


def test_steering_is_that_of_each_latent_alone(made, llama):
    folder, values = made
    job = InterpretJob(**values, model=str(llama), steer=3, atoms=0, examples=1)
    metrics = interpret(job).metrics
    page = (folder / "report.html").read_text()
    data, found = open_dataset(job.data), dictionary_of(job)
    x = data.read(0, data.rows)
    dense = found.model.encode(found.params, Batch(torch.from_numpy(x))).dense(24)
    network = hosts.load_network(llama, torch.device("cpu"))
    size = 0.5 * float(np.linalg.norm(x.astype(np.float64), axis=1).mean())
    drawn = contexts(data, data.rows)
    kls = []
    for atom in map(int, re.findall(r"#latent-(\d+)", page)):
        sign = -1 if (dense[:, atom] < 0).sum() > (dense[:, atom] > 0).sum() else 1
        d = sign * found.params["W_dec"][atom][None]
        kls.append(float(steer(network, Tap("model.layers.1"), drawn, d, size).divergence[0]))
        assert f'id="latent-{atom}"' in page
    assert len(kls) == 3 and kls == sorted(kls, reverse=True)
    assert metrics["steer_kl"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert metrics["steer_kl_random"] > 0 and {"steer_push", "steer_push_random"} <= set(metrics)


def test_contexts_are_stretches_of_the_texts(made, llama):
    folder, values = made
    data = open_dataset(values["data"])
    tokenizer = hosts.load_tokenizer(llama)
    files = [*sorted((folder / "animals").iterdir()), *sorted((folder / "colours").glob("*.txt"))]
    whole = [" ".join(map(str, tokenizer(f.read_text())["input_ids"])) for f in files]
    drawn = contexts(data, data.rows, count=20)
    assert len(drawn) == 20 and len({len(c) for c in drawn}) > 5
    for context in drawn:
        assert 2 <= len(context) <= CONTEXT
        if len(context) > 9:
            assert any(" ".join(map(str, context.tolist())) in text for text in whole)
    assert all(torch.equal(a, b) for a, b in zip(drawn, contexts(data, data.rows, count=20)))


def test_passages_follow_documents(made):
    data = open_dataset(made[1]["data"])
    document, keys = keys_of(data, 0, data.rows, CONTEXT)
    position = data.read(0, data.rows, "position")
    assert len(np.unique(keys)) == len(set(zip(document.tolist(), (position // CONTEXT).tolist())))
    assert (keys >> 32 == document).all()


def test_rows_on_which_attention_rests_are_left_out(made):
    data = open_dataset(made[1]["data"])
    n = 100
    pooling = Pooling(data, Passages.find(data, "folders", data.rows, 20), 4, 16, torch.device("cpu"))
    x = torch.ones(n, 16)
    x[7] *= 1000
    codes = Codes(torch.zeros(n, 1, dtype=torch.int32), torch.ones(n, 1))
    pooling.add(0, x, codes)
    assert pooling.left_out == 1 and float(pooling.pooled.rows.sum()) == n - 1
    rows = pooling.pooled.raw.sum(1) / pooling.pooled.rows.clamp(min=1)
    assert set(rows.tolist()) <= {0.0, 16.0}


def test_documents_are_named_as_people_name_them(made, tmp_path):
    folder, values = made
    data = open_dataset(values["data"])
    assert labels_of("folders", data) == ["animals"] * 6 + ["colours"] * 9
    found = labels_of(table(tmp_path, "animals/1.txt,a", f"{folder}/colours/2.txt,b", "more.jsonl:2,c"), data)
    assert [(i, label) for i, label in enumerate(found) if label] == [(1, "a"), (8, "b"), (13, "c")]
    found = labels_of(table(tmp_path, "more.jsonl,all", "colours/more.jsonl:3,last"), data)
    assert found[12:] == ["all", "all", "last"] and not any(found[:12])


def test_bad_labels_are_refused(sparsefleet, made, llama, tmp_path):
    _, values = made
    flags = flags_of(values)

    def refused(labels: str, *more: str) -> str:
        said = sparsefleet("interpret", *flags, f"--labels={labels}", *more)
        # One line, behind those that say what was done before.
        assert said.code == 2 and said.err.count("error: ") == 1, said.err
        assert said.err.splitlines()[-1].startswith("error: "), said.err
        return said.err

    assert "give folders" in refused("kinds")
    assert "cannot be read" in refused("none.csv")
    assert "no document of" in refused(table(tmp_path, "nowhere.txt,a", "b.txt,b"))
    assert "write the folder too" in refused(table(tmp_path, "1.txt,a"))
    assert "is both 'a' and 'b'" in refused(table(tmp_path, "animals/1.txt,a", "animals/1.txt,b"))
    assert "line 2: a document and a label" in refused(table(tmp_path, "animals/1.txt,"))
    assert "only 'a' in these rows" in refused(table(tmp_path, "animals/1.txt,a", "animals/2.txt,a"))
    assert "class 'b' has one document" in refused(
        table(tmp_path, "animals/1.txt,a", "animals/2.txt,a", "animals/3.txt,b")
    )
    other = tmp_path / "other.csv"
    other.write_text("file,kind\n1.txt,a\n")
    assert "it has file, kind" in refused(str(other))
    other.write_bytes(b"document,label\n\xff\xfe,a\n")
    assert "no table in UTF-8" in refused(str(other))
    assert "none of the 5 rows" in refused(table(tmp_path, "more.jsonl:3,a"), "--rows=5")


def test_documents_that_are_not_there_are_noted(sparsefleet, made, tmp_path):
    _, values = made
    lines = [f"{kind}/{i}.txt,{kind}" for kind in ("animals", "colours") for i in range(6)]
    whole = sparsefleet("interpret", *flags_of(values), f"--labels={table(tmp_path, *lines)}")
    assert "does not hold" not in whole.out
    more = [*lines, "TYPO.txt,animals", *(f"x/{i}.txt,colours" for i in range(4))]
    said = sparsefleet("interpret", *flags_of(values), f"--labels={table(tmp_path, *more)}")
    assert said.code == 0
    assert "does not hold: TYPO.txt, x/0.txt, x/1.txt and 2 more\n" in said.out


def test_what_cannot_be_probed_or_steered_is_refused(made, llama, tmp_path):
    _, values = made
    with pytest.raises(ValueError, match="steer=2: needs the model"):
        InterpretJob(**values, steer=2)
    bars = open_dataset(make_bars(str(tmp_path / "bars.zarr")))
    with pytest.raises(JobError, match="holds no documents"):
        labels_of("folders", bars)
    with pytest.raises(JobError, match="holds no texts"):
        contexts(bars, 10)


def test_the_report_shows_both(sparsefleet, made, llama):
    folder, values = made
    flags = flags_of(values)
    said = sparsefleet("interpret", *flags, "--labels=folders", "--steer=4", f"--model={llama}", "--atoms=3", "--json")
    assert said.code == 0, said.err
    assert {"probe_latents_1", "probe_raw_all", "steer_kl", "steer_push_random"} <= set(said.json["metrics"])
    text = (folder / "report.html").read_text()
    parser = Whole()
    parser.feed(text)
    assert not parser.open
    # Links only to latents further down on the same page.
    assert parser.fetched and all(link.startswith("#latent-") for link in parser.fetched)
    assert all(f'id="{link[1:]}"' in text for link in parser.fetched)
    for part in ("What few latents tell", "m dimensions", "<td>colours</td>", "What latents do", "random directions"):
        assert part in text
