"""A gateway process and its clients."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from upstream import Upstream

from orchestrator.core.gateway_status import GatewayStatus
from orchestrator.core.keys import ApiKey, KeyRing, digest_of
from orchestrator.core.routes import Backend, Route
from orchestrator.drivers.gateway_admin import GatewayAdmin


def wait_until(condition: Callable[[], object], timeout: float = 5) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


def key_ring(*keys: str, **changes: str) -> str:
    """What `orch keys` would write of these, called key-1 and so on."""
    made = (
        ApiKey(f"key-{n}", digest_of(key), "2026-01-31T12:00:00Z", **changes) for n, key in enumerate(keys, start=1)
    )
    return KeyRing(tuple(made)).to_text()


def write_keys(path: Path, content: str, mode: int = 0o600) -> None:
    """A key file with this in it."""
    path.unlink(missing_ok=True)
    path.touch(mode)
    path.chmod(mode)
    path.write_text(content)


class Gateway:
    """One gateway process and its client."""

    def __init__(self, home: Path) -> None:
        self.socket = home / "gateway.sock"
        self.state = home / "routes.json"
        self.log = home / "log"
        self.admin = GatewayAdmin(self.socket)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, listen: str = "127.0.0.1:0", by: tuple[str, ...] = ()) -> None:
        """Start, by the program `by` if there is one, and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*by, *self.command(listen, *more)], stderr=log, stdout=log)
        wait_until(lambda: self.process.poll() is not None or self.admin.status() is not None, 20)
        assert self.process.poll() is None, self.log.read_text()
        self.listen = self.status().listen
        self.port = int(self.listen.rpartition(":")[2])

    def command(self, listen: str, *more: str) -> list[str]:
        files = ["--admin", str(self.socket), "--state", str(self.state)]
        return [sys.executable, "-m", "orchestrator.gateway", "--listen", listen, *files, *more]

    def status(self) -> GatewayStatus:
        status = self.admin.status()
        assert status is not None
        return status

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self,
        path: str = "/v1/chat/completions",
        body: object = None,
        verb: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on its own connection: status, headers (lower case), body. A dict is sent as JSON."""
        connection = self.connect()
        try:
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(verb, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            head = {key.lower(): value for key, value in response.getheaders()}
            return response.status, head, response.read()
        finally:
            connection.close()

    def route(self, name: str, engine: Upstream, url: str = "", **more: object) -> Route:
        """A route of owner "one" to an engine, at another `url` than its own if there is one."""
        return Route(**{"name": name, "owner": "one", "backends": (Backend(engine.name, url or engine.url),), **more})


class Stream:
    """An open stream of one client."""

    def __init__(self, gateway: Gateway, headers: dict[str, str] | None = None, **body: object) -> None:
        self.connection = gateway.connect()
        self.connection.request("POST", "/v1/chat/completions", json.dumps({"stream": True, **body}), headers or {})
        self.response: http.client.HTTPResponse | None = None

    def event(self) -> str:
        """The next event's data, "" at the end of the stream."""
        if self.response is None:
            self.response = self.connection.getresponse()
        line = self.response.readline()
        while line == b"\n":
            line = self.response.readline()
        return line.decode().removeprefix("data: ").rstrip("\n")

    def rest(self) -> list[str]:
        """All events to the clean end of the body; raises IncompleteRead when it is cut."""
        events = []
        while event := self.event():
            events.append(event)
        return events

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        self.connection.close()
