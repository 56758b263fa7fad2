"""Evolutionary variational states: every datapoint keeps its own set of S latent states, and improves it.

    q_n(s) = p(s, y_n) / Σ_{s' ∈ K_n} p(s', y_n)   for s ∈ K_n,      F = Σ_n log Σ_{s ∈ K_n} p(s, y_n)

An E-step proposes children of the states in K_n and keeps the S best of both by their log-joints, so that F never
falls at fixed parameters (Drefs, Guiraud, Lücke: Evolutionary variational optimization of generative models, JMLR 23,
2022). The first sets are the best states that Expectation Truncation would evaluate. Random numbers belong to rows.

Shapes: n points, S states of a point, C children, A slots for active atoms (see `variation.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..base import Batch, Stats
from ..errors import ModelError
from ..schedule import Stage
from .draws import Draws
from .states import MOST_STATES
from .variation import Alphabet, Children, crossed, flipped_once, flipped_sparsely, parents

if TYPE_CHECKING:
    from .expectation import Truncated

KEPT = "states"
"""Name of the sets among what a model keeps of rows."""
EMPTY, VOID = -1, -2
"""Stored instead of a code: an empty slot; in the first slot, a state that is not there."""
TILE_BYTES = 1 << 26
LEAST_ROWS = 16
HASH_SEED = 0x5EED


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """How sets of states evolve."""

    size: int = 60
    """States kept per datapoint (S)."""
    parents: int = 8
    """States of a point that have children in a generation."""
    children: int = 4
    """Children of a parent (without crossover)."""
    generations: int = 1
    """Generations of an E-step; the children of one are the parents of the next."""
    selection: Literal["fitness", "uniform"] = "fitness"
    """Parents are drawn in proportion to their log-joint within the point, or evenly."""
    mutation: Literal["randflip", "sparseflip"] = "randflip"
    """A child differs in one latent, or in each by itself at rates that lead to the prior's number of active atoms."""
    flips: float = 2.0
    """Expected number of latents that sparseflip changes."""
    crossover: bool = False
    """Whether every pair of parents has two children that share its atoms, before the mutation."""
    warm_up: int = 3
    """E-steps before the first update."""
    most_active: int = 16
    """Most active atoms of a state."""
    encode_steps: int = 10
    """E-steps for rows that are encoded, whose sets begin anew."""

    def __post_init__(self) -> None:
        for name, least in (("size", 2), ("parents", 2), ("children", 1), ("generations", 1), ("most_active", 1)):
            if getattr(self, name) < least:
                raise ModelError(f"evolution.{name}={getattr(self, name)} must be at least {least}")
        for name in ("warm_up", "encode_steps"):
            if getattr(self, name) < 0:
                raise ModelError(f"evolution.{name}={getattr(self, name)} must not be negative")
        if not self.flips > 0:
            raise ModelError(f"evolution.flips={self.flips} must be above 0")
        if self.selection not in ("fitness", "uniform"):
            raise ModelError(f"evolution.selection={self.selection!r}: choose fitness or uniform")
        if self.mutation not in ("randflip", "sparseflip"):
            raise ModelError(f"evolution.mutation={self.mutation!r}: choose randflip or sparseflip")

    @property
    def offspring(self) -> int:
        """C, children per point and E-step, at most."""
        each = self.parents * (self.parents - 1) if self.crossover else self.parents * self.children
        return each * self.generations


class Landscape(ABC):
    """The log-joints of any states of n points under fixed parameters."""

    beta: float = 1.0
    """Factor of the log-likelihood at the present temperature."""
    heat: float = 1.0
    """Factor of the log-prior."""
    support: tuple[float, ...] = (1.0,)
    """The L non-zero values of a latent."""
    wanted: float
    """Σ π, the prior's number of active atoms."""
    constant: Tensor
    """[n] float64, what the sum of log-likelihood and log-prior lacks to log p(s, y) at temperature 1."""

    def __init__(self, alphabet: Alphabet, x: Tensor) -> None:
        """`x` [n, …]: in the dtype and on the device of all that is computed."""
        self.alphabet = alphabet
        self.dtype, self.device, self.points = x.dtype, x.device, len(x)

    @abstractmethod
    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood and log-prior [n, C] of states [A, n, C], each up to a constant of the point; the first may
        be -inf."""

    @abstractmethod
    def candidates(self, count: int) -> Tensor:
        """[n, count] int64, different atoms that are likely to be active."""

    @abstractmethod
    def means(self, states: Tensor, q: Tensor) -> Tensor:
        """[n, H] posterior means of the coefficients, where states [A, n, S] have probabilities `q` [n, S]."""

    @abstractmethod
    def expected(self, states: Tensor, q: Tensor) -> Tensor:
        """[n, D] expected rows without noise."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Makes landscapes under fixed parameters."""

    of: Callable[[Tensor], Landscape]
    """The landscape of rows [n, D]."""
    row_bytes: int
    """What the model needs for a point, its states aside."""


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets of n points, the best states first, void ones last."""

    states: Tensor
    """[A, n, S] int64 codes."""
    gain: Tensor
    """[n, S] log-likelihood as of the landscape; -inf: void."""
    odds: Tensor
    """[n, S] log-prior as of the landscape."""
    substituted: Tensor
    """[n] int64, states that were replaced since the sets were restored."""

    def joint(self, land: Landscape) -> Tensor:
        """[n, S] tempered log-joints."""
        return land.beta * self.gain + land.heat * self.odds


def code_dtype(codes: int) -> str:
    """The smallest type that holds so many codes."""
    return "int16" if codes <= 2**15 else "int32"


def store(sets: Sets, alphabet: Alphabet) -> Tensor:
    """[n, S, A] as it is kept between updates."""
    void = ~sets.gain.isfinite()
    codes = sets.states.masked_fill((sets.states == alphabet.none) | void, EMPTY)
    codes[0].masked_fill_(void, VOID)
    return codes.permute(1, 2, 0).to(getattr(torch, code_dtype(alphabet.none)))


def restore(stored: Tensor, land: Landscape) -> Sets:
    """The sets that were stored, evaluated."""
    codes = stored.permute(2, 0, 1).long()
    void = codes[0] == VOID
    states = codes.masked_fill_(codes < 0, land.alphabet.none)
    return _evaluated(land, Children(states, void))


def begin(land: Landscape, model: Truncated, draws: Draws) -> Sets:
    """First sets: all states, or the best over the candidates, then `warm_up` E-steps."""
    alphabet, evolution = land.alphabet, model.sets
    h_prime, gamma = (model.candidates, model.gamma) if model.evolves else (model.atoms, model.atoms)
    gamma = min(gamma, alphabet.slots)
    if h_prime < alphabet.atoms:
        chosen = land.candidates(h_prime).T
    else:
        chosen = torch.arange(alphabet.atoms, device=land.device)[:, None].expand(-1, land.points)
    best: Sets | None = None
    for table in _tables(alphabet, chosen.shape[0], gamma, evolution.size + evolution.offspring):
        position, level = (part.to(chosen.device) for part in table)
        # The code of every slot: its candidate's atom at its level, or none where the position is past the last.
        atoms = torch.cat([chosen, chosen.new_zeros(1, chosen.shape[1])])[position]
        codes = torch.where(
            position[:, :, None] < len(chosen), level[:, :, None] * alphabet.atoms + atoms, alphabet.none
        )
        some = _evaluated(land, Children(codes.transpose(1, 2).contiguous(), torch.zeros_like(codes[0].T).bool()))
        best = _kept(land, some if best is None else _joined(best, some), evolution.size)
    assert best is not None
    for _ in range(evolution.warm_up):
        best = e_step(land, best, evolution, draws)
    return replace(best, substituted=torch.zeros_like(best.substituted))


def e_step(land: Landscape, sets: Sets, evolution: Evolution, draws: Draws) -> Sets:
    """The best of the sets' states and their children: no point's log Z falls."""
    pool, whole = sets, sets
    for _ in range(evolution.generations):
        fitness = evolution.selection == "fitness"
        chosen = parents(pool.joint(land), evolution.parents, draws, fitness=fitness)
        states = pool.states.gather(2, chosen.expand(len(pool.states), -1, -1))
        void = ~pool.gain.gather(1, chosen).isfinite()
        pool = _evaluated(land, _offspring(land, states, void, evolution, draws))
        whole = _joined(whole, pool)
    return _kept(land, _distinct(whole, land.alphabet), evolution.size, old=sets)


def _offspring(land: Landscape, states: Tensor, void: Tensor, evolution: Evolution, draws: Draws) -> Children:
    count = evolution.children
    if evolution.crossover:
        found = crossed(states, void, draws, land.alphabet)
        states, void, count = found.states, found.void, 1
    if evolution.mutation == "randflip":
        return flipped_once(states, void, count, draws, land.alphabet)
    return flipped_sparsely(states, void, count, draws, land.alphabet, flips=evolution.flips, wanted=land.wanted)


def _evaluated(land: Landscape, found: Children) -> Sets:
    gain, odds = land.parts(found.states)
    nothing = torch.zeros(len(gain), dtype=torch.int64, device=gain.device)
    return Sets(found.states, gain.masked_fill(found.void, -torch.inf), odds, nothing)


def _joined(a: Sets, b: Sets) -> Sets:
    cat = lambda x, y: torch.cat([x, y], -1)  # noqa: E731
    return Sets(cat(a.states, b.states), cat(a.gain, b.gain), cat(a.odds, b.odds), a.substituted)


def _kept(land: Landscape, sets: Sets, size: int, old: Sets | None = None) -> Sets:
    """The `size` best states (padded with void ones); those beyond the first of `old` count as substitutions."""
    missing = size - sets.gain.shape[1]
    if missing > 0:
        pad = lambda x, v: torch.nn.functional.pad(x, (0, missing), value=v)  # noqa: E731
        sets = Sets(
            pad(sets.states, land.alphabet.none), pad(sets.gain, -torch.inf), pad(sets.odds, 0.0), sets.substituted
        )
    at = sets.joint(land).topk(size, dim=1).indices
    gain = sets.gain.gather(1, at)
    substituted = sets.substituted
    if old is not None:
        substituted = substituted + ((at >= old.gain.shape[1]) & gain.isfinite()).sum(1)
    states = sets.states.gather(2, at.expand(len(sets.states), -1, -1))
    return Sets(states, gain, sets.odds.gather(1, at), substituted)


def _distinct(sets: Sets, alphabet: Alphabet) -> Sets:
    """All but the first of equal states made void. States are compared by 64-bit Zobrist hashes."""
    words = _words(alphabet.none, sets.states.device)
    key = words[sets.states[0]]
    for codes in sets.states[1:]:
        key = key + words[codes]
    # A void state is nobody's twin.
    key = torch.where(sets.gain.isfinite(), key, -1 - torch.arange(key.shape[1], device=key.device))
    ordered, order = torch.sort(key, dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    twin = torch.zeros_like(again).scatter_(1, order, again)
    return replace(sets, gain=sets.gain.masked_fill(twin, -torch.inf))


@lru_cache(maxsize=16)
def _words(codes: int, device: torch.device) -> Tensor:
    """[codes + 1] int64, a random word for each code and 0 for the empty slot."""
    generator = torch.Generator().manual_seed(HASH_SEED)
    words = torch.randint(-(2**63), 2**63 - 1, (codes + 1,), generator=generator)
    words[codes] = 0
    return words.to(device)


@lru_cache(maxsize=8)
def _tables(alphabet: Alphabet, candidates: int, gamma: int, at_once: int) -> list[tuple[Tensor, Tensor]]:
    """All states of at most γ candidates, some at a time: positions (H' where empty) and levels, [A, T] int64."""
    count = 1 + sum(comb(candidates, m) * alphabet.levels**m for m in range(1, gamma + 1))
    if count > MOST_STATES:
        raise ModelError(
            f"h_prime={candidates}, gamma={gamma} make {count:,} states per point to begin with, over {MOST_STATES:,}; "
            "lower one"
        )
    rows = [
        ([*where, *[candidates] * (alphabet.slots - m)], [*which, *[0] * (alphabet.slots - m)])
        for m in range(gamma + 1)
        for where in combinations(range(candidates), m)
        for which in product(range(alphabet.levels), repeat=m)
    ]
    parts = [torch.tensor(rows[a : a + at_once]) for a in range(0, len(rows), at_once)]
    return [(part[:, 0].T.contiguous(), part[:, 1].T.contiguous()) for part in parts]


def tile_rows(alphabet: Alphabet, sets: Evolution, row_bytes: int) -> int:
    """Points whose states are handled at once; `row_bytes`: what the model needs besides for a point."""
    return max(LEAST_ROWS, TILE_BYTES // _point_bytes(alphabet, sets, row_bytes))


def tile_memory(alphabet: Alphabet, sets: Evolution, row_bytes: int) -> int:
    """Bytes of a tile's work: states, their parts, copies while they are sorted out, and what the model needs."""
    return max(LEAST_ROWS * _point_bytes(alphabet, sets, row_bytes), TILE_BYTES)


def _point_bytes(alphabet: Alphabet, sets: Evolution, row_bytes: int) -> int:
    return (sets.size + sets.offspring) * (6 * 8 * alphabet.slots + 16 * 8) + 4 * row_bytes


def evolved(
    batch: Batch, stage: Stage, model: Truncated, scene: Scene
) -> Iterator[tuple[slice, Tensor, Landscape, Sets]]:
    """One E-step for a batch, tile by tile: the tile's place in it, its rows, their landscape by `scene`, their sets.

    The sets are taken from `batch.kept` and put there again; the first time they are begun. Sets of all states are
    made when they are needed.
    """
    old, new = batch.kept.get(KEPT), list[Tensor]()
    rows = tile_rows(model.alphabet, model.sets, scene.row_bytes)
    for a in range(0, max(len(batch.x), 1), rows):
        tile = slice(a, a + rows)
        land = scene.of(batch.x[tile])
        x = batch.x[tile].to(land.dtype)
        draws = Draws(stage, batch.start + a, len(x), x.device)
        sets = begin(land, model, draws) if old is None else restore(old[tile], land)
        if model.evolves:
            sets = e_step(land, sets, model.sets, draws)
            new.append(store(sets, model.alphabet))
        yield tile, x, land, sets
    if model.evolves:
        batch.kept[KEPT] = torch.cat(new)


def weights(land: Landscape, sets: Sets) -> tuple[Tensor, Tensor]:
    """The posterior q [n, S], 0 for void states, and log Σ p(s, y) [n] float64 at temperature 1, up to the landscape's
    constants."""
    plain = torch.logsumexp((sets.gain + sets.odds).double(), 1)
    q = torch.softmax(sets.joint(land), 1)
    return q, plain


def code_weights(states: Tensor, q: Tensor, codes: int) -> Tensor:
    """[n, codes] the probability that each code is in a state, where states [A, n, S] have probabilities `q` [n, S]."""
    out = q.new_zeros(len(q), codes + 1)
    for slot in states:
        out.scatter_add_(1, slot, q)
    return out[:, :-1]


def substitutions(stats: Stats, rows: float) -> dict[str, float]:
    """The metric `substitutions`: states replaced per point in this pass; nothing for other statistics."""
    found = getattr(stats, "substituted", None)
    return {} if found is None else {"substitutions": float(found) / rows}
