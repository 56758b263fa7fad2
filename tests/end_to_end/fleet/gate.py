"""A gate in front of an HTTP server: it hands requests on, or is closed, slow, or answers some with an error."""

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


class Gate:
    """Listens at (host, port) and hands on to `behind`, a (host, port) as well, until `close`."""

    def __init__(self, host: str, port: int, behind: tuple[str, int]) -> None:
        self.behind = behind
        self.open = True
        """Closed, every connection is cut without an answer."""
        self.delay = 0.0
        """Seconds that every request waits before it is handed on."""
        self.failures = 0.0
        """The part of the requests that are answered with 503 Slow Down, half of them after they were done."""
        self.refused = 0
        """Requests that were cut or answered with 503 so far."""
        self._chance = random.Random(0)
        self._server = _Server((host, port), _Handler, bind_and_activate=True)
        self._server.gate = self
        threading.Thread(target=self._server.serve_forever, name="gate", daemon=True).start()

    def well(self) -> None:
        """No faults from now on."""
        self.open, self.delay, self.failures = True, 0.0, 0.0

    def fails(self) -> bool:
        """Whether the next request, or its answer, fails."""
        return self._chance.random() < self.failures / 2

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    gate: Gate

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _hand_on(self) -> None:
        gate = self.server.gate
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if gate.delay:
            time.sleep(gate.delay)
        if not gate.open:
            gate.refused += 1
            self.close_connection = True
            return
        if gate.fails():
            self._unavailable()
            return
        connection = http.client.HTTPConnection(*gate.behind, timeout=60)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, body, kept)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if gate.fails():  # done, but nobody is told
            self._unavailable()
            return
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        self._answer(answer.status, {**headers, **({"Content-Length": length} if length else {})}, content)

    def _unavailable(self) -> None:
        self.server.gate.refused += 1
        text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        self._answer(503, {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _hand_on

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
