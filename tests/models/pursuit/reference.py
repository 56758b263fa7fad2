"""Slow, obvious references in float64, one signal after another."""

import numpy as np

Array = np.ndarray


def omp(x: Array, atoms: Array, nonzeros: int, select: str = "omp") -> tuple[list[int], Array]:
    """Orthogonal matching pursuit by least squares from scratch in every step; unit atoms, no dependent ones."""
    support: list[int] = []
    values = np.zeros(0, dtype=atoms.dtype)
    for _ in range(nonzeros):
        residual = x - atoms[:, support] @ values
        if select == "omp":
            score = np.abs(atoms.conj().T @ residual)
            score[support] = -1
        else:
            score = np.array([-error(x, atoms[:, [*support, j]]) for j in range(atoms.shape[1])])
            score[support] = -np.inf
        support.append(int(score.argmax()))
        values = np.linalg.lstsq(atoms[:, support], x, rcond=None)[0]
    return support, values


def somp(x: Array, atoms: Array, nonzeros: int, power: int) -> tuple[list[int], Array]:
    """Simultaneous OMP of one group x [n, D] by least squares from scratch in every step: support, values [n, k]."""
    support: list[int] = []
    values = np.zeros((len(x), 0), dtype=atoms.dtype)
    for _ in range(nonzeros):
        residual = x - values @ atoms[:, support].T
        score = (np.abs(residual @ atoms.conj()) ** power).sum(0)
        score[support] = -1
        support.append(int(score.argmax()))
        values = np.linalg.lstsq(atoms[:, support], x.T, rcond=None)[0].T
    return support, values


def error(x: Array, atoms: Array) -> float:
    """Squared distance of x to the span of the atoms."""
    values = np.linalg.lstsq(atoms, x, rcond=None)[0]
    return float(np.linalg.norm(x - atoms @ values) ** 2)


def objective(x: Array, atoms: Array, a: Array, penalty: Array | float, ridge: float = 0.0) -> Array:
    """½‖x - D a‖² + Σ λ_j |a_j| + ½ ridge ‖a‖² of each row, [n]."""
    r = x - a @ atoms.T
    return 0.5 * (r * r).sum(1) + (np.abs(a) * penalty).sum(1) + 0.5 * ridge * (a * a).sum(1)


def problem(
    rows: int, dim: int, atoms: int, nonzeros: int, noise: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Signals x [n, D], unit Gaussian atoms [D, H], and the codes a [n, H] with N(0, 1) entries they are made of."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(dim, atoms))
    d /= np.linalg.norm(d, axis=0)
    a = np.zeros((rows, atoms))
    for row in a:
        row[rng.choice(atoms, nonzeros, replace=False)] = rng.normal(size=nonzeros)
    return a @ d.T + noise * rng.normal(size=(rows, dim)), d, a
