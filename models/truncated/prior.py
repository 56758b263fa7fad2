"""A Bernoulli prior cut off at γ active atoms: its mass, its mean, and the π that explains an observed mean.

Lücke & Eggert, JMLR 11, 2010: with A(π) = P(|s| ≤ γ) and B(π) = Σ_{g≤γ} g P(|s| = g), the stationary point of the
truncated model is B(π)/A(π) = mean number of active atoms.
"""

from __future__ import annotations

from math import exp, lgamma, log

LOWEST = 1e-6


def mass_and_mean(pi: float, atoms: int, active: int) -> tuple[float, float]:
    """(A, B) for prior probability π, H atoms and at most γ active ones."""
    logs = [
        lgamma(atoms + 1) - lgamma(g + 1) - lgamma(atoms - g + 1) + g * log(pi) + (atoms - g) * log1m(pi)
        for g in range(min(active, atoms) + 1)
    ]
    terms = [exp(v) for v in logs]
    return sum(terms), sum(g * t for g, t in enumerate(terms))


def truncated_pi(mean: float, atoms: int, active: int) -> float:
    """π with B(π)/A(π) = `mean`, by bisection (the left side rises from 0 to γ)."""
    if active >= atoms:
        return min(max(mean / atoms, LOWEST), 1 - LOWEST)
    low, high = LOWEST, 1 - LOWEST
    for _ in range(80):
        middle = 0.5 * (low + high)
        mass, first = mass_and_mean(middle, atoms, active)
        # For π near 1 both sums underflow; their ratio is γ there.
        ratio = first / mass if mass > 0 else float(active)
        low, high = (middle, high) if ratio < mean else (low, middle)
    return 0.5 * (low + high)


def log1m(pi: float) -> float:
    """log(1 - π) without loss near 0."""
    from math import log1p

    return log1p(-pi)
