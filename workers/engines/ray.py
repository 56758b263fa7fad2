"""The Ray engine: a group of actors, one per share of cores or GPU, joined by a process group of their own.

The driver launches, listens and supervises; Ray places and isolates. Statistics travel between the actors (gloo or
NCCL), never through the object store. A dead member ends the group, which is started again from the last commit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from importlib import import_module
from typing import Any

from .. import logs
from ..communicator import PeerLost, TorchDistributed
from ..errors import EngineError, JobError
from ..job import Job
from ..kinds import JOBS
from ..meters import Meters
from ..plan import device_of, threads_of
from ..program import run_program
from ..progress import Progress
from .failures import FINAL, GroupLost, describe, revive
from .folders import end_users, temporary_folder
from .ray_loopback import on_loopback
from .ray_meters import RaySink
from .ray_token import own_token
from .restarts import with_restarts

POLL_SECONDS = 0.2
PLACEMENT_SECONDS = 120.0
JOIN_SECONDS = 120.0
# Long enough for the other members' outcomes to arrive once one has failed.
AFTERMATH_SECONDS = 5.0
CHECK_SECONDS = 1.0
OWN_HEAD_SECONDS = 3.0
END_SECONDS = 2.0
# A head that is run to survive failures comes back within this; after a minute Ray would end this process.
HEAD_SECONDS = 40.0
KEPT = "The state of the last commit is kept: run the same job again"
OBJECT_STORE_BYTES = 128 * 2**20
GROWS = "SPARSEFLEET_RAY_WAIT"
# Without it, RAY_ADDRESS in the environment would be taken for the cluster to join.
OWN = "local"


class Member:
    """One worker process of the group (a Ray actor with two threads: one computes, one answers `poll`)."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._joined = False

    def joined(self) -> bool:
        """Whether this member has met the others."""
        return self._joined

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
            _meet_on_this_node()
            comm = TorchDistributed(rank, size, meeting, device_of(typed))
            self._joined = True
            meters = Meters(RaySink(), engine="ray", rank=rank, run=typed.label)
            for message in run_program(program, typed, comm):
                meters(message)
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


class Cluster:
    """The Ray cluster that a group runs on, and whether its head still answers."""

    def __init__(self, *, local: bool, address: str | None) -> None:
        """`local`: all of it is on this machine; `address`: as the user gave it."""
        import ray

        self.local, self._address = local, address
        # What a client sees of a cluster is its proxy; the head is not for it to reach.
        proxied = bool(address and address.startswith("ray://"))
        self._head = None if proxied else ray.get_runtime_context().gcs_address
        self._asked = time.monotonic()
        self._silent_since: float | None = None

    def check(self) -> None:
        """Raise once the head has been silent for too long: GroupLost for a cluster of ours, else EngineError."""
        now = time.monotonic()
        if self._head is None or now - self._asked < CHECK_SECONDS:
            return
        self._asked = now
        if _answers(self._head):
            self._silent_since = None
            return
        self._silent_since = self._silent_since or now
        silent = now - self._silent_since
        if self._address is None and silent > OWN_HEAD_SECONDS:
            raise GroupLost("the head of the Ray cluster of this job died")
        if silent > HEAD_SECONDS:
            raise EngineError(f"the Ray head at {self._head} does not answer any more. {KEPT}")

    @property
    def well(self) -> bool:
        """Whether there is a head and a node to start a group on. (Ray's own calls would wait for a head for long.)"""
        import ray

        if self._head is None:
            return True
        return self._silent_since is None and _answers(self._head) and any(n["Alive"] for n in ray.nodes())

    def get(self, ref: Any, seconds: float = PLACEMENT_SECONDS) -> Any:
        """The value of `ref`; raises GetTimeoutError after so long, and as `check` in between."""
        import ray
        from ray.exceptions import GetTimeoutError

        end = time.monotonic() + seconds
        while True:
            try:
                return ray.get(ref, timeout=min(seconds, 2.0))
            except GetTimeoutError:
                self.check()
                if time.monotonic() > end:
                    raise


def run(program: str, job: Job) -> Generator[Progress, None, None]:
    """Run `program` on `job.workers` actors of the cluster at `job.address`, or of one started for this job.

    Raises:
        JobError: Ray is not installed, the cluster cannot be reached or is too small.
        EngineError: the workers failed for good.
    """
    with contextlib.ExitStack() as stack:
        clusters: list[Cluster] = []

        def attempt(again: Job) -> Generator[Progress, None, None]:
            """One group's life, on the cluster of the group before as long as that lives."""
            if not clusters or not clusters[-1].well:
                stack.close()
                try:
                    clusters.append(stack.enter_context(_cluster(again)))
                except JobError as err:
                    if not clusters:
                        raise
                    raise EngineError(f"the Ray cluster is gone: {err}. {KEPT}") from err
            with _members(again, clusters[-1]) as members:
                yield from _follow(program, again, members, clusters[-1])

        yield from with_restarts(job, attempt)


@contextlib.contextmanager
def _cluster(job: Job) -> Generator[Cluster, None, None]:
    """A connection to a Ray cluster, which ends here if it was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as err:
        raise JobError("engine ray needs Ray: pip install 'sparsefleet[ray]'") from err
    if ray.is_initialized():
        _check_size(job)
        yield Cluster(local=job.address is None, address=job.address or "auto")
        return
    if job.address:
        _check_reachable(job.address)
        with _connection(address=job.address):
            _check_size(job)
            yield Cluster(local=False, address=job.address)
        return
    size: dict[str, Any] = {"num_cpus": job.workers * threads_of(job), "object_store_memory": OBJECT_STORE_BYTES}
    with temporary_folder("ray", short=True) as folder:
        try:
            own = {"address": OWN, "include_dashboard": False, "_temp_dir": str(folder), **size}
            with own_token(), on_loopback(), _connection(**own):
                _check_size(job)
                yield Cluster(local=True, address=None)
        finally:
            # Some of Ray's processes outlive a dead head by a minute or more.
            end_users(folder, END_SECONDS)


@contextlib.contextmanager
def _connection(**options: Any) -> Generator[None, None, None]:
    """`ray.init`, quiet; what this process does on SIGTERM stays as it was (Ray puts an answer of its own there)."""
    import ray

    answer = signal.getsignal(signal.SIGTERM)
    # Ray prints the cluster's troubles on standard output, which is for results.
    worker: Any = import_module("ray._private.worker")
    worker.print_to_stdstream = _log
    try:
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=logs.wanted(), **options)
        except SystemExit as err:
            raise KeyboardInterrupt(signal.SIGTERM) from err
        except (OSError, RuntimeError, ValueError) as err:
            raise _unreachable(options.get("address"), err) from err
        finally:
            if answer is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, answer)
        yield
    finally:
        ray.shutdown()


def _unreachable(address: str | None, err: Exception) -> Exception:
    if address == OWN:
        return EngineError(f"no Ray cluster can be started on this machine: {_first_line(err)}")
    hint = "it asks for a token: set RAY_AUTH_MODE=token" if "AuthToken" in str(err.__cause__) else _first_line(err)
    return JobError(f"address={address!r}: the Ray cluster there cannot be joined; {hint}")


def _log(data: dict[str, Any], *_: object, **__: object) -> None:
    if logs.wanted():
        for line in data.get("lines", ()):
            if line.startswith("{"):
                logs.pass_on(line)
        return
    logging.getLogger(__name__).info("%s: %s", data.get("pid"), " ".join(data.get("lines", ())))


@contextlib.contextmanager
def _members(job: Job, cluster: Cluster) -> Generator[list[Any], None, None]:
    """The group's actors, each with its share of the cluster; they are gone afterwards."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    threads = threads_of(job)
    share: dict[str, float] = {"CPU": threads}
    have = ray.cluster_resources().get("GPU", 0)
    if job.device == "cuda" or (job.device == "auto" and have >= job.workers):
        share["GPU"] = 1
    seconds = _patience() or PLACEMENT_SECONDS
    group = placement_group([share] * job.workers, strategy="PACK" if cluster.local else "SPREAD")
    members: list[Any] = []
    try:
        try:
            cluster.get(group.ready(), seconds)
        except GetTimeoutError as err:
            raise EngineError(
                f"the cluster had no room for {job.workers} workers of {share} within {seconds:.0f} s"
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
                runtime_env={"env_vars": _environment(threads, local=cluster.local)},
            )
            members.append(placed.remote())
        yield members
    finally:
        if cluster.well:
            for member in members:
                with contextlib.suppress(Exception):
                    ray.kill(member)
            with contextlib.suppress(Exception):
                remove_placement_group(group)


def _follow(program: str, job: Job, members: list[Any], cluster: Cluster) -> Generator[Progress, None, None]:
    """Start the program on the members and hand on what rank 0 says until all have ended."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError

    with contextlib.ExitStack() as stack:
        try:
            meeting = cluster.get(members[0].rendezvous.remote())
            if cluster.local:
                meeting = f"file://{stack.enter_context(temporary_folder('group'))}/meeting"
            arguments = (program, type(job).__name__, job.to_dict())
            running = [m.run.remote(*arguments, rank, job.workers, meeting) for rank, m in enumerate(members)]
            begun, joined = time.monotonic(), False
            pending = list(running)
            while pending:
                ended, pending = ray.wait(pending, timeout=POLL_SECONDS)
                cluster.check()
                yield from _said(members[0], cluster)
                if any(_outcome(r) is not None for r in ended):
                    _raise_cause(running)
                joined = joined or cluster.get(members[0].joined.remote())
                if not joined and time.monotonic() - begun > JOIN_SECONDS:
                    raise GroupLost(f"the workers did not find each other within {JOIN_SECONDS:.0f} s")
            yield from _said(members[0], cluster)
        except RayActorError as err:
            raise _lost(err) from err
        except GetTimeoutError as err:
            raise GroupLost("a worker did not start or answer in time") from err
        except RayError as err:
            raise GroupLost(f"Ray failed: {_first_line(err)}") from err


def _said(member: Any, cluster: Cluster) -> Generator[Progress, None, None]:
    for line in cluster.get(member.poll.remote()):
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
            lost = lost or _lost(err)
            continue
        if outcome is None:
            continue
        if outcome["type"] == PeerLost.__name__:
            lost = lost or GroupLost(outcome["message"])
        elif outcome["type"] in FINAL or lost is None:
            raise revive(outcome)
    raise lost or GroupLost("a worker ended without a word")


def _lost(err: Exception) -> Exception:
    """What the death of an actor means: a group to start again, unless it would only die again at once."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    if "creation task" in str(err):
        return EngineError(f"a Ray worker cannot start: {lines[-1]} (sparsefleet must be installed on every node)")
    return GroupLost(f"a Ray worker died ({_first_line(err)})")


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0].strip().rstrip(".")


def _environment(threads: int, *, local: bool) -> dict[str, str]:
    """Environment of the workers; credentials travel by Ray's own worker environment, not by the job."""
    env = {"OMP_NUM_THREADS": str(threads), "ICECHUNK_LOG": "off"}
    if logs.SETTING in os.environ:
        env[logs.SETTING] = os.environ[logs.SETTING]
    if local and os.path.exists("/sys/class/net/lo"):
        env["GLOO_SOCKET_IFNAME"] = "lo"
    return env


def _meet_on_this_node() -> None:
    """Let gloo listen where Ray says that this node is.

    By itself it takes what the host's own name means, which on many systems is loopback, where no other node finds it.
    """
    import psutil
    import ray

    here = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(found.address == here for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


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


def _answers(head: str) -> bool:
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _patience() -> float | None:
    """Seconds that a group may wait for a cluster that grows; None: what is not there now will not come."""
    given = os.environ.get(GROWS)
    try:
        return float(given) if given else None
    except ValueError:
        raise JobError(f"{GROWS}={given!r}: give the seconds to wait for a Ray cluster that grows") from None


def _check_size(job: Job) -> None:
    import ray

    if _patience():
        return
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
