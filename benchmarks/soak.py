"""Kills at random over one long job on the services of deploy/compose.yaml: is any version lost, doubled or changed?

    python benchmarks/soak.py --kills 100

As root on Linux with PostgreSQL (the Debian package `postgresql`): every service has namespaces of its own on this
machine. A job is submitted to the work pool; then, again and again, something is chosen at random and killed (SIGKILL)
a few random seconds after the run has committed once more. What runs as a container in compose is started again as
there; a flow run that died is handed to the pool again by `sparsefleet resume`. At the end the job is let go.
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
KINDS = (
    "ray worker",
    "ray worker",
    "ray worker",
    "raylet",
    "ray node",
    "flow process",
    "prefect",
    "database",
    "s3 answers",
)
PASSES_PER_KILL = 40
PATIENCE = 240.0


class Soak:
    """One job and what is done to it."""

    def __init__(self, fleet: Any, site: Any, kills: int, seed: int) -> None:
        self._fleet, self._site, self._chance = fleet, site, random.Random(seed)
        self._slow = site.folder / "slow"
        self._job = {"passes": kills * PASSES_PER_KILL, "model": "soak_model:Mean"}
        self.done: Counter[str] = Counter()
        self.resumed = 0
        shutil.copy(MODEL, site.folder)
        self._slow.touch()
        self.run = site.submit(**self._job, set="model.pause=0", restarts=10 * kills, **{"commit-seconds": 0.3})

    def kill(self) -> None:
        """One kill, once the run has committed again."""
        self.wait_for_commit()
        time.sleep(self._chance.uniform(0, 3))
        kind = self._chance.choice(KINDS)
        if not self._strike(kind):
            kind = "ray worker"
            self._strike(kind)
        self.done[kind] += 1

    def _strike(self, kind: str) -> bool:
        from tests.end_to_end.fleet.topology import NODES

        fleet = self._fleet
        if kind in ("prefect", "database"):
            fleet.kill(kind)
        elif kind == "ray node":
            fleet.kill(self._chance.choice(NODES))
        elif kind == "s3 answers":
            fleet.gate.failures = 0.5
            time.sleep(self._chance.uniform(1, 4))
            fleet.gate.failures = 0.0
        else:
            found = {
                "ray worker": fleet.members,
                "raylet": lambda: fleet.processes(self._chance.choice(NODES), "/raylet/raylet "),
                "flow process": lambda: fleet.processes("worker", r"prefect.* flow-run execute|prefect\.engine"),
            }[kind]()
            if not found:
                return False
            self._chance.choice(found).kill()
        return True

    def wait_for_commit(self) -> None:
        """Until the run has committed more than now, resumed where it has died."""
        before, end = self._site.committed(), time.monotonic() + PATIENCE
        while self._site.committed() <= before:
            self.take_up()
            if time.monotonic() > end:
                raise RuntimeError(f"no commit for {PATIENCE:.0f} s: {self._site.said(self.run)[-3000:]}")
            time.sleep(0.3)

    def take_up(self) -> None:
        """Resume the flow run if it has died."""
        if self._site.state(self.run) in ("CRASHED", "FAILED"):
            again = self._fleet.run("sparsefleet", "resume", self.run)
            self.resumed += again.returncode == 0

    def finish(self) -> float:
        """Let the job go to its end; returns the relative difference of W from an undisturbed run's."""
        self._slow.unlink()
        end = time.monotonic() + 2 * PATIENCE
        while self._site.state(self.run) != "COMPLETED":
            self.take_up()
            if time.monotonic() > end:
                raise RuntimeError(f"it does not end: {self._site.said(self.run)[-3000:]}")
            time.sleep(0.5)
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
        while sum(soak.done.values()) < given.kills and time.monotonic() - begun < 60 * given.minutes:
            soak.kill()
            print(f"{time.monotonic() - begun:6.0f} s  {sum(soak.done.values())} kills  {dict(soak.done)}", flush=True)
        difference = soak.finish()
        print(f"{sum(soak.done.values())} kills {dict(soak.done)} in {time.monotonic() - begun:.0f} s")
        print(f"resumed by hand {soak.resumed} times; 1 version, whole; relative difference of W {difference:.1e}")


if __name__ == "__main__":
    main()
