"""Every service of the topology breaks while a submitted run works.

`make chaos`; docs/reliability.md has the results.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sparsefleet.storage import ArtifactStore

from ..waiting import wait_for
from .fleet.jobs import Site
from .fleet.topology import NODES, Topology

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

PASSES = 60


def kill_a_ray_worker(fleet: Topology) -> None:
    fleet.members()[-1].kill()


def kill_a_node(fleet: Topology) -> None:
    fleet.kill(NODES[0])


def kill_the_raylet(fleet: Topology) -> None:
    fleet.processes(NODES[1], "/raylet/raylet ")[0].kill()


def cut_a_node_off(fleet: Topology) -> None:
    fleet.network.connect(NODES[0], False)
    time.sleep(45)
    fleet.network.connect(NODES[0], True)


def kill_the_prefect_server(fleet: Topology) -> None:
    fleet.kill("prefect")


def kill_postgresql(fleet: Topology) -> None:
    fleet.kill("database")


def close_s3_for_30_seconds(fleet: Topology) -> None:
    fleet.gate.open = False
    time.sleep(30)
    fleet.gate.open = True


def let_s3_fail_often(fleet: Topology) -> None:
    for _ in range(5):
        fleet.gate.failures = 0.5
        time.sleep(2)
        fleet.gate.failures = 0.0
        time.sleep(1)


def slow_s3_down(fleet: Topology) -> None:
    fleet.gate.delay = 1.0
    time.sleep(30)
    fleet.gate.delay = 0.0


@dataclass(frozen=True)
class Row:
    """A fault and what becomes of the run."""

    fault: Callable[[Topology], None]
    restarts: bool | None = False
    """The group of workers is started again; None: that depends on what is hit."""


ROWS = [
    Row(close_s3_for_30_seconds, restarts=None),
    Row(let_s3_fail_often, restarts=None),
    Row(slow_s3_down, restarts=None),
    Row(kill_a_ray_worker, restarts=True),
    Row(kill_a_node, restarts=True),
    Row(kill_the_raylet, restarts=True),
    Row(cut_a_node_off, restarts=True),
    Row(kill_the_prefect_server),
    Row(kill_postgresql),
]


@pytest.fixture
def mended(fleet: Topology) -> None:
    """Everything works again, whatever the test before has left."""
    fleet.gate.well()
    wait_for(lambda: fleet.raylets() == 4, 180)
    fleet.wait_for_prefect()
    wait_for(fleet.has_worker, 180, lambda: fleet.log("worker"))


def begun(fleet: Topology, name: str) -> tuple[Site, str]:
    """A run that has committed, and where."""
    site = Site(fleet, name)
    run = site.submit(passes=PASSES, pause=0.1)
    site.commits(run)
    return site, run


def resumed(site: Site, run: str) -> None:
    """It goes on when told to, to the same result."""
    again = site.fleet.run("sparsefleet", "resume", run)
    assert again.returncode == 0, again.stderr
    wait_for(lambda: site.fleet.api(f"flow_runs/{run}")["run_count"] == 2, 120, lambda: site.said(run))
    assert site.ends(run) == "COMPLETED", site.said(run)
    print(site.said(run))
    print(f"{site.folder.name}: relative difference of W {site.check_result(PASSES):.1e}")


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault.__name__)
def test_a_run_ends_well_although(fleet: Topology, row: Row) -> None:
    site, run = begun(fleet, row.fault.__name__.replace("_", "-"))
    row.fault(fleet)
    assert site.ends(run, 300) == "COMPLETED", site.said(run)
    print(site.said(run))
    if row.restarts is not None:
        assert ("workers started again" in site.said(run)) == row.restarts
    print(f"{row.fault.__name__}: relative difference of W {site.check_result(PASSES):.1e}")


@pytest.mark.usefixtures("mended")
def test_a_run_goes_on_after_its_prefect_worker_was_killed(fleet: Topology) -> None:
    """With the worker's container its flow run ends too, and nobody is left to say so: it is cancelled and resumed."""
    site, run = begun(fleet, "prefect-worker")
    fleet.kill("worker")
    wait_for(lambda: not fleet.members(), 60)
    assert 0 < site.committed() < PASSES
    wait_for(fleet.has_worker, 180, lambda: fleet.log("worker"))
    assert site.state(run) == "RUNNING"
    refused = fleet.run("sparsefleet", "resume", run)
    assert f"sparsefleet cancel {run[:8]}, then resume" in refused.stderr
    print(fleet.run("sparsefleet", "cancel", run, "--wait", 20).stdout)
    resumed(site, run)


@pytest.mark.usefixtures("mended")
def test_a_run_goes_on_after_the_ray_head_was_killed(fleet: Topology) -> None:
    """A head without a database of its own forgets its cluster: the run fails, and is resumed on the new cluster."""
    site, run = begun(fleet, "head-killed")
    fleet.kill("ray-head")
    assert site.ends(run, 180) in ("FAILED", "CRASHED"), site.said(run)
    wait_for(lambda: not fleet.members(), 60)
    print(site.said(run))
    assert 0 < site.committed() < PASSES
    wait_for(lambda: fleet.raylets() == 4, 240, lambda: fleet.log("worker")[-3000:])
    wait_for(fleet.has_worker, 180, lambda: fleet.log("worker")[-3000:])
    resumed(site, run)


@pytest.mark.usefixtures("mended")
def test_twenty_runs_at_once_on_a_limit_of_two(fleet: Topology) -> None:
    """All of them publish under one name: twenty versions, each one its own."""
    site = Site(fleet, "twenty")
    first = site.submit("local", passes=5, pause=0.0, seed=0)
    made = fleet.api(f"flow_runs/{first}")
    runs = [first]
    for seed in range(1, 20):
        job = {**made["parameters"]["params"], "seed": seed}
        body = json.dumps({"parameters": {"params": job}}).encode()
        runs.append(fleet.api(f"deployments/{made['deployment_id']}/create_flow_run", body)["id"])
    most = 0

    def ended() -> bool:
        nonlocal most
        states = [site.state(run) for run in runs]
        most = max(most, states.count("RUNNING"))
        return all(state == "COMPLETED" for state in states)

    wait_for(ended, 500, lambda: str([site.state(run) for run in runs]))
    assert most <= 2
    verified = fleet.run("sparsefleet", "artifacts", "verify", "--store", site.store)
    assert verified.returncode == 0, verified.stdout
    with site.reaching():
        store = ArtifactStore(site.store, create=False)
        assert sorted(version.number for version in store.history("m")) == list(range(1, 21))
        assert sorted(store.card(f"m@{number}")["seed"] for number in range(1, 21)) == list(range(20))
        assert store.runs() == []
