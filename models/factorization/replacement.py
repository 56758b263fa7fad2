"""Replacing dead and coherent atoms by badly represented rows, found by adding up.

Which rows are represented worst is a question about all of them, yet statistics only add. Two devices answer it in one
pass. A histogram of the relative errors ‖x - Dᵀa‖²/‖x‖² (16 bins an octave) tells the *next* update the level above
which about S rows lie. Rows above the level add themselves into one of S slots, chosen by a hash of their position in
the data: a slot that counts one row holds exactly that row. About a third of the slots do, whatever the number of
workers and however the rows are dealt to them.

Inside the level's own bin a row takes part with a probability (again a hash) that makes the number right, so that
thousands of equal errors do no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import TRAINING, Params
from .start import faint_energy
from .steps import normalised

BINS, PER_OCTAVE = 512, 16
LEVEL, FLOOR, REPLACED = f"{TRAINING}level", f"{TRAINING}faint", f"{TRAINING}replaced"
COHERENT, ACCEPTED = 0.99, 0.9
FEWEST, SHARE_OF_MEAN, WEAK = 4.0, 0.005, 1e-6
ROUND_SHARE = 0.1
_GOLDEN, _MIX = -7046029254386353131, -4658895280553007687  # splitmix64's odd constants as signed numbers


def slots(atoms: int) -> int:
    """S, for a dictionary of H `atoms`: a third of them serve a round in which a tenth of the atoms is replaced."""
    return max(64, -(-atoms // 3))


def start_values(sample: Tensor, rows: int, atoms: int) -> Params:
    """The state of the search before the first update: rows take part at random. `sample` [m, D], of `rows` rows."""
    level = -min(1.0, slots(atoms) / max(rows, 1))
    return {
        LEVEL: torch.tensor(level, dtype=torch.float64),
        FLOOR: torch.tensor(faint_energy(sample), dtype=torch.float64),
        REPLACED: torch.zeros((), dtype=torch.float64),
    }


def histogram_and_candidates(
    params: Params, x: Tensor, error: Tensor, energy: Tensor, *, start: int, step: int, atoms: int
) -> tuple[Tensor, Tensor]:
    """One batch's part of the search: `errors` [BINS] and `candidates` [S, D+2], float64.

    Args:
        params: With the search's state.
        x: [n, D] rows.
        error: [n] their squared errors.
        energy: [n] their squared norms.
        start: Position of the first row.
        step: The update, a key of the hash.
        atoms: H.
    """
    relative = error.double() / energy.double().clamp(min=1e-300)
    eligible = (energy >= params[FLOOR]) & (energy > 0) & (relative > 0)
    octaves = torch.log2(relative.clamp(min=1e-12, max=1.0)) * PER_OCTAVE
    bins = (BINS - 1 + octaves.ceil()).clamp(min=0, max=BINS - 1)
    place = torch.arange(start, start + len(x), device=x.device)
    chance = _hash(place, 2 * step).double() / 2**62
    level = float(params[LEVEL])
    taken = eligible & (chance < -level if level < 0 else bins + chance >= level)
    errors = torch.bincount(bins[eligible].long(), minlength=BINS).double()
    size = slots(atoms)
    out = torch.zeros(size, x.shape[1] + 2, dtype=torch.float64, device=x.device)
    slot = _hash(place[taken], 2 * step + 1) % size
    row = torch.cat([x[taken].double(), relative[taken, None], torch.ones_like(relative[taken, None])], 1)
    return errors, out.index_add_(0, slot, row)


def next_level(errors: Tensor, atoms: int) -> Tensor:
    """The level above which about S rows lie, if errors stay as they are; [] float64."""
    wanted = float(slots(atoms))
    at_least = errors.flip(0).cumsum(0)
    if float(at_least[-1]) <= wanted:
        return errors.new_zeros(())
    from_top = int(torch.searchsorted(at_least, wanted))
    above = float(at_least[from_top - 1]) if from_top else 0.0
    inside = float(errors[BINS - 1 - from_top])
    return errors.new_tensor(BINS - 1 - from_top + 1 - (wanted - above) / inside)


def unused(counts: Tensor, power: Tensor) -> Tensor:
    """[H] bool: atoms used by too few rows, or with too little weight.

    `counts` [H] rows that use an atom; `power` [H] Σ a². Fewer than 4 rows, or than 0.5 % of an atom's fair share.
    """
    fewest = max(FEWEST, SHARE_OF_MEAN * float(counts.mean()))
    return (counts < fewest) | (power <= WEAK * power.amax())


def coherent(atoms: Tensor, counts: Tensor) -> Tensor:
    """[H] bool: unit atoms whose |cosine| with a more used one exceeds 0.99."""
    order = torch.argsort(counts, descending=True, stable=True)
    ordered = atoms[order]
    close = ((ordered @ ordered.T).abs() > COHERENT).tril(-1).any(1)
    return torch.zeros_like(close).scatter_(0, order, close)


def replace(
    atoms: Tensor, bad: Tensor, counts: Tensor, candidates: Tensor, *, nonnegative: bool = False
) -> tuple[Tensor, Tensor]:
    """`atoms` [H, D] float64 with bad ones replaced by candidates, worst represented first; and which were, [H] bool.

    At most a tenth of the atoms in one round, the least used first; `nonnegative` ones get the positive part of a row.
    A candidate must keep |cosine| <= 0.9 with all atoms that stay and with the other new ones; where candidates run
    out, atoms stay bad until the next round.
    """
    replaced = torch.zeros_like(bad)
    places = bad.nonzero().flatten()
    places = places[torch.argsort(counts[places], stable=True)][: max(1, int(ROUND_SHARE * len(atoms)))]
    rows, error, count = candidates[:, :-2], candidates[:, -2], candidates[:, -1]
    rows, error = rows[count == 1], error[count == 1].float()
    rows = rows.clamp(min=0) if nonnegative else rows
    units, good = normalised(rows[torch.argsort(error, descending=True, stable=True)])
    units = units[good]
    units = units[((units @ atoms[~bad].T).abs() <= ACCEPTED).all(1)]
    chosen: list[int] = []
    apart = (units @ units.T).abs() <= ACCEPTED
    free = torch.ones(len(units), dtype=torch.bool, device=units.device)
    while len(chosen) < len(places) and bool(free.any()):
        chosen.append(int(free.nonzero()[0]))
        free &= apart[chosen[-1]]
        free[chosen[-1]] = False
    places = places[: len(chosen)]
    atoms = atoms.clone()
    atoms[places] = units[chosen]
    replaced[places] = True
    return atoms, replaced


def _hash(place: Tensor, key: int) -> Tensor:
    """Well mixed numbers in [0, 2^62), int64, one per row position and key (after splitmix64)."""
    z = place * _GOLDEN + (key * 0x632BE59BD9B4E019 + 1) % 2**62
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _GOLDEN
    return (z >> 1) & (2**62 - 1)
