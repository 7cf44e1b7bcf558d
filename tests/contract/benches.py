"""What the contract suites run on: a fake driver or a real one, and how to disturb it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fakes.asks import CPU
from fakes.world import FakeWorld, gateway_launch

from orchestrator.core.launch import Container, Instance, InstanceState, Launch
from orchestrator.core.routes import Route
from orchestrator.drivers.base import EngineHttp, Gateway, Target
from orchestrator.drivers.docker.containers import DockerTarget
from orchestrator.drivers.docker.daemon import SOCKET, Daemon
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.engine_http import EngineHttp as PlainHttp
from orchestrator.drivers.gateway_admin import GatewayAdmin
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError

Value = TypeVar("Value")
ABSENT = "vllm-cpu-1.0-00000000"
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
    """A target; `launch` is something that stays up, `crash` ends an instance's process and nobody asked for that,
    `damage` makes its record unreadable. `cannot` is a launch whose program is not there, and what is said of it."""

    target: Target
    launch: Launch
    crash: Callable[[str], None]
    damage: Callable[[str], object]
    cannot: tuple[Launch, str]

    def seen(self, name: str = "one") -> Instance:
        return next(instance for instance in self.target.observe() if instance.name == name)

    def runs(self, name: str = "one", label: str = "label") -> Instance:
        """Ensured, and seen running."""
        self.target.ensure(name, self.launch, label)
        return wait_until(lambda: seen if (seen := self.seen(name)).state is InstanceState.RUNNING else None)


def fake_target() -> TargetBench:
    world = FakeWorld(CPU)
    launch = Launch(("sleeper",), stop_grace_s=2.0)
    cannot = (replace(launch, environment=ABSENT), "is not ready")
    return TargetBench(world.target, launch, world.target.crash, world.target.damage, cannot)


def local_target(home: Path) -> LocalTarget:
    return LocalTarget(home / "processes", home / "logs", _no_environment, sys.executable)


def real_target(home: Path) -> TargetBench:
    def crash(name: str) -> None:
        pid = bench.seen(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    target = local_target(home)
    launch = Launch((sys.executable, "-S", "-c", SLEEPER), stop_grace_s=2.0)
    bench = TargetBench(
        target,
        launch,
        crash,
        lambda name: (target.file_path(name, "").parent / "spec.json").write_text("{"),
        (replace(launch, environment=ABSENT), "is not ready"),
    )
    return bench


def docker_target(home: Path, image: str) -> TargetBench:
    """On the machine's own daemon; `image` has a Python."""
    daemon = Daemon(os.environ.get("DOCKER_HOST", SOCKET))
    images = DockerImages(daemon, home / "images.json", lambda: True)
    target = DockerTarget(daemon, images, home, home / "containers", home / "cache", home / "logs")
    target.attend()

    def crash(name: str) -> None:
        init = bench.seen(name).pid
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    launch = Launch(("{python}", "-S", "-c", SLEEPER), stop_grace_s=2.0, container=Container(image))
    absent = replace(launch, container=Container(f"sha256:{'0' * 64}"))
    damage = home / "containers"
    bench = TargetBench(
        target,
        launch,
        crash,
        lambda name: (damage / name / "record.json").write_text("{"),
        (absent, "is not here"),
    )
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
