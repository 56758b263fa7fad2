"""What Prometheus finds: the endpoint of a run's own process, Ray's exporter, JSON log lines of every worker."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.monitoring import meters, ports
from sparsefleet.workers import LearnJob, logs

COMMAND = [sys.executable, "-c", "from sparsefleet.pipelines.cli import main; main()"]
# How the pages of Prometheus are read without the machine's proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
e2e = pytest.mark.e2e


def scraped(address: str) -> dict[tuple[str, str, str, str], float]:
    """Values by (name, run, rank, work)."""
    from prometheus_client.parser import text_string_to_metric_families

    text = DIRECT.open(address, timeout=10).read().decode()
    return {
        (s.name, s.labels.get("run", ""), s.labels.get("rank", ""), s.labels.get("work", "")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if "sparsefleet" in s.name
    }


@pytest.mark.parametrize(("text", "found"), [("9464", [9464]), (" 9464-9466 ", [9464, 9465, 9466]), ("0", [0])])
def test_ports(text: str, found: list[int]) -> None:
    assert list(ports(text)) == found


@pytest.mark.parametrize("text", ["", "x", "-1", "70000", "20-10", "1-2-3", "127.0.0.1:80"])
def test_no_ports(text: str) -> None:
    with pytest.raises(PipelineError, match="give a port"):
        ports(text)


def test_off_where_nobody_asks_and_refused_where_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    job = LearnJob(data="x")
    monkeypatch.delenv("SPARSEFLEET_METRICS_PORT", raising=False)
    assert meters(job) is None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("SPARSEFLEET_METRICS_PORT", str(taken.getsockname()[1]))
        with pytest.raises(PipelineError, match="is taken"):
            meters(job)


@pytest.mark.parametrize("engine", ["local", pytest.param("mpi", marks=e2e)])
def test_a_run_is_scraped_and_logs_as_json(bars: str, tmp_path: Path, engine: str) -> None:
    """The command itself, in a process of its own: the endpoint is there while it runs, and every line is JSON."""
    workers = ["--engine", engine, *(["--workers", "2", "--threads", "1"] if engine != "local" else [])]
    asked = ["--log-format", "json", "--metrics-port", "0", "--no-flow", "--report-seconds", "0"]
    learn = ["learn", "--data", bars, "--atoms", "8", "--passes", "100000", "--commit-seconds", "0.3", *workers, *asked]
    environment = os.environ | {"SPARSEFLEET_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [*COMMAND, *learn], cwd=tmp_path, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said: list[dict[str, Any]] = []
    try:
        assert process.stderr is not None
        # The second commit: by then everything has been counted once.
        for line in process.stderr:
            said.append(json.loads(line))
            if [one.get("event") for one in said].count("commit") == 2:
                break
        address = next(m["message"] for m in said if "metrics at" in m["message"]).removeprefix("metrics at ")
        assert address.startswith("http://127.0.0.1:")
        run = next(m["run"] for m in said if m.get("event") == "start")
        found = scraped(address)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert found["sparsefleet_points_total", run, "0", ""] == 600 * found["sparsefleet_updates_total", run, "0", ""]
    assert found["sparsefleet_commits_total", run, "0", ""] >= 1
    assert found["sparsefleet_points_per_second", run, "0", ""] > 0
    works = {key[3] for key in found if key[0] == "sparsefleet_seconds_total"}
    assert {"compute", "commit"} <= works
    assert engine == "local" or "communication" in works
    ranks = {m["rank"] for m in said if m.get("event") == "start"}
    assert ranks == ({0} if engine == "local" else {0, 1})
    assert {m["run"] for m in said if "rank" in m} == {run}


@e2e
def test_ray_exports_every_worker(bars: str, tmp_path: Path) -> None:
    """In a process of its own: Ray reads its settings once."""
    script = f"""
import json, time, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
         _system_config={{"metrics_report_interval_ms": 500}})
from sparsefleet.workers import LearnJob, run
from tests_monitoring import scraped
job = LearnJob(data={bars!r}, atoms=8, passes=100_000, store={str(tmp_path / "store")!r}, engine="ray",
               workers=2, threads=1, commit_seconds=0.3, report_seconds=0.1)
node = ray.nodes()[0]
address = f"http://{{node['NodeManagerAddress']}}:{{node['MetricsExportPort']}}/metrics"
end = time.monotonic() + 60
going = run("learn", job)
for message in going:
    if message.kind != "step":
        continue
    found = scraped(address)
    names = {{key[0] for key in found}}
    ranks = {{key[2] for key in found if key[0] == "ray_sparsefleet_seconds_total"}}
    if ("ray_sparsefleet_commits_total" in names and ranks == {{"0", "1"}}) or time.monotonic() > end:
        break
    time.sleep(0.3)
going.close()
ray.shutdown()
print(json.dumps([message.run_id, [[*key, value] for key, value in found.items()]]))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0", logs.SETTING: "text"}
    (tmp_path / "tests_monitoring.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    run, values = json.loads(done.stdout.splitlines()[-1])
    found = {tuple(value[:4]): value[4] for value in values}
    assert found["ray_sparsefleet_points_total", run, "0", ""] >= 600
    assert found["ray_sparsefleet_commits_total", run, "0", ""] >= 1
    assert found["ray_sparsefleet_points_per_second", run, "0", ""] > 0
    for rank in ("0", "1"):
        assert found["ray_sparsefleet_seconds_total", run, rank, "communication"] > 0
        assert found["ray_sparsefleet_seconds_total", run, rank, "compute"] > 0
