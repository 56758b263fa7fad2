"""What is in deploy/ by the tools and schemas of those who will read it."""

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, tool

DEPLOY = ROOT / "deploy"
SCRIPTS = [*sorted(DEPLOY.glob("slurm/*.s[hb]*")), DEPLOY / "secrets.sh"]
NAMES = ("POSTGRES_PASSWORD", "PREFECT_AUTH", "RAY_AUTH_TOKEN", "S3_ACCESS_KEY", "S3_SECRET_KEY")


def manifests(kind: str | None = None) -> Iterator[dict[str, Any]]:
    for path in sorted(DEPLOY.glob("kubernetes/*.yaml")):
        yield from (m for m in yaml.safe_load_all(path.read_text()) if kind in (None, m["kind"]))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, wherever it stands, with the name of what it belongs to."""

    def below(name: str, found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(found, dict):
            if "containers" in found:
                yield name, found
            for value in found.values():
                yield from below(name, value)
        elif isinstance(found, list):
            for value in found:
                yield from below(name, value)

    for manifest in manifests():
        yield from below(f"{manifest['kind']} {manifest['metadata'].get('name', '')}", manifest)
    yield from below("work pool", json.loads((DEPLOY / "kubernetes" / "work-pool.json").read_text()))


def checked(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = checked([tool("hadolint"), "deploy/Dockerfile"])
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_small_and_nobody_is_root_in_it():
    text = (DEPLOY / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", last, re.M) == ["1000"]
    assert "g++" not in last
    assert "COPY" not in last
    rooms = set(re.findall(r"^COPY (\w+) \1$", text, re.M))
    assert rooms == {"sparsefleet", "models", "storage", "workers", "pipelines"}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert all(f"\n!{room}\n" in ignored for room in rooms)


def test_shellcheck_finds_nothing_in_the_scripts():
    done = checked([tool("shellcheck"), "--external-sources", *map(str, SCRIPTS)])
    assert (done.returncode, done.stdout) == (0, "")


def test_docker_compose_reads_the_compose_file(tmp_path: Path):
    (tmp_path / "none").touch()
    command = [tool("docker-compose"), "--env-file", str(tmp_path / "none"), "-f", "deploy/compose.yaml", "config"]
    told = checked(command, **dict.fromkeys(NAMES, "planted"))
    assert told.returncode == 0, told.stderr
    assert set(yaml.safe_load(told.stdout)["services"]) >= {
        "database",
        "prefect",
        "s3",
        "ray-head",
        "ray-worker",
        "worker",
    }
    refused = checked(command)
    assert refused.returncode != 0
    assert "run deploy/secrets.sh first" in refused.stderr


def test_compose_publishes_on_loopback_only_and_writes_no_secret_down():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name, service in services.items():
        for key, value in service["environment"].items() if "environment" in service else ():
            if re.search("PASSWORD|SECRET|TOKEN|AUTH_STRING|CONNECTION_URL|KEY", key):
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {key}"
        assert not any("$" in str(word) and "RAY_CPUS" not in str(word) for word in service.get("command", ()))
        assert ":latest" not in service["image"]


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path):
    script = tmp_path / "secrets.sh"
    script.write_bytes((DEPLOY / "secrets.sh").read_bytes())
    assert checked(["bash", str(script)]).returncode == 0
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    values = dict(line.split("=", 1) for line in made.read_text().splitlines())
    assert set(values) == set(NAMES)
    assert all(len(value) >= 32 for value in values.values())
    said = checked(["bash", str(script)])
    assert "there already" in said.stdout
    assert dict(line.split("=", 1) for line in made.read_text().splitlines()) == values


def test_kubernetes_knows_every_field():
    kubernetes = pytest.importorskip("kubernetes_validate")
    seen = set()
    for manifest in manifests():
        seen.add(manifest["kind"])
        if manifest["apiVersion"] != "ray.io/v1":
            kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)
    assert seen >= {"Deployment", "Service", "Role", "RoleBinding", "ServiceAccount", "NetworkPolicy"}
    for name, spec in pods():
        if name == "work pool":
            filled = {"name": "prefect-job", "image": "x", "args": [], "env": []}
            resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
            spec = spec | {"containers": [spec["containers"][0] | filled | {"resources": resources}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)


def test_kuberay_knows_every_field():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(__file__).with_name("kuberay.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for kind in ("RayCluster", "RayJob"):
        (manifest,) = manifests(kind)
        assert list(validator.iter_errors(manifest)) == []
        wrong = copy.deepcopy(manifest)
        wrong["spec"].get("rayClusterSpec", wrong["spec"])["workerGroups"] = []
        assert list(validator.iter_errors(wrong))


def test_pods_run_as_nobody_and_read_secrets_from_secrets():
    found = list(pods())
    assert len(found) == 8
    for name, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            for variable in container["env"] if isinstance(container.get("env"), list) else ():
                if re.search("PASSWORD|KEY$|TOKEN|AUTH_STRING$|CONNECTION_URL", variable["name"]):
                    assert "secretKeyRef" in variable.get("valueFrom", {}) or variable["value"] == "auth", name


def test_the_ray_cluster_grows_from_nothing_and_has_gpus():
    (cluster,) = manifests("RayCluster")
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu = {g["groupName"]: g for g in spec["workerGroupSpecs"]}["gpu"]
    assert gpu["minReplicas"] == 0
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_deploy_knows_the_versions_that_are_tested():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-dev.txt").read_text(), re.M))
    for manifest in manifests():
        spec = manifest.get("spec", {})
        for cluster in (spec, spec.get("rayClusterSpec", {})):
            assert cluster.get("rayVersion", pinned["ray"]) == pinned["ray"]
