"""The Ray engine: a group of actors, one per share of cores or GPU, joined by a process group of their own.

The driver launches, listens and supervises; Ray places and isolates. Statistics travel between the actors (gloo or
NCCL), never through the object store. A dead member ends the group, which is started again from the last commit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Generator
from typing import Any

from ..communicator import PeerLost, TorchDistributed
from ..errors import EngineError, JobError
from ..job import JOBS, Job
from ..plan import device_of, threads_of
from ..program import run_program
from ..progress import Progress
from .failures import FINAL, GroupLost, describe, revive
from .restarts import with_restarts

POLL_SECONDS = 0.2
PLACEMENT_SECONDS = 120.0
# Long enough for the other members' outcomes to arrive once one has failed.
AFTERMATH_SECONDS = 5.0
OBJECT_STORE_BYTES = 128 * 2**20


class Member:
    """One worker process of the group (a Ray actor with two threads: one computes, one answers `poll`)."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def rendezvous(self) -> str:
        """An address where the group can meet at this member."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def poll(self) -> list[str]:
        """What the program has said since the last call, as JSON."""
        said, self._said = self._said, []
        return said

    def run(
        self, program: str, kind: str, job: dict[str, Any], rank: int, size: int, meeting: str
    ) -> dict[str, str] | None:
        """Run the program to its end; returns a description of the error that ended it, if any."""
        try:
            typed = JOBS[kind].parse(job)
            comm = TorchDistributed(rank, size, meeting, device_of(typed))
            for message in run_program(program, typed, comm):
                if rank == 0:
                    self._said.append(message.model_dump_json())
            comm.barrier()
            comm.close()
        except PeerLost as err:
            return {"type": PeerLost.__name__, "message": str(err)}
        except Exception as err:
            logging.getLogger(__name__).exception("rank %d of %d failed", rank, size)
            return describe(err)
        return None


def run(program: str, job: Job) -> Generator[Progress, None, None]:
    """Run `program` on `job.workers` actors of the cluster at `job.address`, or of one started for this job.

    Raises:
        JobError: Ray is not installed, the cluster cannot be reached or is too small.
        EngineError: the workers failed for good.
    """
    with _cluster(job) as local:
        yield from with_restarts(job, lambda again: _attempt(program, again, local=local))


@contextlib.contextmanager
def _cluster(job: Job) -> Generator[bool, None, None]:
    """A connection to a Ray cluster; True if it was started here, and then it ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as err:
        raise JobError("engine ray needs Ray: pip install 'sparsefleet[ray]'") from err
    if ray.is_initialized():
        _check_size(job)
        yield job.address is None
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if job.address:
        _check_reachable(job.address)
        ray.init(address=job.address, **quiet)
        try:
            _check_size(job)
            yield False
        finally:
            ray.shutdown()
        return
    # Ray's sockets live below this folder and their paths must stay short.
    folder = tempfile.mkdtemp(prefix="sf-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    try:
        ray.init(
            num_cpus=job.workers * threads_of(job),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
            **quiet,
        )
        _check_size(job)
        yield True
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(program: str, job: Job, *, local: bool) -> Generator[Progress, None, None]:
    """One group's life."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    threads = threads_of(job)
    share: dict[str, float] = {"CPU": threads}
    if job.device == "cuda":
        share["GPU"] = 1
    group = placement_group([share] * job.workers, strategy="PACK" if local else "SPREAD")
    members: list[Any] = []
    try:
        try:
            ray.get(group.ready(), timeout=PLACEMENT_SECONDS)
        except GetTimeoutError as err:
            raise EngineError(
                f"the cluster had no room for {job.workers} workers of {share} within {PLACEMENT_SECONDS:.0f} s"
            ) from err
        actor = ray.remote(Member)
        for rank in range(job.workers):
            where = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=rank)
            placed = actor.options(
                num_cpus=threads,
                num_gpus=share.get("GPU", 0),
                max_concurrency=2,
                max_restarts=0,
                scheduling_strategy=where,
                runtime_env={"env_vars": _environment(threads, local=local)},
            )
            members.append(placed.remote())
        yield from _follow(program, job, members, local=local)
    finally:
        for member in members:
            with contextlib.suppress(Exception):
                ray.kill(member)
        with contextlib.suppress(Exception):
            remove_placement_group(group)


def _follow(program: str, job: Job, members: list[Any], *, local: bool) -> Generator[Progress, None, None]:
    """Start the program on the members and hand on what rank 0 says until all have ended."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    with contextlib.ExitStack() as stack:
        try:
            meeting = ray.get(members[0].rendezvous.remote(), timeout=PLACEMENT_SECONDS)
            if local:
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="sf-group-", ignore_cleanup_errors=True)
                )
                meeting = f"file://{folder}/meeting"
            arguments = (program, type(job).__name__, job.to_dict())
            running = [m.run.remote(*arguments, rank, job.workers, meeting) for rank, m in enumerate(members)]
            pending = list(running)
            while pending:
                ended, pending = ray.wait(pending, timeout=POLL_SECONDS)
                yield from _said(members[0])
                if any(_outcome(r) is not None for r in ended):
                    _raise_cause(running)
            yield from _said(members[0])
        except RayActorError as err:
            raise GroupLost(_who_died(err)) from err
        except GetTimeoutError as err:
            raise GroupLost("a worker did not start in time") from err


def _said(member: Any) -> Generator[Progress, None, None]:
    import ray

    for line in ray.get(member.poll.remote(), timeout=PLACEMENT_SECONDS):
        yield Progress.model_validate_json(line)


def _outcome(ref: Any) -> dict[str, str] | None:
    """None if the member ended well; raises RayActorError if it died."""
    import ray

    return ray.get(ref)


def _raise_cause(running: list[Any]) -> None:
    """Raise what ended the group: a member's own error before the others' complaint that it is gone."""
    import ray
    from ray.exceptions import RayActorError

    ended, _ = ray.wait(running, num_returns=len(running), timeout=AFTERMATH_SECONDS)
    lost: Exception | None = None
    for ref in ended:
        try:
            outcome = _outcome(ref)
        except RayActorError as err:
            lost = lost or GroupLost(_who_died(err))
            continue
        if outcome is None:
            continue
        if outcome["type"] == PeerLost.__name__:
            lost = lost or GroupLost(outcome["message"])
        elif outcome["type"] in FINAL or lost is None:
            raise revive(outcome)
    raise lost or GroupLost("a worker ended without a word")


def _who_died(err: Exception) -> str:
    return f"a Ray worker died ({str(err).splitlines()[0].strip().rstrip('.')})"


def _environment(threads: int, *, local: bool) -> dict[str, str]:
    """Environment of the workers; credentials travel by Ray's own worker environment, not by the job."""
    env = {"OMP_NUM_THREADS": str(threads), "ICECHUNK_LOG": "error"}
    if local and os.path.exists("/sys/class/net/lo"):
        env["GLOO_SOCKET_IFNAME"] = "lo"
    return env


def _check_reachable(address: str) -> None:
    """Fail within seconds where nobody listens."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as err:
        raise JobError(
            f"address={address!r}: no Ray cluster answers there ({err}); give host:port of its head, or auto"
        ) from err


def _check_size(job: Job) -> None:
    import ray

    have = ray.cluster_resources()
    need = job.workers * threads_of(job)
    if have.get("CPU", 0) < need:
        raise JobError(
            f"workers={job.workers} with {threads_of(job)} threads each need {need} CPUs, but the Ray cluster has "
            f"{have.get('CPU', 0):.0f}; use fewer workers or threads"
        )
    if job.device == "cuda" and have.get("GPU", 0) < job.workers:
        raise JobError(
            f"workers={job.workers} need a GPU each, but the Ray cluster has {have.get('GPU', 0):.0f}; use --device cpu"
        )
