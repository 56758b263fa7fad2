"""From a harvest of two sites to a transcoder, and what the network loses and says by it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sparsefleet.models import Batch
from sparsefleet.pipelines import harvest, learn
from sparsefleet.pipelines.interpreting import InterpretJob, dictionary_of, interpret, taps_of
from sparsefleet.storage import open_dataset
from sparsefleet.workers import HarvestJob, JobError, LearnJob
from sparsefleet.workers.activations import hosts

from ..networks import plain_loss
from .test_interpreting import flags_of

CPU = torch.device("cpu")


def learned(model: Path, texts: Path, folder: Path, **more) -> dict[str, Any]:
    """A harvest and an autoencoder of it; the flags of `interpret`."""
    data, store = str(folder / "acts.zarr"), str(folder / "store")
    values = {"model": str(model), "texts": [str(texts)], "out": data, "layers": "1", "context": 16, "skip": 1}
    harvest(HarvestJob.parse(values | {"dtype": "float32", **more}))
    settings = {"k": 3} | ({"target": "outputs"} if "target" in more else {})
    learn(LearnJob.parse({
        "data": data, "store": store, "model": "topk", "atoms": 24, "settings": settings, "passes": 20,
        "batch_rows": 32, "name": "features",
    }))  # fmt: skip
    return {
        "data": data,
        "store": store,
        "dictionary": "features",
        "out": str(folder / "report.html"),
        "overwrite": True,
    }


@pytest.fixture(scope="module")
def made(llama, texts, tmp_path_factory):
    return learned(llama, texts, tmp_path_factory.mktemp("transcoder"), site="mlp_input", target="mlp")


def test_the_loss_recovered_is_that_of_plain_hooks(made, llama, texts):
    job = InterpretJob(**made, model=str(llama), texts=[str(texts / "0.txt")])
    metrics = interpret(job).metrics
    found, network = dictionary_of(job), hosts.load_network(llama, CPU)
    data = open_dataset(made["data"])
    assert data.attributes["outputs_module"] == "model.layers.1.mlp.down_proj"
    mean = torch.from_numpy(data.read(0, data.rows, "outputs")).double().mean(0).float()
    ids = hosts.load_tokenizer(llama)((texts / "0.txt").read_text())["input_ids"]
    changes = {
        "clean": lambda x, y: y,
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: mean.expand_as(y),
        "reconstruction": lambda x, y: found.model.reconstruct(
            found.params, found.model.encode(found.params, Batch(x))
        ),
    }
    for name, change in changes.items():
        found_loss = plain_loss(network, "model.layers.1.mlp", ids, change)
        assert metrics[f"ce_{name}"] == pytest.approx(found_loss, rel=1e-4), name
    damage = metrics["ce_mean"] - metrics["ce_clean"]
    assert metrics["ce_recovered_mean"] == pytest.approx((metrics["ce_mean"] - metrics["ce_reconstruction"]) / damage)


def test_a_transcoder_steers_at_what_it_predicts(sparsefleet, made, llama):
    flags = flags_of(made)
    said = sparsefleet("interpret", *flags, "--steer=4", f"--model={llama}", "--atoms=3", "--json")
    assert said.code == 0, said.err
    assert said.json["metrics"]["steer_kl"] > 0 and "steer_push" in said.json["metrics"]
    data = open_dataset(made["data"])
    length = torch.from_numpy(data.read(0, data.rows, "outputs")).double().norm(dim=1).mean()
    assert f"direction, {float(length) / 2:.3g} long" in Path(made["out"]).read_text()


def test_neurons_are_steered_and_other_modules_name_no_tokens(sparsefleet, llama, texts, tmp_path):
    for site, named in (("neurons", True), ("model.layers.{}.mlp.act_fn", False)):
        folder = tmp_path / site[:5]
        folder.mkdir()
        flags = flags_of(learned(llama, texts, folder, site=site))
        said = sparsefleet("interpret", *flags, "--steer=4", f"--model={llama}", "--atoms=3", "--json")
        assert said.code == 0, said.err
        page = (folder / "report.html").read_text()
        assert said.json["metrics"]["steer_kl"] > 0
        assert ("steer_push" in said.json["metrics"]) is named and ("tokens it names" in page) is named
        assert ("it names no tokens" in page) is not named


def test_a_target_that_comes_first_or_is_unknown_is_refused(llama, texts, tmp_path):
    values = learned(llama, texts, tmp_path, site="mlp", target="mlp_input")
    with pytest.raises(JobError, match="nothing passes there before"):
        interpret(InterpretJob(**values, model=str(llama), texts=[str(texts)]))
    elsewhere: Any = SimpleNamespace(uri="elsewhere", attributes={"module": "model.layers.1.mlp"})
    with pytest.raises(JobError, match="harvest it again with --target"):
        taps_of(elsewhere, dictionary_of(InterpretJob(**values)))
