"""What a recipe holds, and how it is read: the data, the job, what to expect."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ...storage import BadData, NotFound, open_dataset
from ...storage.ingest import INGESTS, IngestJob
from ...workers.documents import read_yaml
from ...workers.job import LearnJob, apply_assignments
from ..errors import PipelineError
from ..flags import parse_job

FOLDER = Path(__file__).parent
PREFIX = "source."
"""`--set source.rows=2000` changes how the data is made."""


class Recipe(BaseModel):
    """An experiment: how its data is made, the job that learns from it, and what should come out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    about: str = Field(min_length=1)
    """One line."""
    reference: str = ""
    """The paper whose experiment this is."""
    source: dict[str, Any]
    """Fields of an ingest (`kind` says which), without `out`."""
    needs: str = ""
    """What to do where the source's files are missing."""
    job: dict[str, Any]
    """Fields of the learn job, without `data`."""
    then: dict[str, Any] = {}
    """Fields that change in a second run, which starts from the first one's result; empty: no second run."""
    check: str = "metrics"
    """How the outcome is measured; one of those in checks.py."""
    expect: dict[str, tuple[float, float]] = {}
    """Least and largest value of what the check or the run measures."""
    reported: dict[str, str] = {}
    """Who found what: `expected`, `prosper`, `ours`."""

    @property
    def data(self) -> str:
        """Where its data set lies unless the user says otherwise."""
        return f"data/{self.name}.zarr"

    def values(self) -> dict[str, Any]:
        """The learn job's fields."""
        return {"data": self.data, "name": self.name, **self.job}

    def second(self, job: LearnJob, first: str) -> LearnJob | None:
        """The job of the second run after `job` has published `first`; None where the recipe has none."""
        if not self.then:
            return None
        values = job.to_dict() | {"init": first, "starts": 1} | self.then
        return LearnJob.parse(values)

    def ingest(self, out: str, assignments: Sequence[str] = ()) -> IngestJob:
        """The ingest that makes the data at `out`, changed by assignments without their prefix.

        Raises:
            JobError, PipelineError: an unknown field or a value that does not fit.
        """
        return _ingest(apply_assignments({**self.source, "out": out}, list(assignments)))

    def missing(self, job: IngestJob) -> bool:
        """Whether the data set of `job` has still to be made.

        Raises:
            PipelineError: there is one that was made in another way.
        """
        try:
            found = open_dataset(job.out)
        except NotFound:
            return True
        except BadData:
            raise
        except Exception:
            # Unfinished: the ingest continues it, or says what is in its way.
            return True
        asked = job.model_dump(mode="json", exclude={"sources", "out", "overwrite"}, exclude_none=True)
        made: Mapping[str, Any] = found.attributes.get("recipe", {})
        # What an ingest leaves out of its recipe has the default value.
        made = {k: f.get_default(call_default_factory=True) for k, f in type(job).model_fields.items()} | dict(made)
        other = sorted(k for k, v in asked.items() if made[k] != v)
        if other:
            raise PipelineError(
                f"{job.out} was made in another way ({', '.join(f'{k}={made.get(k)!r}' for k in other)}): "
                "remove it, or name another place with --data"
            )
        return False

    @classmethod
    def parse(cls, name: str, values: Any) -> Self:
        """The recipe that a file's content describes, its job and its ingest checked.

        Raises:
            PipelineError, JobError: an unknown field (the nearest is suggested) or a value that does not fit.
        """
        if not isinstance(values, dict):
            raise PipelineError(f"recipe {name!r} must hold fields like 'about: …', not a {type(values).__name__}")
        recipe = parse_job(cls, {"name": name, **{str(k): v for k, v in values.items()}})
        job = LearnJob.parse(recipe.values())
        recipe.second(job, f"{name}@1")
        recipe.ingest(recipe.data)
        return recipe


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of this name, or in this YAML file.

    Raises:
        PipelineError, JobError: there is none (the nearest is suggested), or it does not fit.
    """
    own = Path(name)
    path = own if own.suffix in (".yaml", ".yml") else FOLDER / f"{name}.yaml"
    known = recipe_names()
    if path.parent == FOLDER and path.stem not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `sparsefleet recipes`"
        raise PipelineError(f"unknown recipe {name!r}; {hint}")
    try:
        values = read_yaml(path)
    except (OSError, ValueError) as err:
        raise PipelineError(f"recipe {name!r} cannot be read: {getattr(err, 'strerror', None) or err}") from err
    except yaml.YAMLError as err:
        raise PipelineError(f"recipe {name!r} is not YAML: {' '.join(str(err).split())}") from err
    return Recipe.parse(path.stem, values)


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of `--set` that change the source, without their prefix, and those that change the job."""
    source = [a.removeprefix(PREFIX) for a in assignments if a.startswith(PREFIX)]
    return source, [a for a in assignments if not a.startswith(PREFIX)]


def _ingest(values: dict[str, Any]) -> IngestJob:
    kind = values.get("kind")
    if kind not in INGESTS:
        near = difflib.get_close_matches(str(kind), INGESTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(INGESTS)}"
        raise PipelineError(f"source.kind={kind!r}: {hint}")
    job: Any = parse_job(INGESTS[kind].job, values)
    return job
