"""Children of latent states: who becomes a parent, crossover, and mutation.

Drefs, Guiraud, Lücke: Evolutionary variational optimization of generative models, JMLR 23, 2022, section 3; Guiraud,
Drefs, Lücke: Evolutionary expectation maximization, GECCO 2018. Fitness-proportional selection is normalised per
datapoint.

A state is the list of its active atoms' codes (code = level · H + atom; L levels are the non-zero values), actives
first, the code L·H where there is none.

Shapes: n points, P parents, C children of a point, A slots for active atoms. States are [A, n, …], so that every
operation runs over points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import Draws


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The codes of a model's states."""

    atoms: int
    """H."""
    levels: int
    """L, non-zero values of a latent."""
    slots: int
    """A, most active atoms of a state."""

    @property
    def none(self) -> int:
        """The code of an empty slot."""
        return self.levels * self.atoms

    def atom(self, codes: Tensor) -> Tensor:
        """The atoms of codes; H for empty slots."""
        return torch.where(codes == self.none, self.atoms, codes % self.atoms) if self.levels > 1 else codes

    def size(self, states: Tensor) -> Tensor:
        """|s|, [n, …] int64."""
        return (states != self.none).sum(0)


@dataclass(frozen=True, slots=True)
class Children:
    """New states [A, n, C]; some may be `void` [n, C]: no parent, or more active atoms than there are slots."""

    states: Tensor
    void: Tensor


def parents(joint: Tensor, count: int, draws: Draws, *, fitness: bool) -> Tensor:
    """[n, P] int64, which of the states with these log-joints [n, S] (-inf: void) become parents.

    `fitness`: drawn in proportion to ℓ - 2 min(min ℓ, 0) of the point's own states; otherwise `count` different ones,
    all equally likely (void ones only where there are not enough others).
    """
    valid = joint.isfinite()
    if not fitness:
        keys = draws.uniform(joint.shape[1]).masked_fill(~valid, -1.0)
        return keys.topk(min(count, joint.shape[1]), dim=1).indices
    lowest = joint.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    weight = (joint.double() - 2 * lowest.clamp(max=0).double()).masked_fill(~valid, 0.0)
    # Where all joints are 0 nothing distinguishes the states.
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, valid.double())
    sums = weight.cumsum(1)
    at = torch.searchsorted(sums, draws.uniform(count) * sums[:, -1:], right=True)
    # The product may round up to the sum; the last state with a weight is meant.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    return torch.minimum(at, last)


def crossed(states: Tensor, void: Tensor, draws: Draws, alphabet: Alphabet) -> Children:
    """Two children [A, n, P(P-1)] of every pair of parents [A, n, P]: they swap all atoms above a random cut."""
    first, second = torch.triu_indices(states.shape[2], states.shape[2], offset=1, device=states.device)
    below = 1 + draws.integer(max(alphabet.atoms - 1, 1), len(first))
    one, two = states[:, :, first], states[:, :, second]
    mothers, fathers = torch.cat([one, two], 2), torch.cat([two, one], 2)
    cut = below.repeat(1, 2)
    kept = mothers.masked_fill(alphabet.atom(mothers) >= cut, alphabet.none)
    taken = fathers.masked_fill(alphabet.atom(fathers) < cut, alphabet.none)
    # The code of an empty slot is the largest: sorting brings the actives to the front.
    both = torch.cat([kept, taken]).sort(dim=0).values
    overfull = (both[alphabet.slots :] != alphabet.none).any(0)
    orphan = (void[:, first] | void[:, second]).repeat(1, 2)
    return Children(both[: alphabet.slots].contiguous(), overfull | orphan)


def flipped_once(states: Tensor, void: Tensor, count: int, draws: Draws, alphabet: Alphabet) -> Children:
    """`count` children [A, n, P·count] of each parent [A, n, P]: one latent changed, another one in each of them."""
    count = min(count, alphabet.atoms)
    parents_ = void.shape[1]
    picks: list[Tensor] = []
    # A random subset by Floyd's algorithm (Bentley & Floyd, Comm. ACM 30, 1987).
    for top in range(alphabet.atoms - count, alphabet.atoms):
        pick = draws.integer(top + 1, parents_)
        for other in picks:
            pick = torch.where(pick == other, top, pick)
        # A pick that was moved to `top` cannot meet an earlier one again: those are below `top`.
        picks.append(pick)
    atom = torch.stack(picks, 2).flatten(1)
    return _changed(states.repeat_interleave(count, 2), void.repeat_interleave(count, 1), atom, draws, alphabet)


def _changed(states: Tensor, void: Tensor, atom: Tensor, draws: Draws, alphabet: Alphabet) -> Children:
    """The states with the latent `atom` [n, C] at another of its values, all others equally likely."""
    hit = alphabet.atom(states) == atom
    found, slot = hit.any(0), hit.byte().argmax(0)
    size = alphabet.size(states)
    last = (size - 1).clamp(min=0)
    off, code = found, atom
    if alphabet.levels > 1:
        draw = draws.integer(alphabet.levels, atom.shape[1])
        level = states.gather(0, slot[None])[0] // alphabet.atoms
        # Among the L values that are not the present one, 0 comes first.
        off = found & (draw == 0)
        other = torch.where(found, draw - 1 + (draw - 1 >= level).long(), draw)
        code = other.clamp(min=0) * alphabet.atoms + atom
    code = torch.where(off, states.gather(0, last[None])[0], code)
    at = torch.where(found, slot, size.clamp(max=alphabet.slots - 1))
    out = states.scatter(0, at[None], code[None])
    tail = torch.where(off, alphabet.none, out.gather(0, last[None])[0])
    return Children(out.scatter_(0, last[None], tail[None]), void | (~found & (size == alphabet.slots)))


def flip_rates(size: Tensor, atoms: int, flips: float, wanted: float) -> tuple[Tensor, Tensor]:
    """Probabilities that an inactive latent is switched on and an active one off, for states of `size` active atoms.

    The expected number of flips is `flips` and the expected size afterwards `wanted` = Σ π; where that cannot be, all
    flips go in its direction (Drefs, Guiraud, Lücke 2022, appendix B: p_bf = flips / H).
    """
    on, off = size.double(), atoms - size.double()
    lack = wanted - on
    both_ways = (lack.abs() < flips) & (on > 0) & (off > 0)
    # (H-|s|) p_on + |s| p_off = flips and (H-|s|) p_on - |s| p_off = lack.
    ons = torch.where(both_ways, (flips + lack) / 2, torch.where(lack > 0, flips, 0.0))
    offs = torch.where(both_ways, (flips - lack) / 2, torch.where(lack > 0, 0.0, flips))
    return (ons / off.clamp(min=1)).clamp(max=1), (offs / on.clamp(min=1)).clamp(max=1)


def flipped_sparsely(
    states: Tensor, void: Tensor, count: int, draws: Draws, alphabet: Alphabet, *, flips: float, wanted: float
) -> Children:
    """`count` children [A, n, P·count] of each parent: every latent flips by itself, at `flip_rates`.

    A latent that is switched on gets each of its non-zero values with equal probability.
    """
    states, void = states.repeat_interleave(count, 2), void.repeat_interleave(count, 1)
    size = alphabet.size(states)
    on_rate, off_rate = flip_rates(size, alphabet.atoms, flips, wanted)
    width = states.shape[2]
    drop = draws.uniform(alphabet.slots, width).transpose(0, 1) < off_rate
    left = states.masked_fill(drop, alphabet.none).sort(dim=0).values
    kept = alphabet.size(left)
    more = binomial(draws.uniform(width), alphabet.atoms - size, on_rate, most=alphabet.slots + 1)
    overfull = kept + more > alphabet.slots
    more = more.masked_fill(overfull | void, 0)
    # Atoms that were just switched off are no candidates either: a latent flips once.
    taken = alphabet.atom(states).sort(dim=0).values
    for i in range(int(more.max()) if more.numel() else 0):
        wanted_now = more > i
        atom = draws.integer(alphabet.atoms - size - i, width)
        # The atom of that rank among those not taken yet.
        for known in taken:
            atom = atom + (known <= atom).long()
        taken = torch.cat([taken, torch.where(wanted_now, atom, alphabet.atoms)[None]]).sort(dim=0).values
        code = atom
        if alphabet.levels > 1:
            code = code + alphabet.atoms * draws.integer(alphabet.levels, width)
        at = (kept + i).clamp(max=alphabet.slots - 1)[None]
        old = left.gather(0, at)[0]
        left = left.scatter(0, at, torch.where(wanted_now, code, old)[None])
    return Children(left, void | overfull)


def binomial(uniform: Tensor, trials: Tensor, rate: Tensor, *, most: int) -> Tensor:
    """Binomial numbers from uniform ones by the inverse of the distribution function, cut off at `most`; int64."""
    odds = rate / (1 - rate).clamp(min=1e-12)
    mass = torch.exp(trials * torch.log1p(-rate.clamp(max=1 - 1e-12)))
    below = mass.clone()
    out = torch.zeros_like(uniform + trials, dtype=torch.int64)
    for k in range(1, most + 1):
        above = uniform >= below
        if not bool(above.any()):
            break
        out += above.long()
        mass = mass * odds * (trials - k + 1).clamp(min=0) / k
        below = below + mass
    return torch.minimum(out, trials)
