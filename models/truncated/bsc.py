"""Binary sparse coding (BSC), learned by EM with Expectation Truncation.

    p(s) = Π_h π^{s_h} (1-π)^{1-s_h},   p(y | s) = N(y; W s, σ² I),   s_h ∈ {0, 1}

Henniges, Puertas, Bornschein, Eggert, Lücke: Binary sparse coding, LVA/ICA 2010. The discrete linear model of
`linear.py` with the one non-zero value 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .discrete import Tied


@dataclass(frozen=True, kw_only=True)
class BSC(Tied):
    """Binary sparse coding: atoms are switched on or off and add up; Gaussian noise."""

    select: Literal["cosine", "singleton"] = "cosine"
    """Candidates are the atoms most similar to the point, or those that explain it best alone (prior included)."""

    @property
    def support(self) -> tuple[float, ...]:
        """1."""
        return (1.0,)
