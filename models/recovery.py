"""How well a learned dictionary recovers the one that made the data.

Atoms are paired by the assignment that maximises the sum of their cosines (Kuhn 1955); a greedy pairing may give one
true atom away that another one needs. Shapes: D observed, H atoms learned, H* true atoms, H* ≤ H.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError

Array = NDArray[np.floating]
FOUND = 0.95
"""Cosine above which a true atom counts as found."""


@dataclass(frozen=True)
class Recovery:
    """True atoms and their partners."""

    cosines: Array
    """[H*] of every true atom with its partner; magnitudes where signs are free."""
    partners: NDArray[np.integer]
    """[H*] columns of the learned dictionary."""
    atoms: Array
    """[D, H*] the partners, with the sign of the true atom where signs are free."""

    @property
    def found(self) -> int:
        """True atoms with a partner of their own whose cosine exceeds 0.95."""
        return int((self.cosines > FOUND).sum())

    def error(self, truth: Array, *, unit: bool = False) -> float:
        """‖W* - W‖ / ‖W*‖ over the partners; with `unit`, of the atoms at length 1 (their length being free)."""
        ours, theirs = (_unit(self.atoms), _unit(truth)) if unit else (self.atoms, truth)
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def recover(learned: Array, truth: Array, *, signs: bool = False) -> Recovery:
    """Pairs the columns of `truth` [D, H*] with those of `learned` [D, H]; `signs` when ±W_h mean the same.

    Raises:
        ModelError: the shapes do not fit, or there are fewer learned atoms than true ones.
        ImportError: scipy is missing.
    """
    if learned.ndim != 2 or truth.ndim != 2 or learned.shape[0] != truth.shape[0]:
        raise ModelError(f"atoms of shape {list(learned.shape)} cannot be compared with {list(truth.shape)}")
    if learned.shape[1] < truth.shape[1]:
        raise ModelError(
            f"{learned.shape[1]} atoms were learned, but {truth.shape[1]} made the data: learn at least as many"
        )
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as err:
        raise ImportError("pairing atoms needs scipy: pip install 'sparsefleet[science]'") from err
    cosine = _unit(truth).T @ _unit(learned)
    rows, partners = linear_sum_assignment(-np.abs(cosine) if signs else -cosine)
    best = cosine[rows, partners]
    atoms = np.asarray(learned, np.float64)[:, partners]
    if not signs:
        return Recovery(best, partners, atoms)
    return Recovery(np.abs(best), partners, atoms * np.where(best < 0, -1.0, 1.0))


def _unit(weights: Array) -> Array:
    wide = np.asarray(weights, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=0), 1e-12)
