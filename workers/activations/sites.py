"""Sites of transformers: what "the residual stream after layer 5" means in the modules of a particular network.

Layers are counted from 0. Architectures differ in names only; those below are the names in use. Where none of them
fits, a site may be given as the path of a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import JobError
from .names import SITES
from .taps import Tap, module_at

ATTENTION = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj", "attention.dense",
    "self_attention.dense", "attention.output.dense", "attention.out_lin", "attn.attention.out_proj",
    "attention.o_proj", "attention.wo",
)  # fmt: skip
"""Modules of a layer that project the heads' outputs back."""
DOWN = (
    "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "fc2", "feed_forward.w2",
    "feed_forward.down_proj", "ffn.lin2", "output.dense",
)  # fmt: skip
"""Modules of a layer that project the neurons of the MLP back."""
UP = (
    "mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc1", "mlp.fc_in", "fc1",
    "feed_forward.w1", "feed_forward.gate_proj", "ffn.lin1", "intermediate.dense",
)  # fmt: skip
"""Modules of a layer that the MLP begins with."""
_WITHIN = {
    "mlp": (DOWN, "output"),
    "attention": (ATTENTION, "output"),
    "mlp_input": (UP, "input"),
    "neurons": (DOWN, "input"),
    "heads": (ATTENTION, "input"),
}


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a transformer: a site by name in a layer, or a module by path."""

    name: str
    layer: int | None
    tap: Tap

    @property
    def label(self) -> str:
        """Short and fit for a file's name: `residual-5`."""
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name)
        return plain if self.layer is None else f"{plain}-{self.layer}"

    @property
    def meaning(self) -> str:
        """In words."""
        if self.layer is None or self.name not in SITES:
            return f"module {self.tap}"
        return SITES[self.name].replace("the layer", f"layer {self.layer}", 1)


def find_sites(network: nn.Module, names: list[str], layers: list[int]) -> list[Site]:
    """Every site of `names` in every one of `layers`, layer by layer; without `layers`, in the middle one.

    A path with `{}` in it is a module of every layer; one without is taken once.

    Raises:
        JobError: a layer or a module that the network does not have, or a site whose module has an unknown name.
    """
    found: list[Site] = []
    of_layers = [name for name in names if name in SITES or "{}" in name]
    found += [Site(name, None, Tap.parse(name)) for name in names if name not in of_layers]
    if of_layers:
        path, blocks = _blocks(network)
        for layer in layers or [len(blocks) // 2]:
            if not 0 <= layer < len(blocks):
                raise JobError(
                    f"layers={layer}: {type(network).__name__} has {len(blocks)} layers, 0 to {len(blocks) - 1}"
                )
            found += [Site(name, layer, _tap(name, path, layer, blocks[layer])) for name in of_layers]
    for site in found:
        module_at(network, site.tap)
    return found


def is_layer(network: nn.Module, module: str) -> bool:
    """Whether the module at this path is one of the network's layers; False where these are not known."""
    try:
        path, blocks = _blocks(network)
    except JobError:
        return False
    return module in {f"{path}.{layer}" for layer in range(len(blocks))}


def _blocks(network: Any) -> tuple[str, nn.ModuleList]:
    """The layers and their path."""
    config: Any = getattr(network, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    if hasattr(config, "get_text_config"):
        count = config.get_text_config().num_hidden_layers
    lists = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == (count or len(m))]
    if not lists:
        raise JobError(
            f"{type(network).__name__} has no list of layers that is known here: name sites by module, as in "
            "--site encoder.block.3.layer.1:input"
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _tap(name: str, path: str, layer: int, block: nn.Module) -> Tap:
    if "{}" in name:
        return Tap.parse(name.replace("{}", str(layer)))
    at = f"{path}.{layer}"
    if name == "residual":
        return Tap(at)
    candidates, side = _WITHIN[name]
    inner = {n for n, _ in block.named_modules()}
    module = next((c for c in candidates if c in inner), None)
    if module is None:
        parts = ", ".join(n for n in inner if n.count(".") == 1 and "norm" not in n.lower())
        raise JobError(
            f"site={name!r}: the layers of this {type(block).__name__} name it otherwise; give the module, as in "
            f"--site '{path}.{{}}.MODULE:{side}', of {parts[:200]}"
        )
    return Tap(f"{at}.{module}", "input" if side == "input" else "output")
