"""What can be computed for rows under a dictionary, beside their codes."""

from __future__ import annotations

from dataclasses import dataclass

OUTPUTS = {
    "mean": "sparse codes, posterior means of the coefficients: indices, values",
    "marginals": "probability that an atom is active (of each value, where there are several)",
    "map": "the most probable state: its atoms and their coefficients",
    "top_states": "the most probable states with their probabilities, which add up to 1 over all evaluated states",
    "reconstruction": "the expected row without noise",
    "log_likelihood": "log p(row), nats: how well the model predicts it",
    "entropy": "entropy of the posterior over states, nats",
}
"""Name -> meaning. Models without a posterior have only `mean` and `reconstruction`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `Model.infer` is asked for."""

    outputs: tuple[str, ...] = ("mean",)
    """Names of `OUTPUTS`."""
    top_states: int = 8
    """K, how many states `top_states` lists."""
    adaptive: int = 0
    """By how much H' and γ may grow for rows whose most probable state has γ active atoms."""

    @property
    def plain(self) -> bool:
        """Whether `Model.encode` gives all of it."""
        return set(self.outputs) <= {"mean"} and not self.adaptive
