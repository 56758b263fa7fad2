"""Ingest: sources become data sets. A job is a typed value, `ingest(job)` makes (or continues) its data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field

from ..errors import StorageError
from ..reader import Dataset
from .arrays import ArraysSource, ingest_arrays
from .build import Progress
from .generated import GeneratedSource, ingest_generated
from .images import ImagesSource, ingest_images
from .series import SeriesSource, ingest_series
from .sounds import SoundsSource, ingest_sounds

__all__ = [
    "INGESTS",
    "ArraysSource",
    "GeneratedSource",
    "ImagesSource",
    "IngestJob",
    "Progress",
    "SeriesSource",
    "SoundsSource",
    "ingest",
]

IngestJob = Annotated[
    ImagesSource | ArraysSource | SoundsSource | SeriesSource | GeneratedSource, Field(discriminator="kind")
]
"""Any ingest, told apart by `kind`: the type for a job in a file or a form."""


class Ingest(NamedTuple):
    """One kind of ingest: its typed job, and the function that does it."""

    job: type[BaseModel]
    run: Callable[[Any, Progress], Dataset]


INGESTS = {
    "images": Ingest(ImagesSource, ingest_images),
    "arrays": Ingest(ArraysSource, ingest_arrays),
    "sounds": Ingest(SoundsSource, ingest_sounds),
    "series": Ingest(SeriesSource, ingest_series),
    "generated": Ingest(GeneratedSource, ingest_generated),
}
"""One line a kind."""


def ingest(job: BaseModel, progress: Progress = lambda done, total, what: None) -> Dataset:
    """The data set that `job` describes; an interrupted one is continued.

    `progress(done, total, what)` is called in this thread; Ctrl-C leaves what is done, and the same job continues it.

    Raises:
        NotFound: a source is not there.
        BadData: a source cannot become a data set; nothing is left at the output.
        StorageError: the place is taken (StoreConflict) or cannot be written, or a package is missing.
    """
    for kind in INGESTS.values():
        if isinstance(job, kind.job):
            return kind.run(job, progress)
    raise StorageError(f"{type(job).__name__} is no ingest: choose one of {', '.join(INGESTS)}")
