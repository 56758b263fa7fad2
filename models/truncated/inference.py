"""What a truncated posterior says about single points: states, marginals, reconstruction, evidence.

All probabilities are normalised within the states that were evaluated for the point. What those leave out is also why
the log-likelihood is a lower bound; it is exact when H' = γ = H.

Shapes: n points, D observed, H atoms, H' candidates, at most γ active ones in a state, L non-zero values, M states of
two or more atoms, S = 1 + L·H + M states, K states listed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..outputs import Wanted
from .evolution import tile_rows
from .set_posterior import ListedSets, listed_sets

if TYPE_CHECKING:
    from .expectation import Truncated

SMALLEST_CODE = 1e-4


@dataclass(frozen=True, slots=True)
class Listed:
    """The posterior of n points over the zero state, all singletons, and the states over the points' candidates."""

    probability: Tensor
    """[n, S], in that order; singletons value by value."""
    candidates: Tensor
    """[n, H'] int64."""
    held: Tensor
    """[M, H'] the value of every candidate in a state of several atoms, 0 where it is off."""
    support: tuple[float, ...]
    """The L non-zero values."""
    mean: Tensor
    """[n, H] posterior means of the coefficients."""
    marginal: Tensor
    """[n, L, H] probability that an atom has a value."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""

    @property
    def atoms(self) -> int:
        """H."""
        return self.mean.shape[1]

    def states(self, numbers: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The states with these `numbers` [n, K]: atoms [n, K, width] int64, -1 from the last one on, and values."""
        return states_of(self, numbers, width)


def with_zero(single: Tensor, multi: Tensor) -> Tensor:
    """[n, S] probabilities from those of the singletons [n, L·H] and of the other states [n, M]."""
    zero = 1 - single.sum(1, keepdim=True) - multi.sum(1, keepdim=True)
    return torch.cat([zero.clamp_(min=0), single, multi], 1)


def infer(model: Truncated, params: Params, x: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    """The codes and what is wanted beside them; see `Truncated.infer`.

    Raises:
        ModelError: growing by `adaptive` would make too many states, or the model has sets of states.
    """
    if model.by_sets:
        return _by_sets(model, params, x, wanted)
    widest = grown(model, wanted.adaptive)
    widths = widest.candidates, widest.active
    found, active = _outputs(model, params, x, wanted, model.listed(params, x), *widths)
    if not wanted.adaptive:
        return found
    larger, full = model, torch.full((len(x),), model.active, dtype=torch.int16, device=x.device)
    found |= {"gamma": full, "h_prime": torch.full_like(full, model.candidates)}
    rows = torch.arange(len(x), device=x.device)
    for _ in range(wanted.adaptive):
        # Only these points: their most probable state may have more atoms than any that was evaluated.
        rows, before = rows[active == larger.active], larger
        larger = grown(before, 1)
        if not len(rows) or (larger.active, larger.candidates) == (before.active, before.candidates):
            break
        part, active = _outputs(larger, params, x[rows], wanted, larger.listed(params, x[rows]), *widths)
        for name, value in part.items():
            found[name][rows] = value
        found["gamma"][rows], found["h_prime"][rows] = larger.active, larger.candidates
    return found


def _by_sets(model: Truncated, params: Params, x: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    if wanted.adaptive:
        raise ModelError(
            f"adaptive={wanted.adaptive} belongs to preselected states; states={model.states!r} may have up to "
            f"evolution.most_active={model.alphabet.slots} active atoms anyway"
        )
    scene, slots = model.scene(params, None, x.shape[1]), model.alphabet.slots
    parts = [
        _outputs(model, params, tile, wanted, listed_sets(model, scene.of(tile)), max(model.candidates, slots), slots)[
            0
        ]
        for tile in x.split(tile_rows(model.alphabet, model.sets, scene.row_bytes))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def grown(model: Truncated, by: int) -> Truncated:
    """The model with H' and γ raised by `by`."""
    return replace(model, h_prime=model.h_prime + by, gamma=model.gamma + by) if by else model


def strongest(mean: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Indices [n, k] int32 and values of the k = `width` largest entries of [n, H]; those below 1e-4 are left out."""
    strength, indices = mean.abs().topk(width, dim=1)
    faint = strength < SMALLEST_CODE
    values = mean.gather(1, indices).masked_fill(faint, 0)
    return indices.masked_fill(faint, -1).int(), values.to(dtype)


def states_of(found: Listed, numbers: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The states with these `numbers` [n, K]: atoms [n, K, width] int64, -1 from the last one on, and their values."""
    n, listed = numbers.shape
    singles = len(found.support) * found.atoms
    atoms = torch.full((n, listed, width), -1, dtype=torch.int64, device=numbers.device)
    values = found.probability.new_zeros(n, listed, width)
    support = values.new_tensor(found.support)
    alone = (numbers > 0) & (numbers <= singles)
    which = (numbers - 1).clamp(0, singles - 1)
    atoms[..., 0] = torch.where(alone, which % found.atoms, -1)
    values[..., 0] = torch.where(alone, support[which // found.atoms], 0.0)
    several = numbers > singles
    if bool(several.any()):
        where, held = _positions(found.held, width)
        row = several.nonzero()[:, 0]
        state = numbers[several] - 1 - singles
        at = where[state]
        chosen = found.candidates[row].gather(1, at.clamp(min=0))
        atoms[several] = torch.where(at >= 0, chosen, -1)
        values[several] = held[state].to(values.dtype)
    return atoms, values


def _positions(held: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """[M, H'] values of the candidates as positions [M, width] int64 (-1: none) and values, active ones first."""
    on = (held != 0).to(torch.int8)
    order = on.sort(dim=1, descending=True, stable=True).indices
    order = torch.nn.functional.pad(order, (0, max(0, width - order.shape[1])))[:, :width]
    count = on.sum(1, keepdim=True)
    inside = torch.arange(width, device=held.device) < count
    return torch.where(inside, order, -1), torch.where(inside, held.gather(1, order), 0.0)


def _outputs(
    model: Truncated, params: Params, x: Tensor, wanted: Wanted, found: Listed | ListedSets, codes: int, active: int
) -> tuple[dict[str, Tensor], Tensor]:
    """What is wanted, with so many `codes` of a point and so many `active` atoms of a state at most, and how many atoms
    each point's most probable state has [n]."""
    outputs, dtype = set(wanted.outputs), x.dtype
    indices, values = strongest(found.mean, codes, dtype)
    out = {"indices": indices, "values": values}
    best = found.probability.argmax(1, keepdim=True)
    state, held = found.states(best, active)
    if "map" in outputs:
        coefficients = model.coefficients(params, x, state, held)
        out |= {"map_indices": state[:, 0].int(), "map_values": coefficients[:, 0].to(dtype)}
    if "top_states" in outputs:
        out |= _top_states(model, params, x, found, wanted.top_states, active)
    if "marginals" in outputs:
        marginal = found.marginal
        at = marginal.sum(1).topk(codes, dim=1).indices
        several = at[:, None].expand(-1, marginal.shape[1], -1)
        marginals = marginal.gather(2, several).transpose(1, 2).to(dtype)
        out |= {"marginal_indices": at.int(), "marginals": marginals[..., 0] if marginals.shape[2] == 1 else marginals}
    if "reconstruction" in outputs:
        rebuilt = found.expected() if isinstance(found, ListedSets) else model.reconstruction(params, x, found)
        out["reconstruction"] = rebuilt.to(dtype)
    if "log_likelihood" in outputs:
        out["log_likelihood"] = found.log_evidence
    if "entropy" in outputs:
        out["entropy"] = torch.special.entr(found.probability).sum(1, dtype=torch.float64)
    return out, (state >= 0).sum((1, 2))


def _top_states(
    model: Truncated, params: Params, x: Tensor, found: Listed | ListedSets, wanted: int, width: int
) -> dict[str, Tensor]:
    """The K most probable states: atoms [n, K, width], coefficients, probabilities [n, K]; 0 where there are fewer."""
    count = min(wanted, found.probability.shape[1])
    probability, numbers = found.probability.topk(count, dim=1)
    state, held = found.states(numbers, width)
    coefficients = model.coefficients(params, x, state, held)
    missing = wanted - count
    pad = torch.nn.functional.pad
    return {
        "top_indices": pad(state, (0, 0, 0, missing), value=-1).int(),
        "top_values": pad(coefficients, (0, 0, 0, missing)).to(x.dtype),
        "top_probabilities": pad(probability, (0, missing)).to(x.dtype),
    }
