"""Kills at random over one long job on the services of deploy/compose.yaml: is any version lost, doubled or changed?

    python benchmarks/soak.py --kills 100

As root on Linux with PostgreSQL (the Debian package `postgresql`): every service has namespaces of its own on this
machine. A job is submitted to the work pool; then, again and again, something is broken (mostly killed, SIGKILL) some
random moment after the run has committed once more. What is broken comes from a shuffled deck, so that a long soak has
every kind in it. What runs as a container in compose is started again as there. A flow run that died is handed to the
pool again by `sparsefleet resume`; one that the server believes to be running although nobody works on it any more (its
Prefect worker died too, or could not report) by `sparsefleet cancel` and `resume`. At the end the job is let go.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "end_to_end" / "fleet" / "soak_model.py"
DECK = {
    "ray worker": 4,
    "raylet": 2,
    "ray node": 1,
    "flow process": 1,
    "prefect worker": 1,
    "prefect server": 2,
    "postgresql": 2,
    "s3 answers 503": 1,
    "s3 away": 1,
}
"""How many cards of each kind there are."""
SERVICES = {"prefect worker": "worker", "prefect server": "prefect", "postgresql": "database"}
PASSES_PER_KILL = 40
PATIENCE = 240.0
LOST_SECONDS = 5.0
"""How long nobody has to work on a running flow run until it is taken for lost."""
IGNORED_SECONDS = 90.0
"""How long a scheduled flow run has to lie until its Prefect worker is started again by hand."""


class Soak:
    """One job and what is done to it."""

    def __init__(self, fleet: Any, site: Any, kills: int, seed: int) -> None:
        self._fleet, self._site, self._chance = fleet, site, random.Random(seed)
        self._slow = site.folder / "slow"
        self._job = {"passes": kills * PASSES_PER_KILL, "model": "soak_model:Mean"}
        self._deck: list[str] = []
        self._step = 0
        self._alone_since: float | None = None
        self._alone_in = ""
        self.done: Counter[str] = Counter()
        self.resumed: Counter[str] = Counter()
        """By the state that the run was in."""
        shutil.copy(MODEL, site.folder)
        self._slow.touch()
        self.run = site.submit(**self._job, set="model.pause=0", restarts=10 * kills, **{"commit-seconds": 0.3})

    def kill(self) -> str:
        """One fault, once the run has committed again; returns its kind."""
        self.wait_for_commit()
        time.sleep(self._chance.uniform(0, 2))
        if not self._deck:
            self._deck = [kind for kind, count in DECK.items() for _ in range(count)]
            self._chance.shuffle(self._deck)
        kind = self._deck.pop()
        if not self._strike(kind):  # nothing of it is there now: it waits for its turn
            self._deck.insert(0, kind)
            return ""
        self.done[kind] += 1
        return kind

    def _strike(self, kind: str) -> bool:
        from tests.end_to_end.fleet.topology import NODES

        fleet = self._fleet
        if kind in SERVICES:
            fleet.kill(SERVICES[kind])
        elif kind == "ray node":
            fleet.kill(self._chance.choice(NODES))
        elif kind == "s3 answers 503":
            fleet.gate.failures = 0.5
            time.sleep(self._chance.uniform(1, 4))
            fleet.gate.failures = 0.0
        elif kind == "s3 away":
            fleet.gate.open = False
            time.sleep(self._chance.uniform(1, 10))
            fleet.gate.open = True
        else:
            find = {
                "ray worker": fleet.members,
                "raylet": lambda: fleet.processes(self._chance.choice(NODES), "/raylet/raylet "),
                "flow process": self._flow_processes,
            }
            if not (found := find[kind]()):
                return False
            self._chance.choice(found).kill()
        return True

    def _flow_processes(self) -> list[Any]:
        return self._fleet.processes("worker", r"prefect.* flow-run execute|prefect\.engine|prefect\.flow_engine")

    def wait_for_commit(self) -> None:
        """Until the run has committed more than when it was looked at last, taken up again where it has died."""
        before, end = max(self._step, self._site.committed()), time.monotonic() + PATIENCE
        while (step := self._site.committed()) <= before:
            self.take_up()
            self._in_time(end, f"no commit after {before}")
        self._step = step

    def take_up(self) -> None:
        """Resume the flow run if it has died, as a user would."""
        state = self._site.state(self.run)
        if state in ("CRASHED", "FAILED"):
            self._resume(state)
        elif self._alone(state) > LOST_SECONDS and state == "RUNNING" and self._fleet.has_worker():
            self._fleet.run("sparsefleet", "cancel", self.run, "--wait", 20)
            self._resume(state)
        elif self._alone(state) > IGNORED_SECONDS:
            print(f"{state}, and nobody takes it: {self._fleet.log('worker')[-3000:]}", flush=True)
            self._fleet.kill("worker")
            self.resumed[state] += 1
            self._alone_since = None

    def _alone(self, state: str) -> float:
        """Seconds for which nobody has worked on the run in this state; 0 while the server does not answer."""
        if not state or self._flow_processes():
            self._alone_since = None
            return 0.0
        if self._alone_since is None or state != self._alone_in:
            self._alone_since, self._alone_in = time.monotonic(), state
        return time.monotonic() - self._alone_since

    def _resume(self, state: str) -> None:
        again = self._fleet.run("sparsefleet", "resume", self.run)
        self._alone_since = None
        if again.returncode == 0:
            self.resumed[state] += 1
        print(f"         was {state}, resumed: {again.stdout.strip()}{again.stderr.strip()}", flush=True)

    def _in_time(self, end: float, what: str) -> None:
        if time.monotonic() > end:
            raise RuntimeError(
                f"{what} for too long: {self._site.state(self.run)}: {self._site.said(self.run)[-3000:]}"
            )
        time.sleep(0.5)

    def finish(self) -> float:
        """Let the job go to its end; returns the relative difference of W from an undisturbed run's."""
        self._slow.unlink()
        end = time.monotonic() + 3 * PATIENCE
        while self._site.state(self.run) != "COMPLETED":
            self.take_up()
            self._in_time(end, "no end")
        return self._site.check_result(**self._job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--minutes", type=float, default=120, help="no more kills after so long (default 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (default 0)")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.end_to_end.fleet.jobs import Site
    from tests.end_to_end.fleet.topology import Topology, absent

    if reason := absent():
        raise SystemExit(f"error: the topology cannot be started: {reason}")
    with Topology() as fleet:
        soak = Soak(fleet, Site(fleet, "soak"), given.kills, given.seed)
        begun = time.monotonic()
        while soak.done.total() < given.kills and time.monotonic() - begun < 60 * given.minutes:
            if kind := soak.kill():
                print(f"{time.monotonic() - begun:6.0f} s  {soak.done.total():4}  {kind}", flush=True)
        lasted = time.monotonic() - begun
        difference = soak.finish()
        print(f"{soak.done.total()} faults {dict(soak.done)} in {lasted:.0f} s")
        print(f"taken up again from {dict(soak.resumed)}; 1 version, whole; relative difference of W {difference:.1e}")


if __name__ == "__main__":
    main()
