"""The states that Expectation Truncation evaluates, as a tree: every state is a smaller one and one candidate more.

Nodes are the states of fewer than γ atoms over H' candidate positions, the empty one first, then by their last
position. A node's children add a later position at one of L levels. States are numbered by their last position, then by
the node that they extend, then by level; 0 is the empty state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StateTree:
    """Tables for the kernels, all int32."""

    begin: Tensor
    """[H'+1] the first node whose last position is h."""
    start: Tensor
    """[H'+1] the first state whose last position is h."""
    parent: Tensor
    """[nodes] the node without its last atom; 0 for the empty one."""
    level: Tensor
    """[nodes] level of its last atom; 0 for the empty one."""
    last: Tensor
    """[nodes] position of its last atom; 0 for the empty one."""
    state: Tensor
    """[nodes] its number as a state."""
    size: Tensor
    """[states] active atoms."""


@lru_cache(maxsize=32)
def state_tree(candidates: int, active: int, levels: int) -> StateTree:
    """The tree over H' candidates, at most γ active ones, at L levels."""
    parent, level, last, state, size, sizes = [0], [0], [0], [0], [0], [0]
    begin, start = [1], [1]
    for position in range(candidates):
        nodes = begin[-1]
        sizes += [held + 1 for held in size for _ in range(levels)]
        for node in range(nodes):
            if size[node] + 1 < active:
                for at in range(levels):
                    parent.append(node)
                    level.append(at)
                    last.append(position)
                    size.append(size[node] + 1)
                    state.append(start[-1] + node * levels + at)
        begin.append(len(parent))
        start.append(start[-1] + nodes * levels)
    pack = lambda values: torch.from_numpy(np.array(values, dtype=np.int32))  # noqa: E731
    return StateTree(pack(begin), pack(start), pack(parent), pack(level), pack(last), pack(state), pack(sizes))
