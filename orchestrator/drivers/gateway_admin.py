"""The gateway's admin sockets, from the CLI's side."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from orchestrator.core.gateway_status import GATEWAY, GatewayStatus, Phase, generation_of, is_gateway
from orchestrator.core.progress import Progress, silent
from orchestrator.core.routes import Route
from orchestrator.errors import HostError, PlanRefused, why

# How long the gateway may take over an answer, beyond the time that it was told to wait.
ANSWER_S = 10.0
# What it says of itself is in memory: one that takes longer hangs.
STATUS_S = 3.0
# A drain is asked for in slices, so that an interrupt is noticed between them.
SLICE_S = 0.5
AGAIN_S = 0.1
# The other gateway reads the table, and writes it to disk.
HANDOVER_S = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("gateway", timeout=timeout)
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout)
        self.sock.connect(os.fspath(self._path))


def admin_socket(directory: Path, instance: str) -> Path:
    """Where a gateway is told things."""
    return directory / f"{instance}.sock"


def handover_socket(directory: Path, instance: str) -> Path:
    """Where a gateway waits to be given the sockets of another."""
    return directory / f"{instance}.take"


class Gateways:
    """The gateways of one data directory: their admin sockets lie in `directory`, by their instances' names.

    One of them serves, and every verb is asked of it; there are others only while one replaces another.
    """

    def __init__(self, directory: Path, patience_s: float = 0.0) -> None:
        self.directory = directory
        self._patience_s = patience_s

    def serving(self) -> str | None:
        """The name of the gateway that serves; None when none answers. Raises HostError for one that hangs."""
        names = self._names()
        if len(names) == 1:
            return names[0] if self.status_of(names[0]) is not None else None
        hangs: HostError | None = None
        for name in names:
            try:
                status = self.status_of(name)
            except HostError as error:
                hangs = error
                continue
            if status is not None and status.phase is Phase.SERVING:
                return name
        if hangs is not None:
            raise hangs
        return None

    def status_of(self, instance: str) -> GatewayStatus | None:
        """What one of them says of itself; None when nothing answers."""
        return GatewayAdmin(admin_socket(self.directory, instance)).status()

    def hand_over(self, old: str, new: str) -> None:
        """Have a gateway give its listening sockets and its table to the one that waits for them."""
        GatewayAdmin(admin_socket(self.directory, old)).hand_over(handover_socket(self.directory, new))

    def status(self) -> GatewayStatus | None:
        """What the gateway that serves says of itself; None when nothing answers."""
        return self._current(0.0).status()

    def set_routes(self, owner: str, routes: Iterable[Route]) -> None:
        """See GatewayAdmin."""
        self._current().set_routes(owner, routes)

    def remove_routes(self, owner: str) -> None:
        """See GatewayAdmin."""
        self._current().remove_routes(owner)

    def drain(self, backend: str, timeout_s: float, cancel: bool, progress: Progress = silent) -> int:
        """See GatewayAdmin."""
        return self._current().drain(backend, timeout_s, cancel, progress)

    def pause(self, owner: str, expires_s: float) -> None:
        """See GatewayAdmin."""
        self._current().pause(owner, expires_s)

    def resume(self, owner: str) -> None:
        """See GatewayAdmin."""
        self._current().resume(owner)

    def read_keys(self) -> str:
        """See GatewayAdmin."""
        return self._current().read_keys()

    def keys_used(self) -> Mapping[str, str]:
        """See GatewayAdmin."""
        return self._current(0.0).keys_used()

    def credential(self) -> str:
        """See GatewayAdmin."""
        return self._current().credential()

    def _names(self) -> list[str]:
        """Newest first."""
        found = (path.stem for path in self.directory.glob("*.sock"))
        return sorted(filter(is_gateway, found), key=generation_of, reverse=True)

    def _current(self, patience_s: float | None = None) -> GatewayAdmin:
        names = self._names()
        name = (self.serving() if len(names) > 1 else None) or (names or [GATEWAY])[0]
        return GatewayAdmin(admin_socket(self.directory, name), self._patience_s if patience_s is None else patience_s)


class GatewayAdmin:
    """The gateway behind one admin socket. Every call is one connection; nothing is kept in between. One that is not
    there is waited for, so long: what keeps it running may just be starting it again.

    Every method raises HostError when the gateway is not there, does not answer in time, or cannot do it
    (`status` excepted: no gateway is an answer there).
    """

    def __init__(self, socket: Path, patience_s: float = 0.0) -> None:
        self.socket = socket
        self._patience_s = patience_s

    def status(self) -> GatewayStatus | None:
        """What the gateway says of itself; None when nothing answers at the socket."""
        try:
            value = self._exchange("GET", "/status", None, STATUS_S)
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return GatewayStatus.from_json(value)
        except ValueError as error:
            raise HostError(
                "The running gateway speaks another version of the admin protocol.",
                hint="Restart the gateway with this version of orch.",
                detail=str(error),
            ) from error

    def set_routes(self, owner: str, routes: Iterable[Route]) -> None:
        """Replace all routes of `owner` at once; on disk when this returns.

        Raises PlanRefused when a name is another owner's; nothing has changed then.
        """
        self._call("PUT", f"/routes/{quote(owner, safe='')}", [route.to_json() for route in routes])

    def remove_routes(self, owner: str) -> None:
        """Remove all routes of `owner`; none is no error."""
        self._call("DELETE", f"/routes/{quote(owner, safe='')}")

    def drain(self, backend: str, timeout_s: float, cancel: bool, progress: Progress = silent) -> int:
        """Wait until nothing is in flight on `backend`; returns 0, or how many requests were left at the deadline.

        With `cancel` those left were cut. Whatever `progress` raises ends the wait; nothing is cut then.
        """
        deadline = time.monotonic() + timeout_s
        left = most = self._drain_slice(backend, 0, False)
        while left:
            most = max(most, left)
            progress(f"requests in flight on {backend}", most - left, most)
            rest = deadline - time.monotonic()
            if rest <= 0:
                return self._drain_slice(backend, 0, cancel)
            left = self._drain_slice(backend, min(rest, SLICE_S), False)
        return 0

    def pause(self, owner: str, expires_s: float) -> None:
        """Hold new requests for the routes of `owner`, for at most `expires_s` (up to an hour)."""
        self._call("POST", "/pause", {"owner": owner, "expires_s": expires_s})

    def resume(self, owner: str) -> None:
        """Let the held requests of `owner` go on; no pause is no error."""
        self._call("POST", "/resume", {"owner": owner})

    def hand_over(self, to: Path) -> None:
        """Have it give its listening sockets and its table to the gateway that waits at the unix socket `to`."""
        self._call("POST", "/hand-over", {"to": os.fspath(to)}, HANDOVER_S)

    def read_keys(self) -> str:
        """Have it read its key file again; the mark of what is in force then."""
        return self._text("/keys/read", "mark")

    def keys_used(self) -> Mapping[str, str]:
        """When each key was used last since it started, by digest: UTC, ISO 8601."""
        return {digest: str(at) for digest, at in self._call("GET", "/keys/used").items()}

    def credential(self) -> str:
        """What opens its front door for a while, like an API key."""
        return self._text("/credential", "credential")

    def _text(self, path: str, what: str) -> str:
        value = self._call("POST", path, {}).get(what)
        if not isinstance(value, str):
            raise HostError("The gateway's answer is not what was asked for.", detail=f"no {what}")
        return value

    def _drain_slice(self, backend: str, seconds: float, cancel: bool) -> int:
        value = self._call("POST", "/drain", {"backend": backend, "timeout_s": seconds, "cancel": cancel}, seconds)
        left = value.get("left")
        if not isinstance(left, int):
            raise HostError(f"The gateway did not say what is left in flight on {backend}.", detail=repr(value))
        return left

    def _call(self, verb: str, path: str, body: object = None, wait_s: float = 0) -> Mapping[str, object]:
        try:
            value = self._patient(verb, path, body, wait_s + ANSWER_S)
        except (FileNotFoundError, ConnectionError) as error:
            raise HostError(
                f"No gateway answers at {self.socket}.", hint="`orch up` starts it.", detail=str(error)
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        if not isinstance(value, dict):
            raise HostError("The gateway's answer is not what was asked for.", detail=repr(value)[:500])
        return value

    def _patient(self, verb: str, path: str, body: object, timeout: float) -> object:
        """The exchange, tried again as long as nobody is there and patience lasts."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._exchange(verb, path, body, timeout)
            except (FileNotFoundError, ConnectionError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(AGAIN_S)

    def _unusable(self, error: OSError) -> HostError:
        if isinstance(error, TimeoutError):
            return HostError(
                f"The gateway at {self.socket} does not answer.", hint="It may be stopped or stuck: restart it."
            )
        return HostError(f"Cannot use the gateway's socket {self.socket}: {why(error)}.")

    def _exchange(self, verb: str, path: str, body: object, timeout: float) -> object:
        """The JSON of the answer; raises OSError for the socket, PlanRefused or HostError for what the gateway says."""
        data = None if body is None else json.dumps(body).encode()
        with contextlib.closing(_UnixConnection(self.socket, timeout)) as connection:
            try:
                connection.request(verb, path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                status, text = response.status, response.read()
            except http.client.HTTPException as error:
                if isinstance(error, OSError):
                    raise
                raise ConnectionResetError("the answer broke off") from error
        try:
            value: object = json.loads(text)
        except ValueError as error:
            raise HostError(f"What answers at {self.socket} is not the gateway.", detail=repr(text[:500])) from error
        if status >= 400:
            raise _said(status, value)
        return value


def _said(status: int, value: object) -> HostError | PlanRefused:
    error = value.get("error") if isinstance(value, dict) else None
    fields = error if isinstance(error, dict) else {}
    message = str(fields.get("message") or f"The gateway answered {status}.")
    kind = PlanRefused if status == 409 else HostError
    return kind(message, hint=str(fields.get("hint", "")))
