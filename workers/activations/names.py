"""Sites of transformers by name; nothing is imported for them."""

from __future__ import annotations

from ..errors import JobError

SITES = {
    "residual": "the residual stream after the layer",
    "mlp": "what the layer's MLP adds to it",
    "attention": "what the layer's attention adds to it",
    "mlp_input": "what the layer's MLP reads",
    "neurons": "the neurons of the layer's MLP, after their non-linearity",
    "heads": "the outputs of the layer's heads, side by side",
}


def check_site(name: str, setting: str = "site") -> str:
    """`name`, given as `setting`, if it is a site's or can be a module's path.

    Raises:
        JobError: it is neither.
    """
    if name not in SITES and "." not in name:
        raise JobError(
            f"{setting}={name!r}: choose of {', '.join(SITES)}, or the path of a module, as in "
            "model.layers.{}.mlp:input"
        )
    return name
