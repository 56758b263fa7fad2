"""What sets of states say about single points that were not learned from: the sets are made for these rows alone.

Shapes: n points, S states of a point, A slots for active atoms, H atoms, L non-zero values, K states listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .draws import Draws
from .evolution import Landscape, Sets, begin, code_weights, e_step, weights

if TYPE_CHECKING:
    from .expectation import Truncated


@dataclass(frozen=True, slots=True)
class ListedSets:
    """The posterior of n points over their sets of states."""

    probability: Tensor
    """[n, S], 0 for states that are not there."""
    sets: Sets
    land: Landscape
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""

    @property
    def mean(self) -> Tensor:
        """[n, H] posterior means of the coefficients."""
        return self.land.means(self.sets.states, self.probability)

    @property
    def marginal(self) -> Tensor:
        """[n, L, H] probability that an atom has a value."""
        alphabet = self.land.alphabet
        found = code_weights(self.sets.states, self.probability, alphabet.none)
        return found.unflatten(1, (alphabet.levels, alphabet.atoms))

    def expected(self) -> Tensor:
        """[n, D] expected rows without noise."""
        return self.land.expected(self.sets.states, self.probability)

    def states(self, numbers: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The states with these `numbers` [n, K]: atoms [n, K, width] int64, -1 from the last one on, and values."""
        alphabet = self.land.alphabet
        codes = self.sets.states.gather(2, numbers.expand(alphabet.slots, -1, -1)).permute(1, 2, 0)
        none = (codes == alphabet.none) | ~self.sets.gain.gather(1, numbers).isfinite()[..., None]
        level = torch.where(none, 0, codes // alphabet.atoms)
        values = self.probability.new_tensor(self.land.support)[level].masked_fill(none, 0.0)
        atoms = torch.where(none, -1, codes % alphabet.atoms)
        more = width - alphabet.slots
        pad = torch.nn.functional.pad
        return pad(atoms, (0, more), value=-1), pad(values, (0, more))


def listed_sets(model: Truncated, land: Landscape) -> ListedSets:
    """Sets begun for the points of `land` and improved by `evolution.encode_steps` E-steps, at temperature 1.

    Random numbers are the same for every row: its codes do not depend on where it lies.
    """
    draws = Draws.alike(land.points, land.device)
    sets = begin(land, model, draws)
    for _ in range(model.evolution.encode_steps if model.evolves else 0):
        sets = e_step(land, sets, model.evolution, draws)
    q, evidence = weights(land, sets)
    return ListedSets(q, sets, land, evidence + land.constant)
