"""What the contract suites run on: a fake driver or a real one, and how to disturb it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fakes.asks import CPU
from fakes.world import FakeWorld, gateway_launch

from orchestrator.core.launch import Instance, InstanceState, Launch
from orchestrator.core.routes import Route
from orchestrator.drivers.base import EngineHttp, Gateway, Target
from orchestrator.drivers.engine_http import EngineHttp as PlainHttp
from orchestrator.drivers.gateway_admin import GatewayAdmin
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError

Value = TypeVar("Value")
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def wait_until(condition: Callable[[], Value], timeout_s: float = 10.0) -> Value:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
    return value


@dataclass
class TargetBench:
    """A target; `launch` is something that stays up, `crash` ends an instance's process and nobody asked for that."""

    target: Target
    launch: Launch
    crash: Callable[[str], None]

    def seen(self, name: str = "one") -> Instance:
        return next(instance for instance in self.target.observe() if instance.name == name)

    def runs(self, name: str = "one", label: str = "label") -> Instance:
        """Ensured, and seen running."""
        self.target.ensure(name, self.launch, label)
        return wait_until(lambda: seen if (seen := self.seen(name)).state is InstanceState.RUNNING else None)


def fake_target() -> TargetBench:
    world = FakeWorld(CPU)
    return TargetBench(world.target, Launch(("sleeper",), stop_grace_s=2.0), world.target.crash)


def local_target(home: Path) -> LocalTarget:
    return LocalTarget(home / "processes", home / "logs", _no_environment, sys.executable)


def real_target(home: Path) -> TargetBench:
    def crash(name: str) -> None:
        pid = bench.seen(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    launch = Launch((sys.executable, "-S", "-c", SLEEPER), stop_grace_s=2.0)
    bench = TargetBench(local_target(home), launch, crash)
    return bench


@dataclass
class GatewayBench:
    """A gateway run by a target, at an address; `awake` lets time pass until it answers."""

    gateway: Gateway
    http: EngineHttp
    target: Target
    launch: Launch
    listen: str
    awake: Callable[[], object]
    close: Callable[[], object]

    def start(self) -> None:
        self.target.ensure("gateway", self.launch, self.listen)
        self.awake()

    @property
    def table(self) -> tuple[Route, ...]:
        status = self.gateway.status()
        assert status is not None
        return tuple(status.routes)


def fake_gateway(listen: str) -> GatewayBench:
    world = FakeWorld(CPU)
    launch = gateway_launch("local", listen)
    return GatewayBench(
        world.gateway,
        world.http,
        world.target,
        launch,
        listen,
        awake=lambda: world.clock.sleep(1.0),
        close=lambda: None,
    )


def real_gateway(home: Path, listen: str) -> GatewayBench:
    admin = GatewayAdmin(home / "admin.sock")
    argv = (
        *("{python}", "-m", "orchestrator.gateway", "--listen", listen),
        *("--admin", str(home / "admin.sock"), "--state", "{dir}/routes.json"),
    )
    launch = Launch(argv, stop_grace_s=5.0, port=int(listen.rpartition(":")[2]))
    http = PlainHttp()
    return GatewayBench(
        admin,
        http,
        local_target(home),
        launch,
        listen,
        awake=lambda: wait_until(lambda: admin.status()),
        # A command's client lives as long as its process; this process lives longer.
        close=http._client.close,
    )


def _no_environment(name: str) -> Path:
    raise HostError(f"Environment {name} is not ready.")
