"""What a run keeps of every row, beside the repository: large, replaced at every commit, and of no use afterwards.

A generation is a place of its own below `memory/RUN/`. It is written first, by all workers; then a checkpoint names
it; then the others are removed. So the newest checkpoint always names a whole one, whenever a process dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from ..locations import Location

FOLDER = "memory"


@dataclass(frozen=True, slots=True)
class RunMemory:
    """The generations of one run."""

    place: Location
    """Where they lie."""

    def new(self, step: int) -> str:
        """The name of a generation for the checkpoint of `step` that no other process uses; nothing is made yet."""
        return f"{step}-{uuid4().hex[:8]}"

    def at(self, generation: str) -> Location:
        """Where a generation lies."""
        return self.place.child(generation)

    def keep(self, generation: str) -> None:
        """Removes all generations but this one."""
        for name in self.place.folders():
            if name != generation:
                self.at(name).clear()

    def clear(self) -> None:
        """Removes all."""
        self.place.clear()


def memories(store: Location) -> list[str]:
    """The runs that keep something of rows beside the artifact store at `store`."""
    return store.child(FOLDER).folders()


def run_memory(store: Location, run_id: str) -> RunMemory:
    """The memory of a run of the artifact store at `store`."""
    return RunMemory(store.child(f"{FOLDER}/{run_id}"))
