"""Jobs on the topology as a user submits them, and what must be true afterwards."""

import json
import shutil
import urllib.error
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsefleet.pipelines import learning
from sparsefleet.storage import ArtifactStore, StorageError, create_dataset
from sparsefleet.workers import LearnJob

from ...waiting import wait_for
from .topology import Topology

OWN_MODEL = Path(__file__).parents[2] / "own_mean.py"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Site:
    """A data set and a store in the S3 server of a topology, and jobs that are submitted to its pool."""

    def __init__(self, fleet: Topology, name: str) -> None:
        """`name`: a prefix in the bucket, where nothing is yet."""
        self.fleet, self.folder = fleet, fleet.folder / "tmp" / name
        self.data, self.store = f"s3://artifacts/{name}/data.zarr", f"s3://artifacts/{name}/store"
        self.folder.mkdir()
        shutil.copy(OWN_MODEL, self.folder)
        values = np.random.default_rng(3).normal(1, 2, size=(2000, 16)).astype(np.float32)
        for uri in (self.data, str(self.folder / "data.zarr")):
            layout = {"data": ((16,), "float32")}
            with self.reaching():
                writer = create_dataset(uri, rows=2000, arrays=layout, shard_rows=256, chunk_rows=64, attributes={})
                for shard in writer.shards():
                    writer.write(shard, data=values[shard.slice])
                writer.finish()

    @contextmanager
    def reaching(self) -> Generator[None]:
        """Inside, this process reaches the S3 server."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in {**self.fleet.s3, "NO_PROXY": self.fleet.network.gateway}.items():
                patch.setenv(key, value)
            yield

    def submit(self, engine: str = "ray", passes: int = 40, pause: float = 0.02, **flags: object) -> str:
        """`sparsefleet learn --submit compose`, slow and committing often; returns the flow run's id."""
        group = {"workers": 2, "threads": 1} | ({"address": "auto"} if engine == "ray" else {})
        given = {
            "data": self.data,
            "store": self.store,
            "module-path": self.folder,
            "model": "own_mean:Mean",
            "name": "m",
            "atoms": 3,
            "passes": passes,
            "set": f"model.pause={pause}",
            "engine": engine,
            **({} if engine == "local" else group),
            "commit-seconds": 0.5,
            "report-seconds": 0.5,
            **flags,
        }
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        done = self.fleet.run("sparsefleet", "learn", *words, "--submit", "compose", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["id"]

    def state(self, run: str) -> str:
        """Type of the flow run's state; empty while the server does not answer."""
        try:
            return self.fleet.api(f"flow_runs/{run}")["state"]["type"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def committed(self) -> int:
        """The step of the newest commit among the unfinished runs; -1 without one, or while nothing can be read."""
        with self.reaching():
            try:
                return max((run.step for run in ArtifactStore(self.store, create=False).runs()), default=-1)
            except StorageError:
                return -1

    def commits(self, run: str, more: int = 3, seconds: float = 120) -> None:
        """Wait until a run has committed some more updates, and is then still at work."""
        before = max(self.committed(), 0)

        def ready() -> bool:
            assert self.state(run) not in ENDED, self.said(run)
            return self.committed() >= before + more

        wait_for(ready, seconds, lambda: self.said(run))

    def ends(self, run: str, seconds: float = 180) -> str:
        """Wait for the run's end; the type of its state."""
        wait_for(lambda: self.state(run) in ENDED, seconds, lambda: self.said(run))
        return self.state(run)

    def said(self, run: str) -> str:
        """The newest of the flow run's log, as its page shows it."""
        asked = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC", "limit": 200}
        found = self.fleet.api("logs/filter", json.dumps(asked).encode())
        return "\n".join(entry["message"] for entry in reversed(found))

    def undisturbed(self, passes: int = 40, **fields: Any) -> np.ndarray[Any, Any]:
        """W of the same job, run in one go in this process on a copy of the data."""
        job = {"data": str(self.folder / "data.zarr"), "store": str(self.folder / "undisturbed"), "name": "m"}
        model = {"model": "own_mean:Mean", "module_path": str(self.folder), "atoms": 3, "passes": passes}
        typed = LearnJob.parse({**job, **model, **fields})
        return ArtifactStore(typed.store).load(learning.learn(typed).ref).arrays["W"]

    def check_result(self, passes: int = 40, name: str = "m", **fields: Any) -> float:
        """There is one whole version with the parameters of the undisturbed run; returns the relative difference."""
        verified = self.fleet.run("sparsefleet", "artifacts", "verify", "--store", self.store)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        expected = self.undisturbed(passes, **fields)
        with self.reaching():
            store = ArtifactStore(self.store, create=False)
            assert [version.number for version in store.history(name)] == [1]
            found = store.load(f"{name}@1")
            assert store.runs() == []
        assert {len(course) for course in found.history.values()} == {passes}
        difference = float(np.linalg.norm(found.arrays["W"] - expected) / np.linalg.norm(expected))
        assert difference <= 1e-5
        return difference
