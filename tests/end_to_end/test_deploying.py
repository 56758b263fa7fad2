"""deploy/prefect.yaml on a real server: the work pools as its pages make them, then `prefect deploy --all`."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sparsefleet.pipelines import password, server
from sparsefleet.pipelines.running import PROGRAMS

pytestmark = pytest.mark.e2e
DEPLOY = Path(__file__).parents[2] / "deploy"


def asked(local: server.Local, path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", **password.header(password.read(server.state_folder()))}
    request = urllib.request.Request(f"{local.api}/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_prefect_deploys_all_flows_to_all_kinds_of_pool(prefect_server):
    kinds = {"process": "process", "kubernetes": "kubernetes", "slurm": "process"}
    for pool, kind in kinds.items():
        template = DEPLOY / pool / "work-pool.json"
        given = {"base_job_template": json.loads(template.read_text())} if template.exists() else {}
        made = asked(prefect_server, "work_pools/", {"name": pool, "type": kind, **given})
        assert made["type"] == kind
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = os.environ | server.client_environment(prefect_server)
    done = subprocess.run(command, cwd=DEPLOY, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [d for d in asked(prefect_server, "deployments/filter", {}) if d["name"] in kinds]
    assert {(d["name"], d["entrypoint"]) for d in found} == {
        (pool, f"sparsefleet.pipelines.flows.{program}") for pool in kinds for program in PROGRAMS
    }
    assert {(d["name"], d["work_pool_name"]) for d in found} == {(pool, pool) for pool in kinds}
    learning = next(d for d in found if d["name"] == "slurm" and d["entrypoint"].endswith(".learn"))
    assert learning["parameter_openapi_schema"]["definitions"]["LearnJob"]["properties"]["atoms"]
    assert learning["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    assert learning["concurrency_options"]["collision_strategy"] == "ENQUEUE"
