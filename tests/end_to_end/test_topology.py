"""A flow run through every service of deploy/compose.yaml, as real processes that reach each other over a network."""

import pytest

from .fleet.jobs import Site
from .fleet.topology import NODES, Topology

# Among the slow ones: starting and ending all services takes two minutes.
pytestmark = pytest.mark.chaos


@pytest.mark.timeout(400)
def test_a_submitted_run_goes_through_all_services_into_the_s3_store(fleet: Topology) -> None:
    site = Site(fleet, "through")
    run = site.submit(passes=30, pause=0.1)
    site.commits(run)
    # One on each node: the sums travel from machine to machine.
    assert [len(fleet.processes(node, "^ray::Member")) for node in NODES] == [1, 1]
    assert site.ends(run) == "COMPLETED", site.said(run)
    assert site.check_result(passes=30) == 0.0
