"""What a run on this machine starts is reached from this machine only, metrics included."""

import ipaddress
from pathlib import Path

import psutil
import pytest
from sparsefleet.workers import LearnJob, run
from sparsefleet.workers.engines.mpi import find_launcher

pytestmark = pytest.mark.e2e


def listening() -> dict[str, str]:
    """Addresses where this process and those that it started listen, and who does."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found: dict[str, str] = {}
    for process in family:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN or (connection.type.name == "SOCK_DGRAM" and connection.laddr):
                found[f"{connection.laddr.ip} {connection.laddr.port}"] = " ".join(process.cmdline())[:120]
    return found


def is_here(address: str) -> bool:
    ip = ipaddress.ip_address(address.split()[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def others_reach(job: LearnJob) -> tuple[dict[str, str], int]:
    """While the job runs and has committed: where its processes listen for other machines, and at how many ports."""
    messages = run("learn", job)
    try:
        assert any(message.kind == "commit" for message in messages)
        found = listening()
    finally:
        messages.close()
    return {address: who for address, who in found.items() if not is_here(address)}, len(found)


def endless(data: str, tmp_path: Path, engine: str) -> LearnJob:
    group = {"engine": engine, "workers": 2, "threads": 1}
    return LearnJob(data=data, store=str(tmp_path / "s"), atoms=3, passes=100_000, commit_seconds=0.1, **group)


def test_no_port_of_a_ray_cluster_of_ours_is_open_to_other_machines(make_data, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    reached, ports = others_reach(endless(make_data(), tmp_path, "ray"))
    assert ports > 5  # the head, the node's agents, every worker
    assert reached == {}


def test_no_port_of_mpich_is_open_to_other_machines(make_data, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    if not find_launcher(None).is_gforker:
        pytest.skip("this MPI is no MPICH with gforker, or hosts are set")
    assert others_reach(endless(make_data(), tmp_path, "mpi"))[0] == {}
