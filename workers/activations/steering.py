"""What a network says next when a direction is added to its activations at the last token of a context.

α d is added to what passes at one site, where |d| = 1 and α is the same for all directions. What it does is stated as
the divergence KL(without | with) of the next token's distribution in nats, and as the push: by how much the logits of
the ten tokens rise that the direction itself names. It names those with the largest u_v · w, where u_v are rows of the
network's last linear layer (nostalgebraist 2020, logit lens) and w is the direction's image in the residual stream: d
itself at a site in it, and what the layer's output projection makes of d for neurons of an MLP and outputs of heads. At
other sites no image is known; only the divergence is stated there. Logits are stated against their mean over all
tokens, as only differences of logits mean anything.

Shapes: n directions, D dimensions at the site, R of the residual stream, V tokens, T tokens of one context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..errors import JobError
from .sites import ATTENTION, DOWN, is_layer
from .taps import Tap, module_at, replacing

NAMED = 10
"""Tokens that a direction names."""
WHOLE = ("mlp", "self_attn", "attn", "self_attention", "feed_forward", "ffn")
"""Modules whose outputs are those of the projections in them."""
AT_ONCE = 64
"""Directions computed together: each has V logits."""


@dataclass(frozen=True)
class Pushed:
    """The tokens that directions name, and what becomes of their logits."""

    named: Tensor
    """[n, 10] int64, first the one with the largest u · w."""
    push: Tensor
    """[n] mean rise of the logits of `named`."""


@dataclass(frozen=True)
class Steered:
    """Means over contexts, float64, on the CPU."""

    divergence: Tensor
    """[n] KL(without | with) of the next token, nats."""
    tokens: Pushed | None
    """None where the directions have no known image in the residual stream."""

    def part(self, at: slice) -> Steered:
        """Of some of the directions."""
        tokens = self.tokens and Pushed(self.tokens.named[at], self.tokens.push[at])
        return Steered(self.divergence[at], tokens)


def images(network: Any, tap: Tap, directions: Tensor) -> Tensor | None:
    """[n, R] what directions [n, D] at a site add to the residual stream; None where that is not known.

    Known are neurons and heads, whose layer's projection is linear but for its bias; what these projections give, and
    the MLP and the attention around them; and what layers take and give. Norms between a projection and the stream
    (Gemma 2) are left out.

    Raises:
        JobError: the network has no last linear layer.
    """
    wide = output_layer(network).weight.shape[1]
    inside = lambda names: f".{tap.module}".endswith(tuple(f".{name}" for name in names))  # noqa: E731
    projects = inside((*DOWN, *ATTENTION))
    if projects and tap.side == "input":
        project = module_at(network, tap)
        given = directions.to(next(project.parameters()))
        with torch.no_grad():
            directions = project(given) - project(torch.zeros_like(given))
    elif not (projects or is_layer(network, tap.module) or (tap.side == "output" and inside(WHOLE))):
        return None
    return directions if directions.shape[1] == wide else None


def named_tokens(network: Any, directions: Tensor) -> Tensor:
    """[n, 10] int64, the tokens with the largest u · w of directions w [n, R] of the residual stream; fewer where V <
    10.

    Raises:
        JobError: the network has no last linear layer.
    """
    weight: Tensor = output_layer(network).weight
    scores = directions.to(weight) @ weight.detach().T
    return scores.topk(min(NAMED, len(weight)), dim=1).indices


def steer(
    network: Any,
    tap: Tap,
    contexts: Sequence[Tensor],
    directions: Tensor,
    size: float,
    count: Callable[[int], None] = lambda _: None,
) -> Steered:
    """Add `size` · d at the last token of every context, one direction d at a time.

    What comes before the last token is computed once for all directions, where the network keeps keys and values.

    Args:
        network: predicts next tokens, on the device of `directions`.
        tap: the site.
        contexts: tokens [T] int64 each, T >= 2.
        directions: [n, D]; only their direction counts.
        size: α, in the units of the activations.
        count: is told how many contexts are done.

    Raises:
        JobError: a direction is 0, or the network has no last linear layer.
    """
    if bool((directions.norm(dim=1) == 0).any()):
        raise JobError("steer: a latent's row of the decoder is 0, so that it has no direction")
    unit = directions / directions.norm(dim=1, keepdim=True)
    seen = images(network, tap, unit)
    named = None if seen is None else named_tokens(network, seen)
    divergence = torch.zeros(len(unit), dtype=torch.float64)
    push = torch.zeros(len(unit), dtype=torch.float64)
    for done, context in enumerate(contexts, 1):
        ids = context.to(directions.device)[None]
        before = before_last(network, ids)
        clean = last_logits(network, tap, ids, before, torch.zeros_like(unit[:1]))
        for first in range(0, len(unit), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            changed = last_logits(network, tap, ids, before, size * unit[part])
            divergence[part] += divergences(clean, changed).cpu()
            if named is not None:
                push[part] += (changed - clean).gather(1, named[part]).mean(1).cpu()
        count(done)
    tokens = None if named is None else Pushed(named.cpu(), push / len(contexts))
    return Steered(divergence / len(contexts), tokens)


def output_layer(network: Any) -> Any:
    """The layer that gives logits."""
    layer = network.get_output_embeddings()
    if layer is None:
        raise JobError(f"steer: {type(network).__name__} has no linear layer that gives logits")
    return layer


def before_last(network: Any, ids: Tensor) -> Any:
    """The network's keys and values for all tokens but the last; None where it keeps none that can be repeated."""
    if not getattr(network.config, "use_cache", False):
        return None
    with torch.no_grad():
        found = getattr(network(input_ids=ids[:, :-1], use_cache=True), "past_key_values", None)
    return found if hasattr(found, "batch_repeat_interleave") else None


def last_logits(network: Any, tap: Tap, ids: Tensor, before: Any, added: Tensor) -> Tensor:
    """[m, V] float64 logits after the last token, less their mean, with each of `added` [m, D]."""
    ids = ids.expand(len(added), -1)
    more: dict[str, Any] = {"use_cache": False}
    if before is not None:
        # The network appends to what it is given.
        past = copy.deepcopy(before)
        past.batch_repeat_interleave(len(added))
        ids, more = ids[:, -1:], {"past_key_values": past, "use_cache": True}
    elif getattr(network.config, "use_cache", None) is None:
        more = {}

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, -1] += added.to(x.dtype).reshape(x[:, -1].shape)
        return x

    with torch.no_grad(), replacing(network, tap, change), _last_only(network):
        logits = network(input_ids=ids, **more).logits[:, -1].double()
    return logits - logits.mean(1, keepdim=True)


def _last_only(network: Any) -> RemovableHandle:
    """While this is open logits are computed for the last token only: those of a context would be V numbers a token."""
    layer = network.get_output_embeddings()
    return layer.register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))


def divergences(clean: Tensor, changed: Tensor) -> Tensor:
    """[m] KL of rows of logits against the one of `clean` [1, V]."""
    before, after = clean.log_softmax(1), changed.log_softmax(1)
    return (before.exp() * (before - after)).sum(1).clamp(min=0)
