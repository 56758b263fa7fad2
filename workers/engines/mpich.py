"""MPICH on one machine: how its processes listen on loopback, or not at all.

Its usual launcher, Hydra, listens on all interfaces for its proxies on other machines, whatever its options say. MPICH
brings another one, gforker, that starts ranks on this machine only, talks with them over inherited sockets and listens
nowhere. It has three habits of its own, which the engine minds: it ends with code 0 when a rank was killed, it ends the
other ranks by SIGQUIT, which may leave cores, and they live on when it is killed itself.

The ranks listen too, each where its network module would meet ranks of other machines, although all of their messages
go through shared memory. UCX and libfabric are told to use the loopback interface.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

GFORKER = "mpiexec.gforker"
LOOPBACK = {"UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo", "FI_SOCKETS_IFACE": "lo"}
"""Interfaces of UCX's and of libfabric's network modules."""

HOSTS = (
    "SLURM_JOB_ID",
    "SLURM_NODELIST",
    "SLURM_JOB_NODELIST",
    "PBS_JOBID",
    "PBS_NODEFILE",
    "LSB_JOBID",
    "LSB_HOSTS",
    "LSB_MCPU_HOSTS",
    "PE_HOSTFILE",
    "LOADL_HOSTFILE",
    "LOADL_STEP_ID",
    "COBALT_JOBID",
    "COBALT_PARTNAME",
)
"""By these Hydra learns of a queue's hosts."""

SETTINGS = ("HYDRA_", "MPIEXEC_")
CONFIGURED = ("~/.mpiexec.hydra.conf", "/etc/mpiexec.hydra.conf")


def stays_here(env: Mapping[str, str]) -> bool:
    """Whether Hydra, without options, starts all ranks on this machine: no queue gave it hosts, nobody set it up."""
    if sys.platform != "linux" or any(env.get(name) for name in HOSTS):
        return False
    return not any(name.startswith(SETTINGS) for name in env) and not any(
        Path(path).expanduser().exists() for path in CONFIGURED
    )


def loopback(env: Mapping[str, str]) -> dict[str, str]:
    """What binds the ranks to loopback, without what the user has set. (His own transports need their own devices.)"""
    own = "UCX_TLS" in env
    return {name: lo for name, lo in LOOPBACK.items() if name not in env and not (own and name.startswith("UCX_"))}


def beside(launcher: str) -> str | None:
    """The gforker of the MPICH that `launcher` belongs to; None where it came without one."""
    found = Path(launcher).with_name(GFORKER)
    return str(found) if os.access(found, os.X_OK) else None


def is_gforker(launcher: str) -> bool:
    """Whether this is the launcher with the habits."""
    return Path(launcher).name == GFORKER
