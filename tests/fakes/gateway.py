"""A gateway in memory, and plain HTTP to it and to the engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fakes.faults import Faults
from fakes.storage import FakeKeys
from fakes.target import FakeClock, FakeTarget, Process
from orchestrator.core.gateway_status import (
    BackendLoad,
    GatewayStatus,
    HeldLoad,
    Phase,
    Traffic,
    generation_of,
    is_gateway,
    listeners_of,
)
from orchestrator.core.keys import digest_of
from orchestrator.core.launch import InstanceState
from orchestrator.core.progress import Progress, silent
from orchestrator.core.routes import Route
from orchestrator.drivers.base import Reply
from orchestrator.errors import HostError

STEP_S = 0.1
CREDENTIAL = "what the gateway issues"
# What a gateway is started with for each site whose pages it lets in.
ORIGIN = "--origin="


class FakeGateway:
    """The admin side of the gateways among the instances of the fake targets; `in_flight` counts by backend, `held` is
    what waits by owner, as long as that is paused, `stuck` is
    the pid of a process that takes connections and answers nothing."""

    def __init__(self, targets: tuple[FakeTarget, ...], clock: FakeClock, faults: Faults, keys: FakeKeys) -> None:
        self.in_flight: dict[str, int] = {}
        self.held: dict[str, HeldLoad] = {}
        self._keys = keys
        self.stuck: int | None = None
        self._targets = targets
        self._clock = clock
        self._faults = faults

    def serving(self) -> str | None:
        with self._faults.call("gateway.serving"):
            return next((name for name, process in self._living() if process.phase is Phase.SERVING), None)

    def status(self) -> GatewayStatus | None:
        with self._faults.call("gateway.status"):
            process = self._process()
            return self._status(process) if process is not None else None

    def status_of(self, instance: str) -> GatewayStatus | None:
        with self._faults.call("gateway.status"):
            process = dict(self._living()).get(instance)
            return self._status(process) if process is not None else None

    def hand_over(self, old: str, new: str) -> None:
        with self._faults.call(f"gateway.hand_over {old} {new}"):
            living = dict(self._living())
            before, after = living.get(old), living.get(new)
            if before is None or before.phase is not Phase.SERVING:
                raise HostError("No gateway answers at its socket.", hint="`orch up` starts it.")
            if after is None or after.phase is not Phase.WAITING:
                raise HostError("The gateway did not take over: nobody waits.")
            after.routes, after.port, after.phase = before.routes, before.port, Phase.SERVING
            before.phase = Phase.LEAVING
            if not any(self.in_flight.values()):
                before.state, before.pid = InstanceState.STOPPED, None

    def set_routes(self, owner: str, routes: tuple[Route, ...]) -> None:
        with self._faults.call(f"gateway.set_routes {owner}"):
            process = self._answering()
            # What its protocol does not have, it does not keep.
            known = [route.known_to(process.protocol) for route in routes]
            process.routes = process.routes.replaced(owner, known)

    def remove_routes(self, owner: str) -> None:
        with self._faults.call(f"gateway.remove_routes {owner}"):
            process = self._answering()
            process.routes = process.routes.replaced(owner, ())

    def drain(self, backend: str, timeout_s: float, cancel: bool, progress: Progress = silent) -> int:
        with self._faults.call(f"gateway.drain {backend}"):
            self._answering()
            deadline = self._clock.now + timeout_s
            while left := self.in_flight.get(backend, 0):
                progress(f"requests in flight on {backend}", 0, left)
                if self._clock.now >= deadline:
                    if cancel:
                        self.in_flight[backend] = 0
                    return left
                self._clock.sleep(STEP_S)
            return 0

    def pause(self, owner: str, expires_s: float) -> None:
        with self._faults.call(f"gateway.pause {owner}"):
            self._answering().paused_until[owner] = self._clock.now + expires_s

    def resume(self, owner: str) -> None:
        with self._faults.call(f"gateway.resume {owner}"):
            self._answering().paused_until.pop(owner, None)

    def read_keys(self) -> str:
        with self._faults.call("gateway.read_keys"):
            process = self._answering()
            process.keys = self._keys.read()
            return process.keys.mark

    def keys_used(self) -> Mapping[str, str]:
        return {}

    def credential(self) -> str:
        with self._faults.call("gateway.credential"):
            self._answering()
            return CREDENTIAL

    def _status(self, process: Process) -> GatewayStatus:
        loads = {name: BackendLoad(count) for name, count in self.in_flight.items()}
        now = self._clock.now
        paused = {owner: until - now for owner, until in process.paused_until.items() if until > now}
        return GatewayStatus(
            pid=process.pid or 0,
            version=process.version,
            listeners=listeners_of(process.label),
            started_at="2026-01-01T00:00:00+00:00",
            routes=process.routes,
            traffic=Traffic(loads, holds={owner: self.held.get(owner, HeldLoad()) for owner in paused}),
            paused=paused,
            protocol=process.protocol,
            keys=bool(process.keys.keys),
            keys_mark=process.keys.mark,
            phase=process.phase,
            origins=tuple(word.removeprefix(ORIGIN) for word in process.launch.argv if word.startswith(ORIGIN)),
        )

    def _living(self) -> list[tuple[str, Process]]:
        """The gateways that answer, newest first."""
        found = gateway_processes(self._targets)
        if any(process.pid is not None and process.pid == self.stuck for _, process in found):
            raise HostError("The gateway does not answer.", hint="It may be stopped or stuck: restart it.")
        return [(name, process) for name, process in found if answers(process, self._clock)]

    def _process(self) -> Process | None:
        """The one that serves."""
        return next((process for _, process in self._living() if process.phase is Phase.SERVING), None)

    def _answering(self) -> Process:
        process = self._process()
        if process is None:
            raise HostError("No gateway answers at its socket.", hint="`orch up` starts it.")
        return process


def gateway_processes(targets: tuple[FakeTarget, ...]) -> list[tuple[str, Process]]:
    """The gateways, wherever they are, newest first."""
    names = [(target, name) for target in targets for name in target.processes if is_gateway(name)]
    found = [(name, process) for target, name in names if (process := target.now(name)) is not None]
    return sorted(found, key=lambda pair: generation_of(pair[0]), reverse=True)


def serving_gateway(targets: tuple[FakeTarget, ...]) -> Process | None:
    """The one that clients reach."""
    found = (process for _, process in gateway_processes(targets) if process.phase is Phase.SERVING)
    return next(found, None)


def answers(process: Process, clock: FakeClock) -> bool:
    """Whether it lives and is ready."""
    return process.state is InstanceState.RUNNING and clock.now >= process.ready_at and not process.fate.hangs


def answering(targets: tuple[FakeTarget, ...], host: str, port: int) -> Process | None:
    """The process that answers there, wherever it is."""
    found = (target.answering(host, port) for target in targets)
    return next((process for process in found if process is not None), None)


class FakeHttp:
    """Requests to the engines of the fake targets, and to the public side of their gateway."""

    def __init__(self, targets: tuple[FakeTarget, ...], faults: Faults) -> None:
        self._targets = targets
        self._faults = faults

    def get(self, url: str, timeout_s: float, key: str = "") -> Reply | None:
        parts = urlsplit(url)
        with self._faults.call(f"http.get {parts.path}"):
            process = self._at(url)
            if process is None or process.server is None:
                return None
            return process.server.get(parts.path) if key == process.secret else _unauthorized()

    def post(
        self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent, key: str = ""
    ) -> Reply | None:
        return self.send("POST", url, body, timeout_s, progress, key)

    def send(
        self,
        method: str,
        url: str,
        content: Mapping[str, Any] | Path | None,
        timeout_s: float,
        progress: Progress,
        key: str = "",
    ) -> Reply | None:
        path = urlsplit(url).path
        with self._faults.call(f"http.{method.lower()} {path}"):
            progress("waiting for an answer", 0, 0)
            process = self._at(url)
            if process is None:
                return None
            if process.server is not None:
                return process.server.send(method, path, content) if key == process.secret else _unauthorized()
            assert isinstance(content, Mapping), "the gateway is asked for chats only"
            return self._through_gateway(process, path, dict(content), key)

    def _at(self, url: str) -> Process | None:
        parts = urlsplit(url)
        return answering(self._targets, parts.hostname or "", parts.port or 0)

    def _through_gateway(self, gateway: Process, path: str, body: dict[str, Any], key: str) -> Reply:
        digests = [digest for one in gateway.keys.keys for digest, _ in one.good]
        if digests and key != CREDENTIAL and digest_of(key) not in digests:
            return _unauthorized()
        route = gateway.routes.find(str(body["model"]))
        if route is None:
            return Reply(404, None, json.dumps({"error": {"message": f"There is no model {body['model']}."}}))
        engine = self._at(route.backend.url)
        if engine is None or engine.server is None or engine.server.hangs:
            return Reply(502, None, f"{route.backend.instance} does not answer")
        return engine.server.post(path, {**body, "model": route.upstream or route.name, **route.patch})


class AlteredHttp(FakeHttp):
    """The same, of whose answers `alter` may make others: it is given what was asked, and the reply."""

    def __init__(
        self,
        targets: tuple[FakeTarget, ...],
        faults: Faults,
        alter: Callable[[Mapping[str, Any], Reply | None], Reply | None],
    ) -> None:
        super().__init__(targets, faults)
        self._alter = alter

    def send(
        self,
        method: str,
        url: str,
        content: Mapping[str, Any] | Path | None,
        timeout_s: float,
        progress: Progress,
        key: str = "",
    ) -> Reply | None:
        reply = super().send(method, url, content, timeout_s, progress, key)
        return self._alter(content if isinstance(content, Mapping) else {}, reply)


def _unauthorized() -> Reply:
    return Reply(401, None, json.dumps({"error": {"message": "An API key is needed."}}))
