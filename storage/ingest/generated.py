"""Data drawn from a sparse coding model whose atoms are known: what a learned dictionary can be compared with.

    y = W s + noise, or for every dimension the s_h W_dh of largest magnitude (maximal causes) + noise,

with s_h drawn independently from a few values and, for spike-and-slab models, multiplied by a Gaussian. The atoms are
horizontal and vertical bars (Földiák 1990) or come from a file, and are kept beside the data as `truth` [D, H].
Shapes: N rows of D numbers, H atoms; a bars image has R × R = D pixels and 2 R atoms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import BadData
from ..layout import Shard, refuse_nonfinite
from ..reader import Dataset
from ..writer import create_dataset
from .build import Progress, for_each, shard_layout
from .sources import file_fingerprint, find_sources, open_sources

Finite = Annotated[float, Field(allow_inf_nan=False)]
BARS = "bars"
TRUTH = "truth"
"""The atoms [D, H], float64, beside the data."""


class GeneratedSource(BaseModel):
    """An ingest of rows drawn from a model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["generated"] = "generated"
    out: str
    """Where the data set goes: a path or s3://bucket/prefix."""
    atoms: str = BARS
    """`bars`, or a file that holds the atoms as columns [D, H]: W.npy, params.npz::W."""
    size: Annotated[int, Field(ge=2, le=100)] = 5
    """Side of a bars image in pixels."""
    amplitude: Finite = 10.0
    """Value of a bar's pixels."""
    vertical: Finite = 1.0
    """Factor of the vertical bars."""
    values: Annotated[list[Finite], Field(min_length=2)] = [0.0, 1.0]
    """Values that a latent takes."""
    p: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)] = [0.8, 0.2]
    """Probability of each value."""
    slab_mean: Finite | None = None
    """Mean of a Gaussian that multiplies every latent (spike-and-slab); by default there is none."""
    slab_std: Annotated[Finite, Field(ge=0)] = 1.0
    """Standard deviation of that Gaussian."""
    combine: Literal["sum", "max"] = "sum"
    """Atoms add up, or in every dimension the one of largest magnitude is seen."""
    sigma: Annotated[Finite, Field(ge=0)] = 2.0
    """Standard deviation of the noise."""
    rows: Annotated[int, Field(ge=1)] = 1000
    """N, how many rows are drawn."""
    seed: Annotated[int, Field(ge=0)] = 0
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in a shard; by default chosen by size."""
    overwrite: bool = False

    @model_validator(mode="after")
    def _one_probability_a_value(self) -> Self:
        if len(self.p) != len(self.values):
            raise BadData(f"p={self.p}: one probability for each of the values {self.values} is needed")
        if abs(sum(self.p) - 1) > 1e-9:
            raise BadData(f"p={self.p}: the probabilities add up to {sum(self.p):g}, not to 1")
        return self


def ingest_generated(job: GeneratedSource, progress: Progress) -> Dataset:
    """Makes (or continues) the data set of generated rows.

    Raises:
        NotFound, BadData: the file of the atoms is missing or holds no matrix.
        StorageError: the place is taken or cannot be written.
    """
    weights = true_atoms(job)
    dim = len(weights)
    shard_rows, chunk_rows = shard_layout(job.rows, dim, "float32", job.shard_rows)
    attributes: dict[str, Any] = {
        # The draws belong to shards: with other shards these would be other rows.
        "recipe": job.model_dump(exclude={"out", "overwrite"}) | {"shard_rows": shard_rows},
        "row": f"drawn from a model with {weights.shape[1]} atoms",
    }
    if job.atoms == BARS:
        attributes["patch_shape"] = [job.size, job.size]
    else:
        attributes["sources"] = [file_fingerprint(source.path) for source in find_sources([job.atoms])]
    writer = create_dataset(
        job.out,
        rows=job.rows,
        arrays={"data": ((dim,), "float32")},
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        attributes=attributes,
        side={TRUTH: weights},
        overwrite=job.overwrite,
    )
    total, missing = len(writer.shards()), writer.missing()
    for_each(
        lambda shard: writer.write(shard, data=draw(job, weights, shard)[0]),
        missing,
        lambda done: progress(total - len(missing) + done, total, "writing shards"),
    )
    return writer.finish()


def draw(job: GeneratedSource, weights: np.ndarray, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, D] float32 and latents [n, H] float64 of a shard: the same for the same shard, whoever asks."""
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(shard.index,)))
    values = np.asarray(job.values, np.float64)
    latents = rng.choice(values, p=np.asarray(job.p), size=(len(shard), weights.shape[1]))
    held = latents if job.slab_mean is None else latents * rng.normal(job.slab_mean, job.slab_std, latents.shape)
    clean = held @ weights.T if job.combine == "sum" else _largest(held, weights)
    return (clean + rng.normal(0, job.sigma, size=clean.shape)).astype(np.float32), latents


def true_atoms(job: GeneratedSource) -> np.ndarray:
    """[D, H] float64: bars (row i is atom i, column i atom R + i), or what the file holds."""
    if job.atoms != BARS:
        return _read_atoms(job)
    weights = np.zeros((job.size, job.size, 2 * job.size))
    for i in range(job.size):
        weights[i, :, i] = job.amplitude
        weights[:, i, job.size + i] = job.amplitude * job.vertical
    return weights.reshape(job.size**2, -1)


def _read_atoms(job: GeneratedSource) -> np.ndarray:
    sources = find_sources([job.atoms])
    with open_sources(sources, str(Path(job.out))) as (matrix, *_):
        if len(matrix.row_shape) != 1:
            raise BadData(f"{job.atoms} has rows of {list(matrix.row_shape)}: atoms are a matrix [D, H]")
        weights = matrix.read(0, matrix.rows).astype(np.float64)
    refuse_nonfinite(weights, job.atoms, 0)
    return weights


def _largest(held: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n, D] the s_h W_dh of largest magnitude, 0 where no atom is on. One atom at a time: [n, H, D] is too large."""
    out = np.zeros((len(held), len(weights)))
    for h in range(weights.shape[1]):
        one = np.outer(held[:, h], weights[:, h])
        np.copyto(out, one, where=np.abs(one) > np.abs(out))
    return out
