"""Handing a job to a Prefect work pool: the flow is registered as a deployment, the job becomes a run's parameters."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .connection import Api, client, need_api, use
from .errors import PipelineError
from .paths import absolute, make_importable
from .running import PROGRAMS, Program, run_name, tags_of

if TYPE_CHECKING:
    from uuid import UUID

    from pydantic import BaseModel


@dataclass(frozen=True)
class Submitted:
    """A flow run that waits for a worker."""

    id: str
    name: str
    pool: str
    url: str


def submit(program: Program, job: BaseModel, pool: str) -> Submitted:
    """Make a run of `program` with `job` for the workers of `pool`.

    Raises:
        PipelineError: no server, no such pool, or the server refuses the job.
        JobError, ModelError, StorageError: the job cannot be done.
    """
    api = need_api()
    # Workers may stand in another folder, or on another machine that sees the same paths.
    job = absolute(job)
    _check(program, job)
    deployment = register(program, pool, api)
    with client(api) as prefect:
        run = prefect.create_flow_run_from_deployment(
            deployment,
            parameters={"params": job.model_dump(mode="json")},
            name=run_name(program, job),
            tags=tags_of(job),
        )
    return Submitted(str(run.id), run.name, pool, f"{api.ui}/runs/flow-run/{run.id}")


def register(program: Program, pool: str, api: Api) -> UUID:
    """Create or update the deployment PROGRAM/POOL; returns its id.

    Raises:
        PipelineError: there is no such work pool.
    """
    with client(api) as prefect:
        from prefect.exceptions import ObjectNotFound
        from prefect.types.entrypoint import EntrypointType

        try:
            kind = prefect.read_work_pool(pool).type
        except ObjectNotFound:
            known = ", ".join(p.name for p in prefect.read_work_pools()) or "none"
            raise PipelineError(f"no work pool {pool!r} at {api.url}; it has: {known}") from None
        from . import flows

        # The module path, not the file: classes must be the same ones that the workers import.
        deployment: Any = getattr(flows, program).to_deployment(
            pool, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH
        )
        deployment.storage = _folder(kind)
        with contextlib.redirect_stdout(io.StringIO()):
            return deployment.apply()


def serve(limit: int) -> None:
    """Serve all flows from this process until it is interrupted; no work pool and no other worker are needed."""
    use(need_api(), quiet=False)
    from prefect import serve as serve_deployments
    from prefect.types.entrypoint import EntrypointType

    from . import flows

    made: list[Any] = [
        getattr(flows, p).to_deployment("served", entrypoint_type=EntrypointType.MODULE_PATH) for p in PROGRAMS
    ]
    serve_deployments(*made, limit=limit)


def _folder(pool_type: str) -> Any:
    """Where runs of a pool work: for processes on this machine here, so that relative addresses typed into the form
    mean this folder. (Without any such step, Prefect copies the worker's whole folder for every run.)"""
    from prefect.runner.storage import LocalStorage

    class WorkersOwn(LocalStorage):
        def to_pull_step(self) -> dict[str, Any]:
            return {"prefect.deployments.steps.set_working_directory": {"directory": "."}}

    return LocalStorage(os.getcwd()) if pool_type == "process" else WorkersOwn(".")


def _check(program: Program, job: Any) -> None:
    """Refuse here what the worker would refuse later; data may be out of reach from this machine."""
    if program == "learn":
        make_importable(job.module_path)
        job.build_schedule(job.build_model())
    elif program == "encode":
        job.build_coder()
