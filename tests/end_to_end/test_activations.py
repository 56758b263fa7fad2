"""Activations through a live server: a worker harvests and interprets, and the pages say what was found."""

import json
from pathlib import Path
from typing import Any

import pytest
from sparsefleet.storage import open_dataset

from ..networks import llama
from ..waiting import wait_for
from .test_prefect_ui import api

__all__ = ["llama"]
pytestmark = pytest.mark.e2e


def test_harvest_and_interpret_run_on_a_worker(prefect_server, cli, llama: Path, tmp_path: Path):
    for kind, words in (("animals", "the cat sat on a mat "), ("colours", "red house was blue green ")):
        (tmp_path / kind).mkdir()
        for i in range(4):
            (tmp_path / kind / f"{i}.txt").write_text(words * (8 + i))

    def done(*args: object) -> dict[str, Any]:
        """The report that the flow run of a submitted command left."""
        submitted = cli(*args, "--submit", "local", "--json", cwd=tmp_path)
        assert submitted.returncode == 0, submitted.stderr
        run = json.loads(submitted.stdout)["id"]
        state = lambda: api(prefect_server, f"flow_runs/{run}")["state"]  # noqa: E731
        wait_for(lambda: state()["type"] in ("COMPLETED", "FAILED", "CRASHED"))
        assert state()["type"] == "COMPLETED", state()
        left = api(prefect_server, "artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return next(a for a in left if a["type"] == "markdown")

    # Paths are relative: they must mean the same to the worker, which stands elsewhere.
    report = done("harvest", "--model", llama, "animals", "colours", "--layers", 1, "--context", 16, "--out", "a.zarr")
    data = open_dataset(str(tmp_path / "a.zarr"))
    assert f"{data.rows:,} rows of 16" in report["data"] and data.attributes["texts"]["folders"][0] == "animals"

    learn = ["learn", "--data", "a.zarr", "--model", "topk", "--atoms", 24, "--set", "model.k=3", "--passes", 5]
    assert cli(*learn, "--name", "features", "--no-flow", cwd=tmp_path).returncode == 0
    judge = ["interpret", "--data", "a.zarr", "--dictionary", "features", "--model", llama, "--out", "a.html"]
    report = done(*judge, "--labels", "folders", "--steer", 3)
    assert "Note: features@1 was learned from these very rows" in report["data"]
    assert "features@1" in report["data"] and "probe_latents_1" in report["data"] and "steer_kl" in report["data"]
    page = (tmp_path / "a.html").read_text()
    assert "What few latents tell" in page and "What latents do" in page
