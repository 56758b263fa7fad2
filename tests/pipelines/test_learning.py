"""From a job to a version, plainly: what is published, and what a dry run leaves behind."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sparsefleet.pipelines import encode, learn
from sparsefleet.pipelines.learning import dry_run
from sparsefleet.storage import ArtifactStore, open_dataset
from sparsefleet.workers import EncodeJob, JobError, LearnJob


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_the_version_has_everything(store, bars):
    found = ArtifactStore(store).load("bars@1")
    assert found.arrays["W"].shape == (16, 8)
    assert not any(name.startswith("training/") for name in found.arrays)
    assert set(found.figures) == {"atoms.png", "convergence.png"}
    assert all(Image.open(io.BytesIO(png)).size[0] > 50 for png in found.figures.values())
    assert len(found.history["free_energy"]) == 5
    card = found.card
    assert LearnJob.parse(card["job"]).atoms == 8
    assert card["data"] | {"uri": bars} == card["data"]
    assert card["data"]["fingerprint"] == open_dataset(bars).fingerprint
    assert (card["data"]["rows"], card["data"]["dim"]) == (600, 16)
    assert card["engine"]["name"] == "local"
    assert card["seed"] == 0
    assert card["wall_seconds"] > 0
    assert card["metrics"]["free_energy"] == pytest.approx(found.history["free_energy"][-1])


def test_aliases_lineage_and_run_branches(store):
    opened = ArtifactStore(store)
    assert opened.aliases("bars") == {"best": 1, "latest": 2}
    assert [entry["ref"] for entry in opened.lineage("bars@2")] == ["bars@2", "bars@1"]
    assert opened.runs() == []


def test_learning_improves_on_its_start_values(store):
    opened = ArtifactStore(store)
    assert opened.load("bars@2").history["free_energy"][-1] > opened.load("bars@1").history["free_energy"][-1]


def test_the_reporter_sees_the_run(tmp_path, bars):
    seen = []
    job = {"data": bars, "store": str(tmp_path / "s"), "atoms": 4, "passes": 3, "report_seconds": 0}
    result = learn(LearnJob.parse(job), seen.append)
    assert [p.kind for p in seen] == ["start", "step", "step", "commit", "done"]
    assert result.ref == "dictionary@1"
    assert result.to_dict()["run"] == seen[0].run_id


def test_codes_are_refused_as_data(tmp_path, bars, store):
    out = str(tmp_path / "codes.zarr")
    encoded = encode(EncodeJob.parse({"data": bars, "store": store, "dictionary": "bars@best", "out": out}))
    assert encoded.dictionary == "bars@1"
    assert encoded.rows == 600
    assert "codes.png" in encoded.figures
    assert open_dataset(out).kind == "codes"
    with pytest.raises(JobError, match="holds codes"):
        learn(LearnJob.parse({"data": out, "store": store}))


def test_a_relative_job_can_be_resumed_elsewhere(tmp_path, monkeypatch, bars):
    monkeypatch.chdir(Path(bars).parent)
    result = learn(LearnJob.parse({"data": "bars.zarr", "store": str(tmp_path / "s"), "atoms": 4, "passes": 1}))
    assert ArtifactStore(result.store).card(result.ref)["job"]["data"] == bars


def test_a_dry_run_keeps_nothing(tmp_path, monkeypatch, store, bars):
    monkeypatch.chdir(tmp_path)
    before = files_below(Path(store))
    done = dry_run(LearnJob.parse({"data": bars, "store": store, "atoms": 8, "init": "bars@best", "engine": "ray"}))
    assert np.isfinite(done.metrics["free_energy"])
    assert 1 <= done.step <= 4
    assert files_below(Path(store)) == before
    assert files_below(tmp_path) == set()


def test_a_dry_run_from_the_shell_needs_no_prefect(sparsefleet, bars, tmp_path):
    answer = sparsefleet("learn", "--data", bars, "--atoms", 8, "--dry-run", "--json")
    assert answer.code == 0
    assert answer.json["seconds"] > 0
    assert answer.json["metrics"]["free_energy"] < 0
    assert [s["update"] for s in answer.json["trial"]] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*"))


def test_a_plan_counts_and_runs_nothing(sparsefleet, bars, tmp_path):
    answer = sparsefleet("plan", "--data", bars, "--atoms", 8, "--engine", "ray", "--workers", 2, "--json")
    plan = answer.json
    assert plan["rows"] == 600
    assert plan["dim"] == 16
    assert plan["updates"] == 100
    assert plan["statistics_bytes"] >= 8 * (16 * 8 + 8 * 8)
    assert plan["traffic_bytes_per_update"] == plan["statistics_bytes"]
    assert plan["memory_bytes_per_worker"] < plan["memory_limit_per_worker"]
    assert plan["rows_per_second_per_worker"] > 0
    assert not list(tmp_path.rglob("*"))


def test_learn_from_the_shell_says_what_it_made_and_what_is_next(sparsefleet, bars, tmp_path):
    answer = sparsefleet("learn", "--data", bars, "--atoms", 4, "--passes", 2, "--name", "x", "--picture", "pics/a.png")
    assert answer.code == 0
    assert answer.out.startswith("x@1 published in ./artifacts")
    assert "sparsefleet up" in answer.err
    assert "next:" in answer.err
    assert Image.open(tmp_path / "pics" / "a.png").format == "PNG"
    again = sparsefleet("learn", "--data", bars, "--atoms", 4, "--passes", 2, "--name", "x", "--json", "--no-flow")
    assert again.json["version"] == "x@2"


def test_ingest_from_the_shell(sparsefleet, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(300, 5)))
    tried = sparsefleet("ingest", "arrays", "a.npy", "--out", "a.zarr", "--dry-run", "--json")
    assert tried.json["rows"] == 300
    assert not (tmp_path / "a.zarr").exists()
    made = sparsefleet("ingest", "arrays", "a.npy", "--out", "a.zarr", "--json")
    assert (made.json["rows"], made.json["dim"]) == (300, 5)
    refused = sparsefleet("ingest", "arrays", "a.npy", "--out", "a.zarr", "--whiten", "zca")
    assert refused.code == 2
    assert "overwrite" in refused.err
    shown = sparsefleet("data", "show", "a.zarr", "--json")
    assert shown.json["rows"] == 300
    assert sparsefleet("data", "verify", "a.zarr").code == 0


def test_encode_from_the_shell(sparsefleet, bars, store, tmp_path):
    args = ["encode", "--data", bars, "--store", store, "--dictionary", "bars", "--out", "c.zarr", "--json"]
    tried = sparsefleet(*args, "--dry-run")
    assert tried.json["dictionary"] == "bars@2"
    assert not (tmp_path / "c.zarr").exists()
    made = sparsefleet(*args)
    assert made.json["rows"] == 600
    assert made.json["metrics"]["entries_per_row"] > 0


class Enough(Exception):
    pass


def interrupted(job: LearnJob, steps: int) -> str:
    """A run of `job` that ended after so many updates; its id."""
    run = ""

    def stop(progress):
        nonlocal run
        run = progress.run_id
        if progress.step >= steps:
            raise Enough

    with pytest.raises(Enough):
        learn(job, stop)
    return run


def test_an_interrupted_run_is_resumed_by_its_id_and_ends_as_if_nothing_had_been(sparsefleet, bars, tmp_path):
    job = {
        "data": bars,
        "store": str(tmp_path / "s"),
        "atoms": 6,
        "passes": 12,
        "dtype": "float64",
        "report_seconds": 0,
    }
    run = interrupted(LearnJob.parse(job), 5)
    store = ArtifactStore(job["store"])
    assert [(r.run_id, r.step >= 5) for r in store.runs()] == [(run, True)]
    listed = sparsefleet("status", "--store", job["store"])
    assert f"sparsefleet resume {run}" in listed.err

    resumed = sparsefleet("resume", run, "--store", job["store"], "--json")
    assert resumed.code == 0
    assert resumed.json["steps"] == 12
    assert store.runs() == []
    whole = learn(LearnJob.parse(job | {"store": str(tmp_path / "whole")}))
    expected = ArtifactStore(whole.store).load(whole.ref).arrays["W"]
    np.testing.assert_array_equal(store.load(resumed.json["version"]).arrays["W"], expected)


def test_one_of_several_starts_is_never_offered_to_resume_and_moves_no_alias(sparsefleet, bars, tmp_path, monkeypatch):
    from sparsefleet.pipelines import learning

    flags = ["--data", bars, "--atoms", 6, "--passes", 4, "--name", "d", "--aliases", "best", "--starts", 2]
    with monkeypatch.context() as patch:
        patch.setattr(learning, "publish", lambda *_: _interrupt())
        answer = sparsefleet("learn", *flags, "--no-flow")
    assert answer.code == 130
    assert answer.err.splitlines()[-1].endswith("continue with the same command")
    store = ArtifactStore(str(tmp_path / "artifacts"))
    runs = store.runs()
    assert [run.job["aliases"] for run in runs] == [[], []]
    assert sparsefleet("learn", *flags, "--no-flow", "--json").json["version"] == "d@1"
    assert store.aliases("d") == {"best": 1, "latest": 1}
    assert store.runs() == []


def _interrupt():
    raise KeyboardInterrupt


def test_starts_of_a_model_without_free_energy_are_refused_at_once(bars, tmp_path):
    job = {"data": bars, "store": str(tmp_path / "s"), "model": "topk", "atoms": 16, "settings": {"k": 2}}
    job |= {"passes": 20, "batch_rows": 100, "report_seconds": 0}
    seen = []
    with pytest.raises(JobError, match="no free energy"):
        learn(LearnJob.parse(job | {"starts": 2}), seen.append)
    assert [p.kind for p in seen] == ["start"]
    assert ArtifactStore(job["store"]).runs() == []
    run = interrupted(LearnJob.parse(job), 5)
    with pytest.raises(JobError, match="no free energy"):
        learn(LearnJob.parse(job | {"starts": 2}))
    assert [r.run_id for r in ArtifactStore(job["store"]).runs()] == [run], "what had been begun before is kept"


@pytest.mark.parametrize("flags", [["--picture", "file/a.png"], ["--picture", "."], ["--figures", "file"]])
def test_pictures_that_cannot_be_written_are_refused_before_learning(sparsefleet, bars, tmp_path, flags):
    (tmp_path / "file").write_text("")
    answer = sparsefleet("learn", "--data", bars, "--atoms", 4, "--passes", 2, *flags)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "artifacts").exists()


def test_the_same_command_continues(sparsefleet, bars, tmp_path):
    job = {"data": bars, "store": str(tmp_path / "s"), "atoms": 6, "passes": 12, "report_seconds": 0}
    interrupted(LearnJob.parse(job), 5)
    seen = []
    learn(LearnJob.parse(job), seen.append)
    assert seen[0].step >= 5


def test_a_gradient_model_goes_the_same_way(tmp_path, bars):
    job = {"data": bars, "store": str(tmp_path / "s"), "model": "topk", "atoms": 16, "settings": {"k": 2}, "passes": 2}
    result = learn(LearnJob.parse(job | {"batch_rows": 100}))
    found = ArtifactStore(result.store).load(result.ref)
    assert not any(name.startswith("training/") for name in found.arrays)
    assert set(found.figures) == {"atoms.png", "convergence.png"}
    out = str(tmp_path / "codes.zarr")
    assert (
        encode(EncodeJob.parse({"data": bars, "store": job["store"], "dictionary": result.ref, "out": out})).rows == 600
    )


def test_a_model_of_ones_own_goes_the_same_way(sparsefleet, bars, tmp_path):
    (tmp_path / "own_model_for_this_test.py").write_text(
        "from dataclasses import dataclass\n"
        "from sparsefleet.models.truncated.bsc import BSC\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(BSC):\n"
        '    """My own."""\n'
        "    knob: int = 3\n"
        '    """A knob of mine."""\n'
    )
    name = "own_model_for_this_test:Mine"
    assert "A knob of mine" in sparsefleet("models", name).out
    learn_it = ["learn", "--data", bars, "--model", name, "--atoms", 4, "--passes", 2, "--set", "model.knob=5"]
    assert sparsefleet(*learn_it, "--dry-run").code == 0
    assert sparsefleet("plan", *learn_it[1:]).code == 0
    assert sparsefleet(*learn_it).code == 0
    encode_it = ["encode", "--data", bars, "--dictionary", "dictionary", "--out", "c.zarr"]
    assert sparsefleet(*encode_it).code == 0


@pytest.mark.e2e
def test_a_version_of_dealt_atoms_is_like_any_other(tmp_path, bars):
    fixed = {
        "data": bars, "store": str(tmp_path / "store"), "model": "topk", "atoms": 32, "passes": 2, "dtype": "float64",
        "batch_rows": 100, "settings": {"k": 3}, "name": "dealt",
    }  # fmt: skip
    learn(LearnJob.parse(fixed))
    result = learn(LearnJob.parse({**fixed, "engine": "mpi", "workers": 2, "threads": 1, "atom_groups": 2}))
    store = ArtifactStore(fixed["store"])
    one, other = store.load("dealt@1"), store.load("dealt@2")
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert other.arrays[name].dtype == array.dtype
        np.testing.assert_allclose(other.arrays[name], array, rtol=1e-10, atol=1e-12)
    assert result.figures.keys() == {"atoms.png", "convergence.png"} == other.figures.keys()
    assert store.verify() == [] and store.runs() == []
    assert not any((tmp_path / "store" / "memory").rglob("*.json"))
    out = encode(EncodeJob(data=bars, dictionary="dealt@2", store=fixed["store"], out=str(tmp_path / "codes.zarr")))
    assert out.rows == 600


def test_a_dry_run_of_dealt_atoms_needs_no_workers(tmp_path, bars):
    job = LearnJob(data=bars, store=str(tmp_path / "s"), model="topk", atoms=32, settings={"k": 3}, engine="mpi",
                   workers=2, atom_groups=2)  # fmt: skip
    assert dry_run(job).step > 0
