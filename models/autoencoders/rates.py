"""How a learning rate and a coefficient rise and fall along a run."""

from __future__ import annotations


def warm_and_decay(step: int, steps: int, *, warm: int = 1000) -> float:
    """Factor of the learning rate: a linear rise over the first `warm` steps (5 % of the run if that is less), then 1,
    then a linear fall over the last 20 % that would reach zero just after the last step."""
    rising = max(1, min(warm, steps // 20))
    return min(1.0, (step + 1) / rising, (steps - step) / max(1.0, 0.2 * steps))


def warm_up(step: int, steps: int) -> float:
    """Factor of a sparsity coefficient: a linear rise over the first 5 % of the run, then 1."""
    return min(1.0, (step + 1) / max(1.0, 0.05 * steps))


def warm_again(step: int, steps: int, last: int, *, warm: int = 1000) -> float:
    """Factor of the learning rate after latents were resampled in update `last` (-1: never): from a tenth back to 1
    over `warm` steps (5 % of the run if that is less)."""
    if last < 0:
        return 1.0
    rising = max(1, min(warm, steps // 20))
    return min(1.0, 0.1 + 0.9 * (step - last - 1) / rising)
