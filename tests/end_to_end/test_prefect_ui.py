"""The Prefect side with a real server, a real worker and a real browser."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sparsefleet.pipelines import password
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.server import state_folder
from sparsefleet.storage import ArtifactStore, NotFound

from ..waiting import wait_for

pytestmark = pytest.mark.e2e
RUN = "from sparsefleet.pipelines.cli import main; main()"


def api(server: Any, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **password.header(password.read(state_folder()))}
    request = urllib.request.Request(f"{server.api}/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")


@pytest.fixture(scope="module")
def learned(prefect_server, cli, patches, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A dictionary learned by a flow run that a command started, and what the command said."""
    folder = tmp_path_factory.mktemp("learned")
    args = ["learn", "--data", patches, "--atoms", 16, "--passes", 30, "--name", "bars", "--json"]
    done = cli(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"watch it at {prefect_server.url}/runs/flow-run/" in done.stderr
    return folder, json.loads(done.stdout) | {"run_page": done.stderr.split("watch it at ")[1].split()[0]}


def test_the_run_page_shows_progress_metrics_and_the_atoms(learned, prefect_server, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def click(xpath: str) -> None:
        WebDriverWait(browser, 60).until(lambda b: [e for e in b.find_elements(By.XPATH, xpath) if e.is_displayed()])[
            0
        ].click()

    def text_with(wanted: str) -> str:
        WebDriverWait(browser, 60).until(lambda b: wanted in b.find_element(By.TAG_NAME, "body").text)
        return browser.find_element(By.TAG_NAME, "body").text

    def card(key: str) -> str:
        links = browser.find_elements(By.CSS_SELECTOR, "a[href*='/artifacts/artifact/']")
        return next(a.get_attribute("href") for a in links if key in a.text.split())

    _, said = learned
    log_in(browser, prefect_server)
    browser.get(said["run_page"])
    page = text_with("bars-bsc-H16-seed0")
    assert "Completed" in page
    click("//*[normalize-space(.)='Artifacts' and not(*)]")
    text_with("bars: bsc, 16 atoms")
    browser.save_screenshot(str(tmp_path / "run.png"))
    cards = {key: card(key) for key in ("progress", "metrics", "report")}

    browser.get(cards["progress"])
    assert "Progress: 100%" in text_with("Progress:")
    browser.get(cards["metrics"])
    table = text_with("free_energy")
    assert "30 Items" in table
    browser.save_screenshot(str(tmp_path / "metrics.png"))
    browser.get(cards["report"])
    report = text_with("Convergence")
    assert "bars@1" in report
    pictures = browser.find_elements(By.CSS_SELECTOR, "img[src^='data:image/png;base64']")
    sizes = [(p.get_property("naturalWidth"), p.get_property("naturalHeight")) for p in pictures]
    assert len(sizes) == 2
    assert min(min(size) for size in sizes) > 100
    assert browser.find_elements(By.XPATH, "//a[contains(., 'bars@1')]")
    browser.save_screenshot(str(tmp_path / "report.png"))


def test_a_run_has_four_artifacts_however_many_updates_it_had(learned, prefect_server):
    _, said = learned
    run = said["run_page"].rpartition("/")[2]
    found = api(prefect_server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    assert sorted(a["key"] for a in found) == ["metrics", "progress", "report", "time"]


def test_status_and_logs_know_the_run(learned, cli):
    folder, said = learned
    run = said["run_page"].rpartition("/")[2]
    by_prefix = json.loads(cli("status", run[:8], "--json", cwd=folder).stdout)
    assert by_prefix["state"] == "Completed"
    assert by_prefix["progress"] == 100
    assert by_prefix["parameters"]["params"]["atoms"] == 16
    assert {row["what"] for row in by_prefix["time"]} == {"compute", "feed", "communication", "commit"}
    assert sum(row["share in %"] for row in by_prefix["time"]) == pytest.approx(100, abs=2)
    listed = json.loads(cli("status", "--json", cwd=folder).stdout)
    assert run in [r["id"] for r in listed["flow_runs"]]
    assert listed["unfinished"] == []
    # The client hands log entries over in batches, some seconds after they were written.
    wait_for(lambda: "Finished in state Completed()" in cli("logs", "bars-bsc-H16-seed0", cwd=folder).stdout)


def test_a_bad_job_is_one_line_under_prefect_too(prefect_server, cli, patches, tmp_path):
    for submit in ([], ["--submit", "local"]):
        done = cli("learn", "--data", patches, "--set", "model.gama=1", *submit, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: model 'bsc' has no setting 'gama'")
        assert "Traceback" not in done.stderr
    nowhere = cli("learn", "--data", patches, "--submit", "nowhere", cwd=tmp_path)
    assert nowhere.returncode == 2
    assert re.search(r"it has: (.*, )?local\b", nowhere.stderr)


def test_the_form_of_a_deployment_is_the_job(prefect_server, cli, tmp_path):
    assert cli("deploy", cwd=tmp_path).returncode == 0
    found = {d["entrypoint"]: d for d in api(prefect_server, "deployments/filter", {})}
    schema = found["sparsefleet.pipelines.flows.learn"]["parameter_openapi_schema"]
    fields = schema["definitions"]["LearnJob"]["properties"]
    assert fields["engine"]["enum"] == ["local", "ray", "mpi"]
    assert "atoms in the dictionary" in fields["atoms"]["description"]
    run = {"parameters": {"params": {"data": "x", "atoms": 0}}}
    deployment = found["sparsefleet.pipelines.flows.learn"]["id"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        api(prefect_server, f"deployments/{deployment}/create_flow_run", run)
    assert refused.value.code in (409, 422)


def test_a_submitted_run_is_cancelled_and_resumed(prefect_server, cli, patches, tmp_path):
    relative = os.path.relpath(patches, tmp_path)
    args = ["--data", relative, "--atoms", 16, "--name", "sub", "--commit-seconds", 0, "--passes"]
    # Long enough that it cannot end by itself before it is cancelled.
    submitted = cli("learn", *args, 100_000, "--submit", "local", "--json", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    run = json.loads(submitted.stdout)["id"]
    store = tmp_path / "artifacts"
    wait_for(lambda: store.exists() and api(prefect_server, f"flow_runs/{run}")["state"]["type"] == "RUNNING")
    committed = wait_for(lambda: unfinished_so_far(store))
    assert committed[0].job["data"] == patches
    engine = wait_for(lambda: flow_processes(run))

    ended = cli("cancel", run[:8], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Cancelled" in ended.stdout
    psutil.wait_procs(engine, timeout=30)
    assert not any(p.is_running() for p in engine)
    assert unfinished(store)

    short = cli("learn", *args, 5, "--submit", "local", "--json", cwd=tmp_path)
    other = json.loads(short.stdout)["id"]
    wait_for(lambda: api(prefect_server, f"flow_runs/{other}")["state"]["type"] == "COMPLETED", 90)
    assert ArtifactStore(str(store)).resolve("sub").number == 1
    assert api(prefect_server, f"flow_runs/{other}")["name"] == "sub-bsc-H16-seed0"

    again = cli("resume", run[:8], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    wait_for(lambda: api(prefect_server, f"flow_runs/{run}")["run_count"] == 2)
    assert cli("cancel", run[:8], cwd=tmp_path).returncode == 0


def test_the_cancel_button_of_the_page_ends_the_workers(prefect_server, cli, patches, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def press(label: str) -> None:
        xpath = f"//button[normalize-space(.)='{label}']"
        WebDriverWait(browser, 60).until(lambda b: [e for e in b.find_elements(By.XPATH, xpath) if e.is_displayed()])[
            0
        ].click()

    args = ["learn", "--data", patches, "--atoms", 16, "--passes", 100_000, "--engine", "mpi", "--workers", 2]
    submitted = cli(*args, "--submit", "local", "--json", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    run = json.loads(submitted.stdout)["id"]
    wait_for(lambda: (tmp_path / "artifacts").exists() and unfinished_so_far(tmp_path / "artifacts"))
    family = flow_processes(run)
    log_in(browser, prefect_server)
    browser.get(f"{prefect_server.url}/runs/flow-run/{run}")
    press("Cancel")
    press("Confirm")
    _, left = psutil.wait_procs(family, timeout=45)
    assert not left
    wait_for(lambda: api(prefect_server, f"flow_runs/{run}")["state"]["type"] == "CANCELLED")
    assert ArtifactStore(str(tmp_path / "artifacts")).verify() == []


@pytest.mark.parametrize("engine", ["local", "mpi"])
def test_a_killed_flow_process_changes_nothing(prefect_server, cli, patches, tmp_path, engine):
    args = ["learn", "--data", patches, "--atoms", 16, "--passes", 120, "--commit-seconds", 0]
    undisturbed = cli(*args, "--no-flow", "--store", "undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr

    where = ["--engine", engine, "--workers", 1 if engine == "local" else 2]
    submitted = cli(*args, *where, "--submit", "local", "--json", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    run = json.loads(submitted.stdout)["id"]
    store = tmp_path / "artifacts"
    wait_for(lambda: store.exists() and any(r.step > 3 for r in unfinished_so_far(store)))
    family = flow_processes(run)
    flow = next(p for p in family if p.parent() not in family)
    flow.kill()
    wait_for(lambda: api(prefect_server, f"flow_runs/{run}")["state"]["type"] == "CRASHED")
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left
    assert 3 < unfinished(store)[0].step < 120

    again = cli("resume", run[:8], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    wait_for(lambda: api(prefect_server, f"flow_runs/{run}")["state"]["type"] == "COMPLETED", 90)
    wanted, found = (ArtifactStore(str(s)).load("dictionary").arrays["W"] for s in (tmp_path / "undisturbed", store))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert [v.number for v in ArtifactStore(str(store)).history("dictionary")] == [1]


def test_a_run_in_a_terminal_is_cancelled_from_elsewhere(prefect_server, cli, patches, tmp_path):
    job = ["--data", patches, "--atoms", "16", "--passes", "100000", "--name", "mine"]
    command = [sys.executable, "-c", RUN, "learn", *job]
    learning = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert learning.stderr is not None
    page = learning.stderr.readline()
    run = page.split("/")[-1].strip()
    wait_for(lambda: (tmp_path / "artifacts").exists())
    ended = cli("cancel", run, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    _, err = learning.communicate(timeout=60)
    assert learning.returncode == 1
    assert "cancelled" in err.splitlines()[-1]
    assert "Traceback" not in err

    stored = unfinished(tmp_path / "artifacts")
    job_of_run = stored[0].job | {"passes": stored[0].step}
    assert job_of_run["name"] == "mine"


def test_ingest_and_encode_are_flows_too(learned, prefect_server, cli, patches):
    folder, said = learned
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(200, 5)))
    ingested = cli("ingest", "arrays", "rows.npy", "--out", "rows.zarr", "--json", cwd=folder)
    assert json.loads(ingested.stdout)["rows"] == 200
    encoded = cli("encode", "--data", patches, "--dictionary", said["version"], "--out", "c.zarr", "--json", cwd=folder)
    assert json.loads(encoded.stdout)["rows"] == 3000
    runs = api(prefect_server, "flow_runs/filter", {})
    states = {r["name"]: r["state"]["type"] for r in runs}
    assert states["ingest-rows.zarr"] == states["encode-bars@1"] == "COMPLETED"


def test_up_is_idempotent_and_listens_on_this_machine_only(prefect_server, cli, tmp_path):
    again = cli("up", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["api"] == prefect_server.api
    ours = [psutil.Process(pid) for pid, _ in prefect_server.pids.values()]
    addresses = {c.laddr.ip for p in ours for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
    settings = api(prefect_server, "admin/settings")
    assert settings["server"]["analytics_enabled"] is False
    assert settings["home"] == prefect_server.home


def test_who_has_no_password_learns_nothing(prefect_server, cli, tmp_path):
    for header in ({}, password.header("sparsefleet:guess"), {"Authorization": "Basic ?"}):
        for path in ("flow_runs/filter", "work_pools/", "admin/settings"):
            request = urllib.request.Request(f"{prefect_server.api}/{path}", b"{}", header)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=20)
            assert refused.value.code == 401
    stranger = {"PREFECT_API_URL": prefect_server.api, "SPARSEFLEET_HOME": str(tmp_path)}
    for words in (["status"], ["ingest", "arrays", "rows.npy", "--out", "rows.zarr"]):
        np.save(tmp_path / "rows.npy", np.zeros((3, 2)))
        done = cli(*words, cwd=tmp_path, **stranger)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("asks for a password: set PREFECT_API_AUTH_STRING")
        assert "Traceback" not in done.stderr


def test_the_password_is_shown_to_its_owner_alone(prefect_server, cli, tmp_path):
    secret = password.read(state_folder())
    assert len(secret.partition(":")[2]) == 32
    assert state_folder().stat().st_mode & 0o777 == 0o700
    assert (state_folder() / "password").stat().st_mode & 0o777 == 0o600
    assert secret not in cli("up", cwd=tmp_path).stdout
    assert secret in cli("up", "--show-password", cwd=tmp_path).stdout
    for process in (psutil.Process(pid) for pid, _ in prefect_server.pids.values()):
        assert secret not in " ".join(process.cmdline())
    settings = json.dumps(api(prefect_server, "admin/settings"))
    assert secret not in settings
    assert "auth_string" in settings


def test_a_password_that_is_lost_or_no_password_is_said(tmp_path):
    with pytest.raises(PipelineError, match="cannot be read"):
        password.read(tmp_path)
    (tmp_path / "password").write_text("\n")
    with pytest.raises(PipelineError, match="holds no password"):
        password.read(tmp_path)
    (tmp_path / "password").unlink()
    password.ensure(tmp_path)
    (tmp_path / "password").chmod(0o644)
    first = password.read(tmp_path)
    password.ensure(tmp_path)
    assert password.read(tmp_path) == first
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600


def test_a_stale_state_file_ends_nobody(tmp_path, monkeypatch):
    from sparsefleet.pipelines import server

    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path))
    other = psutil.Process()
    pids = {"server": [other.pid, other.create_time() - 100]}
    (tmp_path / "server.json").write_text(json.dumps({"host": "127.0.0.1", "port": 1, "home": "x", "pids": pids}))
    assert server.running() is None
    assert server.down() is None
    assert other.is_running()


def log_in(browser: Any, server: Any) -> None:
    """Give the password at the first page, which shows nothing before."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    text = lambda b: b.find_element(By.TAG_NAME, "body").text  # noqa: E731
    browser.get(server.url)
    WebDriverWait(browser, 60).until(lambda b: "Login" in text(b))
    assert "Dashboard" not in text(browser)
    browser.find_element(By.CSS_SELECTOR, "input[type=password]").send_keys(password.read(state_folder()), "\n")
    WebDriverWait(browser, 60).until(lambda b: "Dashboard" in text(b))


def unfinished(store: Path) -> list[Any]:
    return ArtifactStore(str(store), create=False).runs()


def unfinished_so_far(store: Path) -> list[Any]:
    """As `unfinished`, of a store that somebody is still to make."""
    try:
        return unfinished(store)
    except NotFound:
        return []


def flow_processes(run: str) -> list[psutil.Process]:
    """The processes that work on a flow run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                found.append(process)
        except psutil.Error:
            continue
    return found
