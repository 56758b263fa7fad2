"""What a run on this machine starts is reached from this machine only, metrics included."""

import ipaddress
from pathlib import Path

import psutil
import pytest
from sparsefleet.workers import LearnJob, run

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


def test_no_port_of_a_ray_cluster_of_ours_is_open_to_other_machines(make_data, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    group = {"engine": "ray", "workers": 2, "threads": 1}
    job = LearnJob(data=make_data(), store=str(tmp_path / "s"), atoms=3, passes=1000, commit_seconds=0.1, **group)
    messages = run("learn", job)
    try:
        assert any(message.kind == "commit" for message in messages)
        found = listening()
    finally:
        messages.close()
    assert len(found) > 5  # the head, the node's agents, every worker
    assert {address: who for address, who in found.items() if not is_here(address)} == {}
