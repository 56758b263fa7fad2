"""Adam (Kingma & Ba 2015) as a pure function of values, gradients and moments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """A parameter with its running first and second moment, all of one shape."""

    value: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """The constants of one step. `torch.optim.Adam` without weight decay computes the same."""

    rate: float
    """Learning rate of this step."""
    betas: tuple[float, float]
    eps: float
    count: int
    """Number of this step, from 1."""

    def step(self, old: Moments, gradient: Tensor, factor: float = 1.0) -> Moments:
        """The parameter after one step along `factor * gradient`; the arguments stay as they are."""
        new = Moments(*(old.value.new_empty(old.value.shape) for _ in range(3)))
        # On a CPU all operations on a block find it in the cache; larger ones than these miss it, smaller ones spend
        # their time on meeting the other threads.
        on_cpu = old.value.device.type == "cpu"
        length = torch.get_num_threads() << 18 if on_cpu else max(1, old.value.numel())
        blocks = [t.reshape(-1).split(length) for t in (old.value, old.first, old.second, gradient)]
        outs = [t.view(-1).split(length) for t in (new.value, new.first, new.second)]
        for (value, first, second, g), out in zip(zip(*blocks, strict=True), zip(*outs, strict=True), strict=True):
            self._block(value, first, second, g * factor, out)
        return new

    def _block(self, value: Tensor, first: Tensor, second: Tensor, g: Tensor, out: tuple[Tensor, ...]) -> None:
        beta1, beta2 = self.betas
        new_value, new_first, new_second = out
        torch.lerp(first, g, 1 - beta1, out=new_first)
        torch.mul(second, beta2, out=new_second).addcmul_(g, g, value=1 - beta2)
        scale = new_second.sqrt().div_(math.sqrt(1 - beta2**self.count)).add_(self.eps)
        torch.addcdiv(value, new_first, scale, value=-self.rate / (1 - beta1**self.count), out=new_value)


def warm_and_decay(step: int, steps: int, *, warm: int = 1000) -> float:
    """Factor of the learning rate: a linear rise over the first `warm` steps (5 % of the run if that is less), then 1,
    then a linear fall over the last 20 % that would reach zero just after the last step."""
    rising = max(1, min(warm, steps // 20))
    return min(1.0, (step + 1) / rising, (steps - step) / max(1.0, 0.2 * steps))
