"""Linear algebra on very many very small matrices, written out element by element.

A matrix is a list of rows of tensors of one shape: element (i, j) of all matrices together. For matrices of a few rows
this is several times faster than a batched LAPACK call, whose cost per matrix does not fall with its size.
"""

from __future__ import annotations

import torch
from torch import Tensor

Matrix = list[list[Tensor]]
Vector = list[Tensor]


def inverse_factor(a: Matrix, least_pivot: float) -> tuple[Matrix, Tensor]:
    """X with a⁻¹ = XᵀX, lower triangular (row i has i+1 elements), and log|a|; `a` symmetric, lower part read.

    Pivots below `least_pivot` count as that.
    """
    _, inverse, log_det = _factor(a, least_pivot)
    return inverse, log_det


def lower_factor(a: Matrix, least_pivot: float) -> Matrix:
    """L with a = L Lᵀ, lower triangular (row i has i+1 elements); `a` symmetric, lower part read."""
    return _factor(a, least_pivot)[0]


def _factor(a: Matrix, least_pivot: float) -> tuple[Matrix, Matrix, Tensor]:
    size = len(a)
    lower: Matrix = [[] for _ in range(size)]
    inverse: Matrix = [[] for _ in range(size)]
    log_det = torch.zeros_like(a[0][0])
    for j in range(size):
        pivot = _minus(a[j][j], [(lower[j][k], lower[j][k]) for k in range(j)]).clamp(min=least_pivot)
        log_det += pivot.log()
        scale = pivot.rsqrt()
        for k in range(j):
            inverse[j].append(-scale * dot(lower[j][k:j], [inverse[i][k] for i in range(k, j)]))
        inverse[j].append(scale)
        lower[j].append(pivot * scale)
        for i in range(j + 1, size):
            lower[i].append(_minus(a[i][j], [(lower[i][k], lower[j][k]) for k in range(j)]) * scale)
    return lower, inverse, log_det


def dot(a: Vector, b: Vector) -> Tensor:
    """Σ_i a_i b_i."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:]):
        total.addcmul_(x, y)
    return total


def lower_times(x: Matrix, v: Vector) -> Vector:
    """X v for lower triangular X."""
    return [dot(row, v[: len(row)]) for row in x]


def lower_transposed_times(x: Matrix, v: Vector) -> Vector:
    """Xᵀ v for lower triangular X."""
    return [dot([x[k][i] for k in range(i, len(x))], v[i:]) for i in range(len(x))]


def gram(x: Matrix) -> Matrix:
    """XᵀX for lower triangular X, all elements; (i, j) and (j, i) are the same tensor."""
    size = len(x)
    out: Matrix = [[x[0][0]] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            out[i][j] = out[j][i] = dot([x[k][i] for k in range(i, size)], [x[k][j] for k in range(i, size)])
    return out


def times(a: Matrix, b: Matrix) -> Matrix:
    """a b for full matrices."""
    columns = [[row[j] for row in b] for j in range(len(b[0]))]
    return [[dot(row, column) for column in columns] for row in a]


def times_vector(a: Matrix, v: Vector) -> Vector:
    """a v for a full matrix."""
    return [dot(row, v) for row in a]


def _minus(start: Tensor, products: list[tuple[Tensor, Tensor]]) -> Tensor:
    out = start
    for x, y in products:
        out = torch.addcmul(out, x, y, value=-1) if out is start else out.addcmul_(x, y, value=-1)
    return out
