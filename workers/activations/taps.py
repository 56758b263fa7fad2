"""What passes through the modules of any torch network: the activations of one forward pass, and their gradients.

Shapes: whatever a module gives or takes, usually [batch, length, D].
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import JobError


@dataclass(frozen=True, slots=True, order=True)
class Tap:
    """A place in a network: what a module gives, or what it takes (the first tensor of either).

    >>> str(Tap("layers.5")), str(Tap.parse("layers.5.mlp:input"))
    ('layers.5', 'layers.5.mlp:input')
    """

    module: str
    """Its path, as `named_modules` spells it."""
    side: Literal["input", "output"] = "output"

    def __post_init__(self) -> None:
        if self.side not in ("input", "output"):
            raise JobError(f"{self.module!r}: its side is input or output, not {self.side!r}")

    def __str__(self) -> str:
        return self.module if self.side == "output" else f"{self.module}:input"

    @classmethod
    def parse(cls, text: str) -> Tap:
        """The tap that PATH, PATH:output or PATH:input names."""
        module, colon, side = text.rpartition(":")
        if not colon:
            return cls(text)
        if side == "input":
            return cls(module, "input")
        if side == "output":
            return cls(module)
        raise JobError(f"{text!r}: after the colon stands input or output, not {side!r}")


@dataclass(frozen=True)
class Recording:
    """Copies of what passed, by tap; of modules that were called several times the first call."""

    activations: dict[Tap, Tensor] = field(default_factory=dict[Tap, Tensor])
    gradients: dict[Tap, Tensor] = field(default_factory=dict[Tap, Tensor])
    """Of the loss, by the activations; zero where it does not depend on them. Empty without a loss."""


class _Enough(Exception):
    """Everything that was asked for has passed: the rest of the network need not be computed."""


def record(
    network: nn.Module, taps: Sequence[Tap], forward: Callable[[], Any], loss: Callable[[Any], Tensor] | None = None
) -> Recording:
    """Run `forward` once and keep what passes at `taps`.

    Args:
        network: the module that `forward` calls. Its parameters neither change nor receive gradients.
        taps: where to look.
        forward: calls the network and returns what it gives. Without a loss it is left as soon as all taps were passed.
        loss: a scalar of what `forward` gives. With it gradients are found too.

    Raises:
        JobError: a module that the network does not have, one that was not called, or that passes no real tensor; a
            loss of more numbers than one.
    """
    modules = [module_at(network, tap) for tap in taps]
    seen: dict[Tap, Tensor] = {}
    kept: dict[Tap, Tensor] = {}

    def keep(tap: Tap, passed: Any) -> Any:
        """Remembers the first tensor of `passed`; returns `passed` with what shall go on in its place."""
        value = _first(passed)
        if value is None or not value.is_floating_point():
            raise JobError(f"{tap}: no real tensor passes there, but {type(passed).__name__}")
        if tap in kept:
            return passed
        # What follows may work in place: the copy is ours.
        kept[tap] = value.detach().clone()
        if loss is None:
            if len(kept) == len(taps):
                raise _Enough
            return passed
        seen[tap] = value if value.requires_grad else value.detach().requires_grad_()
        return _with_first(passed, seen[tap].clone())

    with ExitStack() as stack, torch.set_grad_enabled(loss is not None):
        stack.enter_context(_frozen(network))
        for tap, module in zip(taps, modules):
            stack.enter_context(_hook(module, tap, keep))
        try:
            given = forward()
        except _Enough:
            return Recording(kept)
        for tap in taps:
            if tap not in kept:
                raise JobError(f"{tap}: this module was not called by the network, so nothing passed there")
        if loss is None:
            return Recording(kept)
        order = list(seen)
        inputs = [seen[tap] for tap in order]
        # materialize_grads: zero where the loss does not depend on what passed.
        value = loss(given)
        if value.numel() != 1:
            raise JobError(f"loss: gives {tuple(value.shape)}, but gradients are of one number; sum it")
        found = torch.autograd.grad(value.reshape(()), inputs, allow_unused=True, materialize_grads=True)
    return Recording(kept, dict(zip(order, found)))


@contextmanager
def replacing(network: nn.Module, tap: Tap, change: Callable[[Tensor], Tensor]) -> Generator[None]:
    """While this is open, the network goes on with `change` of what passes at `tap` (a tensor of the same shape).

    Raises:
        JobError: a module that the network does not have.
    """

    def exchange(_: Tap, passed: Any) -> Any:
        value = _first(passed)
        if value is None:
            raise JobError(f"{tap}: no tensor passes there, but {type(passed).__name__}")
        return _with_first(passed, change(value))

    with _hook(module_at(network, tap), tap, exchange):
        yield


def module_at(network: nn.Module, tap: Tap) -> nn.Module:
    """The module of a tap.

    Raises:
        JobError: there is none; the nearest name is suggested.
    """
    try:
        return network.get_submodule(tap.module)
    except AttributeError:
        import difflib

        names = [name for name, _ in network.named_modules() if name]
        near = difflib.get_close_matches(tap.module, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:5])}, …"
        raise JobError(f"{tap.module!r}: {type(network).__name__} has no such module; {hint}") from None


@contextmanager
def _hook(module: nn.Module, tap: Tap, keep: Callable[[Tap, Any], Any]) -> Generator[None]:
    if tap.side == "output":
        handle = module.register_forward_hook(lambda _, args, given: keep(tap, given))
    else:

        def before(
            _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return keep(tap, args), named
            name = next((n for n, value in named.items() if isinstance(value, Tensor)), "")
            return args, named | {name: keep(tap, named.get(name))}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _frozen(network: nn.Module) -> Generator[None]:
    """Parameters that need no gradients: the graph then begins at the first tap, not at the input."""
    changed = [p for p in network.parameters() if p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_()


def _first(passed: Any) -> Tensor | None:
    while isinstance(passed, (tuple, list)) and passed:
        passed = passed[0]
    return passed if isinstance(passed, Tensor) else None


def _with_first(passed: Any, value: Tensor) -> Any:
    if isinstance(passed, (tuple, list)):
        return type(passed)([_with_first(passed[0], value), *passed[1:]])
    return value
