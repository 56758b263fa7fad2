"""One step of Adam (Kingma & Ba 2015), in one pass over memory where it is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import native


@dataclass(frozen=True, slots=True)
class Moments:
    """A parameter with its running first and second moment, all of one shape."""

    value: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True)
class Tangent:
    """The part of a gradient that is orthogonal to unit rows."""

    along: Tensor
    """[H], the other part: <gradient, row> of every row."""
    norm: float
    """Of the orthogonal part, all rows together."""


def tangent(gradient: Tensor, value: Tensor) -> Tangent:
    """The orthogonal part of `gradient` [H, D] with respect to the unit rows of `value` [H, D]."""
    if native.usable(gradient, value):
        along = gradient.new_empty(gradient.shape[0])
        squares = torch.empty(gradient.shape[0], dtype=torch.float64)
        native.call("project", gradient.contiguous(), value.contiguous(), *gradient.shape, along, squares)
        return Tangent(along, math.sqrt(float(squares.sum())))
    along = (gradient * value).sum(1)
    left = torch.addcmul(gradient, along[:, None], value, value=-1)
    return Tangent(along, float(torch.linalg.vector_norm(left)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """The constants of one step. `torch.optim.Adam` without weight decay computes the same."""

    rate: float
    """Learning rate of this step."""
    betas: tuple[float, float]
    eps: float
    count: int
    """Number of this step, from 1."""

    def step(
        self, old: Moments, gradient: Tensor, factor: float = 1.0, *, orthogonal: Tangent | None = None
    ) -> Moments:
        """The parameter after one step along `factor * gradient`; the arguments stay as they are.

        `orthogonal`: step along that part of the gradient [H, D] only, and give the rows norm 1 afterwards (a row of
        zeros stays).
        """
        if old.value.ndim > 0 and native.usable(old.value, gradient):
            return self._compiled(old, gradient, factor, orthogonal)
        along, g = orthogonal.along if orthogonal else None, gradient
        if along is not None:
            g = torch.addcmul(gradient, along[:, None], old.value, value=-1)
        g = g * factor
        first = torch.lerp(old.first, g, 1 - self.betas[0])
        second = (old.second * self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
        scale = second.sqrt().div_(self._root_bias2).add_(self.eps)
        value = torch.addcdiv(old.value, first, scale, value=-self._rate)
        if along is not None:
            norm = torch.linalg.vector_norm(value, dim=1, keepdim=True)
            value = torch.where(norm > 0, value / norm, value)
        return Moments(value, first, second)

    @property
    def _rate(self) -> float:
        return self.rate / (1 - self.betas[0] ** self.count)

    @property
    def _root_bias2(self) -> float:
        return math.sqrt(1 - self.betas[1] ** self.count)

    def _compiled(self, old: Moments, gradient: Tensor, factor: float, orthogonal: Tangent | None) -> Moments:
        shape = old.value.shape
        # Rows that are no atoms are only pieces to deal to the threads.
        flat = (1, shape.numel()) if len(shape) == 1 else (shape[0], shape[1:].numel())
        new = Moments(*(torch.empty(shape, dtype=old.value.dtype) for _ in range(3)))
        parts = [t.contiguous() for t in (old.value, old.first, old.second, gradient)]
        along = orthogonal.along if orthogonal else parts[0]
        constants = (*map(float, self.betas), self._rate, self._root_bias2, float(self.eps), float(factor))
        outs = new.value, new.first, new.second
        native.call("adam", *parts, along, int(orthogonal is not None), *flat, *constants, *outs)
        return new
