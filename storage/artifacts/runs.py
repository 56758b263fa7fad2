"""Checkpoints of runs: the last commit is the truth, and only one process may write the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from ..errors import StoreConflict
from . import names
from .arrays import (
    HISTORY,
    PARAMS,
    Arrays,
    below,
    checked_history,
    checked_params,
    create_array,
    read_arrays,
)
from .card import plain
from .memory import RunMemory, memories, run_memory
from .repository import Commit, Repository

CHAIN = 32
"""Commits of a run until its older ones are let go, so that garbage collection can have their space."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run needs to continue."""

    step: int
    arrays: Arrays
    """Parameters, those of `training/…` included."""
    history: Arrays
    """Metrics over steps, 1-D float64."""
    job: dict[str, Any]
    message: str
    written_at: datetime
    snapshot: str
    memory: str = ""
    """The generation of `RunMemory` that belongs to it, where the run keeps something of every row."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run with checkpoints, without its arrays."""

    run_id: str
    step: int
    job: dict[str, Any]
    written_at: datetime
    snapshot: str


class RunBranch:
    """The checkpoints of one run. It remembers the last commit that it saw, and commits on top of that one only."""

    def __init__(self, repo: Repository, run_id: str) -> None:
        self.run_id = names.check_run(run_id)
        self._repo = repo
        self._branch = names.run_branch(run_id)
        self.memory = run_memory(repo.place, run_id)
        self._seen = self._tip()
        self._depth = 0

    def _tip(self) -> str | None:
        tip = self._repo.tip(self._branch)
        return tip.id if tip else None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, on top of which this process commits from now on; None when there is none."""
        tip = self._repo.tip(self._branch)
        self._seen = tip.id if tip else None
        if tip is None:
            return None
        with self._repo.reading(tip.id, f"the checkpoint of run {self.run_id}") as group:
            stored = read_arrays(group)
            history = _unpacked(stored.pop(HISTORY), cast("list[tuple[str, int]]", group.attrs["history"]))
            arrays = {key.removeprefix(f"{PARAMS}/"): array for key, array in stored.items()}
            memory = str(group.attrs.get("memory", ""))
        step, job = tip.fact("step", int), tip.fact("job", dict)
        return Checkpoint(step, arrays, history, job, tip.message, tip.written_at, tip.id, memory)

    def commit(
        self,
        step: int,
        arrays: Mapping[str, ArrayLike],
        history: Mapping[str, ArrayLike] | None = None,
        job: Mapping[str, Any] | None = None,
        message: str = "",
        memory: str = "",
    ) -> str:
        """Writes the next checkpoint and returns its snapshot; `memory` is the generation that belongs to it, if any.

        StoreConflict when another process has written one since this one looked: two processes then work on the same
        run, and this one must stop (or read `latest` and continue from there).
        """
        params, courses = checked_params(arrays), checked_history(history or {})
        names_lengths = [[key, len(values)] for key, values in courses.items()]
        self._depth = self._depth % CHAIN + 1
        metadata = {"kind": "run", "run": self.run_id, "step": step, "job": plain(dict(job or {}))}
        try:
            with self._repo.session(self._branch, lasting=False, clear=self._depth == CHAIN) as session:
                if (session.base.id if session.base else None) != self._seen:
                    raise StoreConflict("the branch has moved")
                _replace(session.group, {**below(PARAMS, params), HISTORY: _packed(courses)})
                session.group.attrs.update(
                    {"step": step, "job": metadata["job"], "history": names_lengths, "memory": memory}
                )
                self._seen = session.commit(message or f"step {step}", metadata).id
        except StoreConflict as error:
            raise StoreConflict(
                f"run {self.run_id}: another process works on it or has finished it; end one of the two"
            ) from error
        return self._seen

    def drop(self) -> None:
        """Forgets all checkpoints, whose files go with the next garbage collection, and removes the run's memory."""
        self._repo.delete_branch(self._branch)
        self.memory.clear()
        self._seen = None


def run_infos(repo: Repository) -> list[RunInfo]:
    """All runs with checkpoints, newest first."""
    tips = {run_id: repo.tip(names.run_branch(run_id)) for run_id in repo.branches(names.run_branch(""))}
    infos = [_info(run_id, tip) for run_id, tip in tips.items() if tip is not None]
    return sorted(infos, key=lambda info: info.written_at, reverse=True)


def left_memories(repo: Repository) -> list[RunMemory]:
    """Memories of runs that are gone: their process died while it dropped the run."""
    # In this order: a run has its branch before it has any memory.
    found = memories(repo.place)
    alive = set(repo.branches(names.run_branch("")))
    return [run_memory(repo.place, run_id) for run_id in found if run_id not in alive]


def _info(run_id: str, tip: Commit) -> RunInfo:
    return RunInfo(run_id, tip.fact("step", int), tip.fact("job", dict), tip.written_at, tip.id)


def _replace(group: zarr.Group, arrays: Arrays) -> None:
    """Makes `arrays` the only ones of a group, writing in place where shape and dtype allow it."""
    nodes = dict(group.members(max_depth=None))
    found = {key: node for key, node in nodes.items() if isinstance(node, zarr.Array)}
    for key in found.keys() - arrays.keys():
        del group[key]
    for key, array in arrays.items():
        old = found.get(key)
        if old is not None and (old.shape, old.dtype) == (array.shape, array.dtype):
            old[...] = array
        else:
            create_array(group, key, array, overwrite=key in nodes)


def _packed(history: Arrays) -> NDArray[np.float64]:
    """All metrics in one array with room to grow: a run commits often, and an array each would cost more than W."""
    values = np.concatenate([np.zeros(0), *history.values()])
    room = max(64, 1 << (values.size - 1).bit_length()) if values.size else 64
    return np.pad(values, (0, room - values.size), constant_values=np.nan)


def _unpacked(packed: NDArray[np.float64], lengths: list[tuple[str, int]]) -> Arrays:
    ends = np.cumsum([length for _, length in lengths])
    return {key: packed[end - length : end] for (key, length), end in zip(lengths, ends)}
