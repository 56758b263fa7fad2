"""A job class as command-line flags: the same object is flags, a YAML file, the form in the Prefect UI and the card."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..workers.job import Job, apply_assignments, problem_of
from .errors import PipelineError

J = TypeVar("J", bound=BaseModel)
Command = Callable[..., Any]


def job_flags(cls: type[BaseModel], *, skip: tuple[str, ...] = (), bare: Mapping[str, str] | None = None) -> Any:
    """A decorator that gives a command one option per field of `cls`, and --set, --job and --save-job.

    Fields that hold groups (the model's settings, the schedule) have no option of their own: --set reaches them.

    Args:
        cls: the job class; names, types, help and defaults are its fields'.
        skip: fields that the command takes in another way.
        bare: what an option means that is given without a value.
    """
    docs = field_docs(cls)
    fields = {n: f for n, f in sorted(cls.model_fields.items(), key=lambda item: _rank(cls, *item)) if n not in skip}
    options = [_option(n, f, f.description or docs.get(n, ""), (bare or {}).get(n)) for n, f in fields.items()]
    options = [o for o in options if o is not None]
    shared = [
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set any field, nested ones with dots: model.gamma=4, schedule.T=[[0,2],[0.7,1]]. May be repeated.",
        ),
        click.option(
            "--job", "job_file", type=click.Path(), help="Take the job from this YAML file; flags override it."
        ),
        click.option("--save-job", type=click.Path(), help="Write the job as YAML to this file and run nothing."),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed([*options, *shared]):
            command = option(command)
        return command

    return decorate


def read_job(cls: type[J], given: Mapping[str, Any], *, base: Mapping[str, Any] | None = None) -> J:
    """The job that a command's options describe: `base` first, then YAML, then flags, then --set.

    Args:
        cls: the job class.
        given: the options as click hands them over; those that were not given are None or ().
        base: fields that hold unless the user says otherwise.

    Raises:
        JobError, PipelineError: an unknown field or a value that does not fit.
    """
    values = dict(base or {}) | (Job.from_yaml(given["job_file"]) if given.get("job_file") else {})
    flags = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if k in cls.model_fields}
    values |= {k: v for k, v in flags.items() if v not in (None, [])}
    return parse_job(cls, apply_assignments(values, list(given.get("assignments") or ())))


def to_yaml(job: BaseModel) -> str:
    """The job as YAML that `--job` reads back; fields without a value are left out."""
    return yaml.safe_dump(job.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def save_job(job: BaseModel, path: str) -> None:
    """Write `job` to the file `path`."""
    Path(path).write_text(to_yaml(job), encoding="utf-8")


def parse_job(cls: type[J], values: Mapping[str, Any]) -> J:
    """The job that plain values describe.

    Raises:
        JobError, PipelineError: an unknown field or a value that does not fit, in one line.
    """
    if issubclass(cls, Job):
        return cls.parse(dict(values))
    try:
        return cls.model_validate(values)
    except ValidationError as err:
        raise PipelineError(problem_of(cls, err)) from None


def field_docs(cls: type) -> dict[str, str]:
    """The text below each field of a class, its bases included, in one line; {} where there is no source to read."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        lines = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(lines):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value.value if isinstance(text.value, ast.Constant) else None
                out[field.target.id] = " ".join(value.split()).rstrip(".") if isinstance(value, str) else ""
    return out


def settings_of(cls: type, *, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The fields of a dataclass as plain values, for tables: name, type, default and help."""
    docs = field_docs(cls)
    found: list[dict[str, Any]] = []
    for f in dataclasses.fields(cls):
        if f.name in without:
            continue
        if dataclasses.is_dataclass(f.default):
            found += [{**s, "name": f"{f.name}.{s['name']}"} for s in settings_of(type(f.default))]
            continue
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        default = None if f.default is dataclasses.MISSING else f.default
        found.append({"name": f.name, "type": kind, "default": default, "help": docs.get(f.name, "")})
    return found


def first_line(cls: type) -> str:
    """What a class says it is."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _rank(cls: type[BaseModel], name: str, field: FieldInfo) -> int:
    """Needed fields first, then a job's own, then those that it shares with others."""
    return 0 if field.is_required() else 1 if name in cls.__annotations__ else 2


def _option(name: str, field: FieldInfo, text: str, bare: str | None) -> Command | None:
    kind = _plain(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    also = [f"--{other}" for other in _extra(field, "also")]
    settings: dict[str, Any] = {"help": _sentence(field, text), "default": None}
    if get_origin(kind) is dict:
        return None
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", **settings)
    if get_origin(kind) is list:
        return click.option(flag, multiple=True, metavar="TEXT", help=settings["help"] + " (may be repeated)")
    if bare is not None:
        settings |= {"is_flag": False, "flag_value": bare}
    return click.option(flag, *also, name, type=_type(kind, field), **settings)


def _plain(annotation: Any) -> Any:
    """`X | None` and `Annotated[X, …]` as X."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _plain(inner[0]) if len(inner) == 1 else str
    return annotation


def _type(kind: Any, field: FieldInfo) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice([str(a) for a in get_args(kind)])
    if choices := _extra(field, "enum"):
        return click.Choice(choices)
    return {int: click.INT, float: click.FLOAT}.get(kind, click.STRING)


def _extra(field: FieldInfo, key: str) -> list[str]:
    """The words that a field's schema lists under `key`."""
    extra = field.json_schema_extra
    found = extra.get(key) if isinstance(extra, dict) else None
    return [str(word) for word in found] if isinstance(found, list) else []


def _sentence(field: FieldInfo, text: str) -> str:
    text = text if text.startswith("cpu,") else text[:1].upper() + text[1:]
    if field.is_required():
        return f"{text}  [required]"
    if field.default_factory is not None or field.default in (None, ""):
        return text
    return f"{text}  [default: {'yes' if field.default is True else 'no' if field.default is False else field.default}]"
