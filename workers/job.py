"""Jobs: what a user asks for, typed and checked. One object is the command line's flags, the YAML file, the form in
the Prefect UI and the record on an artifact's card."""

import difflib
import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..models import OUTPUTS, Model, Schedule, Wanted, make_model
from ..models.peers import Peers, Share
from ..models.pursuit import Coder, make_coder
from .documents import load_yaml, read_yaml
from .errors import JobError

NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?$"


class Job(BaseModel):
    """What every job on the engines has: where it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str = Field(
        "local", description="where it runs: local, ray, mpi", json_schema_extra={"enum": ["local", "ray", "mpi"]}
    )
    workers: int = Field(1, ge=1, le=100_000, description="processes that share the work (engine local has one)")
    threads: int | None = Field(
        None, ge=1, le=1024, description="compute threads per worker; by default the cores divided among the workers"
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="cpu, cuda (one GPU per worker), or auto: a GPU where there is one"
    )
    address: str | None = Field(
        None,
        description="address of a running Ray cluster (auto, host:port); by default one is started on this machine",
    )
    launcher: str | None = Field(
        None, description="command that starts MPI ranks; by default mpirun beside python or on the path"
    )
    restarts: int = Field(
        3,
        ge=0,
        le=1000,
        description="how often a group of workers that lost a member is started again from the last commit",
    )
    memory_gib: float | None = Field(
        None, gt=0, description="memory one worker may use, in GiB; by default an equal share of what is free"
    )
    module_path: str | None = Field(
        None, description="folder that holds a model of your own (for --model module:Class); by default the current one"
    )

    @property
    def label(self) -> str:
        """What logs and metrics call the work where it has no run id."""
        return type(self).__name__.removesuffix("Job").lower()

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        from .engines import check_engine

        return check_engine(engine)

    @model_validator(mode="after")
    def _one_local_worker(self) -> Self:
        if self.engine == "local" and self.workers > 1:
            raise JobError(
                f"workers={self.workers}: engine local is one process that uses all cores; choose --engine ray or mpi"
            )
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """The job that `values` describe.

        Raises:
            JobError: an unknown field (the nearest is suggested) or a value that does not fit, in one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as err:
            raise JobError(problem_of(cls, err)) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> dict[str, Any]:
        """The fields that a YAML file sets, unchecked (flags may still override them)."""
        try:
            loaded = read_yaml(path)
        except (OSError, ValueError) as err:
            raise JobError(f"job file {str(path)!r} cannot be read: {getattr(err, 'strerror', None) or err}") from err
        except yaml.YAMLError as err:
            raise JobError(f"job file {str(path)!r} is not YAML: {' '.join(str(err).split())}") from err
        if not isinstance(loaded, dict):
            raise JobError(
                f"job file {str(path)!r} must hold fields like 'data: patches.zarr', not a {type(loaded).__name__}"
            )
        return {str(k): v for k, v in loaded.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `parse(to_dict())` is the same job."""
        return self.model_dump(mode="json")


class Addresses(BaseModel):
    """Where a job's data lie and its artifacts are kept."""

    data: str = Field(min_length=1, description="URI of the data set: a path or s3://bucket/prefix")
    store: str = Field("./artifacts", min_length=1, description="URI of the artifact store")


class LearnJob(Job, Addresses):
    """Learn a dictionary from a data set and publish it as a version."""

    name: str = Field(
        "dictionary", pattern=NAME, description="name of the artifact that the dictionary becomes a version of"
    )
    model: str = Field(
        "bsc", min_length=1, description="a model's name (see `sparsefleet models`), or module:Class of your own"
    )
    atoms: int = Field(100, ge=1, le=2**31 - 1, description="atoms in the dictionary (H)")
    settings: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="the model's own settings, as in --set model.gamma=4"
    )
    init: str | None = Field(
        None, description="start values: NAME@VERSION of an artifact, or a file params.npz; by default from the data"
    )
    passes: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="passes over the data; by default the model's",
        json_schema_extra={"also": ["iterations"]},
    )
    batch_rows: int | None = Field(
        None, ge=1, le=2**31 - 1, description="rows handled at once (for models updated per batch: the batch size)"
    )
    schedule: dict[str, list[tuple[float, float]]] = Field(
        default_factory=dict[str, list[tuple[float, float]]],
        description="values that change along the run, as points [fraction, value]: schedule.T=[[0, 2], [0.7, 1]]",
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of the arithmetic on data")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of every random number of the run")
    starts: int = Field(
        1, ge=1, le=1000, description="learn from this many seeds and publish the result of highest free energy"
    )
    rows: int | None = Field(None, ge=1, description="use only the first rows of the data set")
    aliases: Annotated[list[str], Field(description="aliases that shall point at the new version")] = Field(
        default_factory=list[str]
    )
    licence: str | None = Field(None, description="licence of the dictionary, kept on its card")
    notes: str = Field("", description="free text, kept on the card")
    commit_seconds: float = Field(
        15.0, ge=0, description="commit the state of the run at most this often, in seconds (0: after every update)"
    )
    atom_groups: int = Field(
        1,
        ge=1,
        le=100_000,
        description="deal the atoms to so many groups of workers: for dictionaries too large for one (topk, …)",
    )
    report_seconds: float = Field(0.5, ge=0, description="report progress at most this often, in seconds")

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.atom_groups > 1 and self.engine == "local":
            raise JobError(
                f"atom_groups={self.atom_groups}: engine local is one process, which holds all atoms; "
                "choose --engine ray or mpi"
            )
        if self.workers % self.atom_groups:
            raise JobError(
                f"atom_groups={self.atom_groups} do not divide workers={self.workers}: groups are of one size"
            )
        return self

    @property
    def row_groups(self) -> int:
        """Groups of workers that hold all atoms together: they share the rows."""
        return self.workers // self.atom_groups

    @property
    def init_is_file(self) -> bool:
        """Whether start values come from a file, not from a version in the store."""
        return self.init is not None and self.init.endswith(".npz")

    def build_model(self) -> Model:
        """The configured model.

        Raises:
            ModelError: as `make_model`.
        """
        for taken in ("atoms", "dtype"):
            if taken in self.settings:
                raise JobError(
                    f"settings.{taken}: give {taken} as the job's own field --{taken}, not as a model setting"
                )
        return make_model(self.model, {"atoms": self.atoms, "dtype": self.dtype, **self.settings})

    def build_share(self, peers: Peers | None = None) -> Model:
        """The model as a worker with these peers learns it; without, as any worker does, for sizes.

        Raises:
            ModelError: its atoms cannot be dealt to `atom_groups`, or as `make_model`.
        """
        model = self.build_model()
        return model if self.atom_groups == 1 else model.sliced(peers or Share(0, self.atom_groups))

    def build_schedule(self, model: Model) -> Schedule:
        """The model's schedule with what this job overrides.

        Raises:
            JobError: a name that the model's schedule does not know.
            ModelError: values that the model's settings do not go with.
        """
        default = model.schedule()
        known = {*default.ramps, *model.ramp_names}
        for name in self.schedule:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known)) or 'none'}"
                raise JobError(f"schedule.{name}: model {self.model!r} has no such value; {hint}")
        own = {n: tuple((float(a), float(b)) for a, b in points) for n, points in self.schedule.items()}
        schedule = Schedule(
            passes=self.passes or default.passes,
            update_every=default.update_every,
            batch_rows=self.batch_rows or default.batch_rows,
            ramps={**default.ramps, **own},
        )
        model.check_schedule(schedule)
        return schedule

    def run_id(self, fingerprint: str, init_digest: str = "", source_digest: str = "") -> str:
        """Identity of the run: equal jobs on equal data continue one another, wherever and on however many workers."""
        identity = self.model_dump(mode="json", include=_IDENTITY)
        identity |= {"data": fingerprint, "init": init_digest, "source": source_digest}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


# What changes the result; engine, reporting and commit settings do not.
_IDENTITY = {"name", "model", "atoms", "settings", "passes", "batch_rows", "schedule", "dtype", "seed", "rows"}


class EncodeJob(Job, Addresses):
    """Compute sparse codes of a data set under a published dictionary."""

    dictionary: str = Field(
        min_length=1,
        description="the dictionary: NAME, NAME@VERSION or NAME@ALIAS; with a coder also a file .npy or .npz (W or D)",
    )
    out: str = Field(min_length=1, description="URI of the data set of codes to write")
    coder: str | None = Field(
        None, description="how codes are found (see `sparsefleet coders`); by default the model's own inference"
    )
    coder_settings: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="the coder's settings, as in --set coder.nonzeros=10"
    )
    keep: int | None = Field(
        None, ge=1, description="keep at most this many entries per row; by default what the model gives"
    )
    outputs: Annotated[
        list[str],
        Field(
            description="what to write beside the codes, separated by commas: marginals, map, top_states, "
            "reconstruction, log_likelihood, entropy"
        ),
    ] = Field(default_factory=lambda: ["mean"])
    top_states: int = Field(8, ge=1, le=1024, description="states listed per row by output top_states")
    missing: bool = Field(False, description="NaN entries of rows are missing values, which the reconstruction fills")
    sigma: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of the noise to assume, in the data's units; by default what was learned",
    )
    adaptive: int = Field(
        0,
        ge=0,
        le=64,
        description="raise h_prime and gamma by up to this much for rows whose most probable state has gamma atoms",
    )
    batch_rows: int = Field(8192, ge=1, description="rows handled at once")
    dtype: Literal["float32", "float64"] | None = Field(None, description="precision; by default the dictionary's")
    overwrite: bool = Field(False, description="replace an existing data set at the output")

    @field_validator("outputs", mode="before")
    @classmethod
    def _separated(cls, outputs: Any) -> Any:
        given = [outputs] if isinstance(outputs, str) else outputs
        texts = isinstance(given, (list, tuple)) and all(isinstance(o, str) for o in given)
        return [part.strip() for o in given for part in o.split(",")] if texts else given

    @field_validator("outputs")
    @classmethod
    def _known_outputs(cls, outputs: list[str]) -> list[str]:
        for name in outputs:
            if name not in OUTPUTS:
                near = difflib.get_close_matches(name, OUTPUTS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(OUTPUTS)}"
                raise JobError(f"outputs={name!r} is not known; {hint}")
        return [name for name in OUTPUTS if name in outputs or name == "mean"]

    @property
    def label(self) -> str:
        """The codes' name."""
        return self.out.rstrip("/").rpartition("/")[2]

    @property
    def wanted(self) -> Wanted:
        """What the model is asked for."""
        return Wanted(tuple(self.outputs), self.top_states, self.adaptive)

    @property
    def dictionary_is_file(self) -> bool:
        """Whether the dictionary is a file, not a name in the store."""
        return self.dictionary.endswith((".npy", ".npz"))

    def build_coder(self) -> Coder | None:
        """The configured coder; None for the model's own inference.

        Raises:
            JobError, ModelError: settings without a coder, a file without one, a coder with what it has no use for,
                or as `make_coder`.
        """
        if self.coder is not None:
            for name, given in {"sigma": self.sigma, "missing": self.missing or None}.items():
                if given is not None:
                    raise JobError(f"{name}={given}: only a model's own inference uses it, not coder {self.coder!r}")
            return make_coder(self.coder, self.coder_settings)
        if self.coder_settings:
            raise JobError(f"coder_settings={self.coder_settings}: say which coder they are for, as in --coder omp")
        if self.dictionary_is_file:
            raise JobError(
                f"dictionary={self.dictionary!r}: a file has no inference of its own; choose a coder, as in --coder omp"
            )
        return None


SHORT = {"annealing": ["settings", "annealing"], "iterations": ["passes"]}
"""What else users of such models call a field."""


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """`model.gamma=4` as (["settings", "gamma"], 4); values are read as YAML, where None is null as well.

    Raises:
        JobError: no '=' or an empty key.
    """
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise JobError(f"--set {text!r}: write it as KEY=VALUE, for example model.gamma=4")
    try:
        parsed = None if value.strip() == "None" else load_yaml(value)
    except yaml.YAMLError as err:
        raise JobError(f"--set {text!r}: {value!r} is not a YAML value") from err
    if len(path) > 1:
        path[0] = {"model": "settings", "coder": "coder_settings"}.get(path[0], path[0])
    return SHORT.get(".".join(path), path), parsed


def apply_assignments(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with each `--set KEY=VALUE` applied, nested keys separated by dots."""
    out = json.loads(json.dumps(values)) if values else {}
    for text in assignments:
        path, parsed = parse_assignment(text)
        at = out
        for part in path[:-1]:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise JobError(f"--set {text!r}: {part!r} holds a value, not a group of settings")
        at[path[-1]] = parsed
    return out


def problem_of(cls: type[BaseModel], err: ValidationError) -> str:
    """The first thing that keeps values from being a `cls`, in one line; near names are suggested."""
    first = err.errors()[0]
    where = ".".join(str(p) for p in first["loc"]) or cls.__name__
    where = where if where.isprintable() else repr(where)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), list(cls.model_fields), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(cls.model_fields)}"
        return f"unknown field {where!r}; {hint}"
    if first["type"] == "missing":
        return (
            f"{where} is needed ({cls.model_fields[where].description})"
            if where in cls.model_fields
            else f"{where} is needed"
        )
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return str(cause)
    value = first.get("input")
    shown = "NaN" if isinstance(value, float) and math.isnan(value) else repr(value)
    return f"{where}={shown[:80]}: {first['msg'][0].lower()}{first['msg'][1:]}"
