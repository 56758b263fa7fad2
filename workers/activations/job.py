"""What a user asks for: the activations of a network, read from texts, as data sets."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..errors import JobError
from ..job import Job

LAYERS_AT_MOST = 100_000


class HarvestJob(Job):
    """Write what passes through a transformer, token by token, as one data set for every site and layer."""

    model: str = Field(
        min_length=1,
        description="a folder with a transformers model and its tokenizer, a .gguf file, input:smollm2 or input:minilm",
    )
    texts: Annotated[
        list[str], Field(min_length=1, description="files, folders or patterns: plain text, or .jsonl with `text`")
    ]
    out: str = Field(
        min_length=1,
        description="URI of the data set to write; of several sites or layers -SITE-LAYER is put into its name",
    )
    site: Annotated[
        list[str],
        Field(
            min_length=1,
            description="what to write, separated by commas: residual, mlp, attention, mlp_input, neurons, heads, or "
            "modules, as in model.layers.{}.mlp.act_fn ({}: the layer; :input: what it reads)",
        ),
    ] = Field(default_factory=lambda: ["residual"])
    layers: Annotated[
        list[int], Field(description="layers, counted from 0, as in 5,11 or 0-29; by default the middle one")
    ] = Field(default_factory=list[int])
    target: str | None = Field(
        None, description="a site of the same layers that becomes the array `outputs`, for transcoders"
    )
    gradients: bool = Field(
        False, description="also write the gradient of the next tokens' summed loss, as the array `gradients`"
    )
    context: int = Field(128, ge=2, le=2**20, description="tokens that the network reads at once")
    tokens: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="write at most this many rows; by default the texts' every token"
    )
    skip: int | None = Field(
        None,
        ge=0,
        description="leave out the first so many tokens of every context, on which attention rests; by default 2, or 0 "
        "where the tokenizer puts a token of its own there (such tokens are never rows)",
    )
    batch: int = Field(16, ge=1, le=2**20, description="contexts that a worker computes at once")
    dtype: Literal["float16", "float32"] = Field("float16", description="precision of the activations that are written")
    compute: Literal["float32", "bfloat16"] = Field("float32", description="precision that the network computes in")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of the order of rows in a shard")
    overwrite: bool = Field(False, description="replace existing data sets at the output")

    @field_validator("site", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return _split(given) if _strings(given) else given

    @field_validator("site")
    @classmethod
    def _known_sites(cls, sites: list[str]) -> list[str]:
        from .names import check_site

        return list(dict.fromkeys(check_site(name) for name in sites))

    @field_validator("layers", mode="before")
    @classmethod
    def _ranges(cls, given: Any) -> Any:
        if isinstance(given, int) and not isinstance(given, bool):
            return [given]
        return [layer for part in _split(given) for layer in _range(part)] if _strings(given) else given

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[int]) -> list[int]:
        for layer in layers:
            if layer < 0:
                raise JobError(f"layers={layer}: layers are counted from 0")
        return list(dict.fromkeys(layers))

    @field_validator("target")
    @classmethod
    def _known_target(cls, target: str | None) -> str | None:
        from .names import check_site

        return None if target is None else check_site(target, "target")

    @model_validator(mode="after")
    def _room_for_rows(self) -> Self:
        if self.skip is not None and self.skip >= self.context:
            raise JobError(f"skip={self.skip}: a context has {self.context} tokens, and none would be left")
        return self

    @property
    def rows(self) -> int | None:
        """At most so many rows."""
        return None if self.tokens is None else math.ceil(self.tokens)


def _strings(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, (list, tuple)) and all(isinstance(g, str) for g in given))


def _split(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _range(part: str) -> list[int]:
    first, dash, last = part.partition("-")
    if first.isdecimal() and (last.isdecimal() if dash else True):
        stop = int(last) if dash else int(first)
        if int(first) <= stop <= LAYERS_AT_MOST:
            return list(range(int(first), stop + 1))
    raise JobError(f"layers={part!r}: write them as 5,11 or 0-29")
