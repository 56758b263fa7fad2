"""The audit of packages: clean, a finding, and a service that cannot be asked, with a server in the place of OSV."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import ROOT, tool

Answer = Callable[[str, int], object]
BAD = [{"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "bad", "affected": [
    {"package": {"name": "click", "ecosystem": "PyPI"},
     "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}]},
]}]  # fmt: skip


@pytest.fixture
def osv():
    """osv(answer): the address of a server; answer(name, how many were asked before) is its JSON, or an HTTP status."""
    servers = []

    def start(answer: Answer) -> str:
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
                said = answer(name, len(asked))
                asked.append(name)
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                if not isinstance(said, int):
                    self.wfile.write(json.dumps(said).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/query"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def audit(url: str) -> tuple[int, str]:
    tool("pip-audit")
    command = [sys.executable, str(ROOT / "deploy/audit.py"), "--osv-url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_nothing_is_known(osv) -> None:
    code, said = audit(osv(lambda name, before: {"vulns": BAD} if before == 0 else {}))
    assert code == 0
    assert int(re.fullmatch(r"audited: no vulnerabilities are known of (\d+) packages\n", said)[1]) > 100


def test_a_finding_fails(osv) -> None:
    code, said = audit(osv(lambda name, before: {"vulns": BAD} if before == 0 or name == "click" else {}))
    assert code == 1
    assert re.fullmatch(r"click \S+ is vulnerable: PYSEC-1, CVE-1; mended in 99\.1\n", said)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda name, before: 404, "HTTP status 404"),
        (lambda name, before: 503, "HTTP status 503"),
        (lambda name, before: {}, "it does not know what is known for years"),
        (lambda name, before: "hello", "it does not know what is known for years"),
        (lambda name, before: {"vulns": BAD} if before == 0 else 503, "HTTP status 503"),  # gone after the first answer
    ],
)
def test_a_service_that_cannot_be_asked_is_said_and_fails_nothing(osv, answer: Answer, reason: str) -> None:
    assert audit(osv(answer)) == (0, f"not audited: the vulnerability service cannot be reached ({reason})\n")


def test_nobody_there_is_said_and_fails_nothing() -> None:
    code, said = audit("http://127.0.0.1:9/v1/query")
    assert code == 0
    assert said.startswith("not audited: the vulnerability service cannot be reached (")
    assert said.count("\n") == 1


def test_a_failure_of_pip_audit_itself_is_not_hidden(osv) -> None:
    strange = {"vulns": [{"summary": "without an identifier"}]}
    code, said = audit(osv(lambda name, before: {"vulns": BAD} if name == "jinja2" else strange))
    assert code == 1
    assert said.startswith("error: pip-audit failed: ")


def test_something_else_that_listens_there_is_said(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=lambda: other.accept()[0].sendall(b"220 ready\r\n"), daemon=True).start()
        code, said = audit(f"http://127.0.0.1:{other.getsockname()[1]}/v1/query")
    assert code == 0
    assert said.startswith("not audited: ") and said.count("\n") == 1


def test_an_address_without_its_scheme_is_refused() -> None:
    command = [sys.executable, str(ROOT / "deploy/audit.py"), "--osv-url", "api.osv.dev"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "https://" in done.stderr) == (2, True)
