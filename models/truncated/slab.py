"""Posterior of the spike-and-slab model's states, in as many dimensions as a state has active atoms.

For a state with active set a, residual scores r = b_a - G_aa μ_a (b and G with the noise's inverse covariance in the
middle) and Ψ_aa = R Rᵀ, everything follows from B = I + Rᵀ G_aa R, which is never close to singular:

    log p(y | s) = log p(y | 0) + μᵀb - ½ μᵀGμ - ½ log|B| + ½ uᵀB⁻¹u,   u = Rᵀr
    E[z_a | s, y] = κ = μ_a + R B⁻¹u,   Cov = C = R B⁻¹ Rᵀ

(Sheikh, Shelton, Lücke, JMLR 15, 2014, in information form and relative to the slab's mean, so that ψ → 0 loses no
digits.) For a full Ψ the whole of z is latent; with t = b_a - G_aa κ and K = G_aa - G_aa C G_aa its posterior moments
are E[z] = μ + Ψ_{:a} t and Cov = Ψ - Ψ_{:a} K Ψ_{a:}, so that their sums over states are sums of a × a blocks too.

Shapes: n points of a tile (innermost, so that every operation runs over points), H' candidates, states of m atoms, of
which there are M_m, P' = H'(H'+1)/2 pairs of candidates, the diagonal included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from ..errors import ModelError
from . import small

TILE_ELEMENTS = 1 << 15


@dataclass(frozen=True, slots=True)
class SizeClass:
    """The states of m atoms over H' candidate positions."""

    where: list[Tensor]
    """m × [M_m] int64: the position in each slot."""
    pairs: list[list[Tensor]]
    """m × m × [M_m] int64: the pair of positions in two slots."""
    to_single: Tensor
    """[H', m·M_m]: adds up slots by candidate."""
    to_pair: Tensor
    """[P', m(m+1)/2·M_m]: adds up pairs of slots (i ≤ j) by pair of candidates."""


@lru_cache(maxsize=32)
def size_class(size: int, candidates: int, dtype: torch.dtype, device: torch.device) -> SizeClass:
    """The states of `size` atoms, in the order of `states.state_table`."""
    rows = torch.tensor(list(combinations(range(candidates), size)))
    numbers = torch.zeros(candidates, candidates, dtype=torch.long)
    for number, (i, j) in enumerate(combinations_with_replacement(range(candidates), 2)):
        numbers[i, j] = numbers[j, i] = number
    where = [rows[:, i] for i in range(size)]
    pairs = [[numbers[where[i], where[j]] for j in range(size)] for i in range(size)]
    upper = [pairs[i][j] for i in range(size) for j in range(i, size)]
    hot = lambda at, count: torch.nn.functional.one_hot(torch.cat(at), count).T.to(device, dtype)  # noqa: E731
    return SizeClass(
        where=[w.to(device) for w in where],
        pairs=[[p.to(device) for p in row] for row in pairs],
        to_single=hot(where, candidates).contiguous(),
        to_pair=hot(upper, int(numbers.max()) + 1).contiguous(),
    )


@dataclass(frozen=True, slots=True)
class Tile:
    """What the candidates of n points are: rows are candidates [H', n] or pairs of them [P', n]."""

    scores: Tensor
    """[H', n] b."""
    gram: Tensor
    """[P', n] G."""
    mean: Tensor
    """[H', n] μ."""
    slab: Tensor
    """[H', n] √ψ, or [P', n] Ψ where it is full."""
    full: bool


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the states of m atoms given the data: m (× m) × [M_m, n]."""

    gain: Tensor
    """log p(y | s) - log p(y | 0) [M_m, n]."""
    first: small.Vector
    """κ, and t where Ψ is full."""
    second: small.Matrix
    """C + κκᵀ."""
    imputed: small.Vector
    """t; empty where Ψ is diagonal."""
    spread: small.Matrix
    """ttᵀ - K; empty where Ψ is diagonal."""


def state_moments(tile: Tile, states: SizeClass, *, wanted: bool) -> Moments:
    """The joints of the states of one size class and, where `wanted`, their posterior moments."""
    size = len(states.where)
    inside = range(size)
    g = [[tile.gram[states.pairs[i][j]] for j in inside] for i in inside]
    mean, scores = [tile.mean[w] for w in states.where], [tile.scores[w] for w in states.where]
    drift = small.times_vector(g, mean)
    residual = [b - d for b, d in zip(scores, drift)]
    if tile.full:
        root = small.lower_factor([[tile.slab[p] for p in row] for row in states.pairs], 1e-30)
        b = _plus_one(_sandwich(root, g))
        u = small.lower_transposed_times(root, residual)
    else:
        diagonal = [tile.slab[w] for w in states.where]
        root = None
        b = _plus_one([[diagonal[i] * g[i][j] * diagonal[j] for j in range(i + 1)] for i in inside])
        u = [d * r for d, r in zip(diagonal, residual)]
    # B = I + (positive semi-definite): no pivot is below 1.
    factor, log_det = small.inverse_factor(b, 1.0)
    w = small.lower_times(factor, u)
    gain = 0.5 * (small.dot(mean, [s + r for s, r in zip(scores, residual)]) + small.dot(w, w) - log_det)
    if not wanted:
        return Moments(gain, [], [], [], [])
    y, inverse = small.lower_transposed_times(factor, w), small.gram(factor)
    if root is not None:
        full_root = [[*row, *[torch.zeros_like(gain)] * (size - len(row))] for row in root]
        first = [m + k for m, k in zip(mean, small.lower_times(root, y))]
        cov = small.times(small.times(full_root, inverse), _transposed(full_root))
    else:
        diagonal = [tile.slab[w] for w in states.where]
        first = [torch.addcmul(m, d, k) for m, d, k in zip(mean, diagonal, y)]
        cov = [[diagonal[i] * inverse[i][j] * diagonal[j] if j >= i else gain for j in inside] for i in inside]
    second = [[torch.addcmul(cov[i][j], first[i], first[j]) if j >= i else gain for j in inside] for i in inside]
    if root is None:
        return Moments(gain, first, second, [], [])
    imputed = [b - d for b, d in zip(scores, small.times_vector(g, first))]
    explained = small.times(small.times(g, cov), g)
    spread = [[imputed[i] * imputed[j] - g[i][j] + explained[i][j] for j in inside] for i in inside]
    return Moments(gain, first, second, imputed, spread)


def start_slab(given: Tensor, own: Tensor) -> Tensor:
    """Ψ as `own` has it, [H] or [H, H], from one variance, a diagonal or a matrix.

    Raises:
        ModelError: it is no covariance of H coefficients, or `own` is diagonal and it is not.
    """
    atoms = len(own)
    eye = torch.eye(atoms, dtype=given.dtype)
    matrix = given.reshape(()) * eye if given.numel() == 1 else torch.diag(given) if given.ndim == 1 else given
    if matrix.shape != (atoms, atoms):
        raise ModelError(f"psi has shape {tuple(given.shape)}; give variances [{atoms}] or a matrix [{atoms}, {atoms}]")
    if not torch.allclose(matrix, matrix.T, rtol=1e-5) or int(torch.linalg.cholesky_ex(matrix).info):
        raise ModelError("psi is no covariance: it must be symmetric and positive definite")
    if own.ndim == 2:
        return (matrix + matrix.T) / 2
    if bool((matrix != matrix * eye).any()):
        raise ModelError("psi has correlations, which slab=diagonal cannot hold: set model.slab=full or give [H]")
    return matrix.diagonal()


def upper(matrix: small.Matrix, weight: Tensor) -> Tensor:
    """`weight` times the elements i ≤ j, one below the other [m(m+1)/2·M_m, n]."""
    size = len(matrix)
    return torch.cat([weight * matrix[i][j] for i in range(size) for j in range(i, size)])


def _sandwich(root: small.Matrix, g: small.Matrix) -> small.Matrix:
    """RᵀGR."""
    size = len(root)
    column = lambda j: [root[k][j] for k in range(j, size)]  # noqa: E731
    right = [[small.dot(g[i][j:], column(j)) for j in range(size)] for i in range(size)]
    return [[small.dot(column(i), [right[k][j] for k in range(i, size)]) for j in range(i + 1)] for i in range(size)]


def _plus_one(a: small.Matrix) -> small.Matrix:
    for i, row in enumerate(a):
        row[i] = row[i] + 1
    return a


def _transposed(a: small.Matrix) -> small.Matrix:
    return [[row[j] for row in a] for j in range(len(a))]
