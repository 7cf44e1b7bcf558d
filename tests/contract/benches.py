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

from fakes.asks import CPU, gateway_launch
from fakes.world import FakeWorld

from orchestrator.core.gateway_status import GATEWAY, Listener, gateway_label, is_gateway
from orchestrator.core.launch import LOCAL, Container, Instance, InstanceState, Launch
from orchestrator.core.routes import Route
from orchestrator.drivers.base import ApiKeys, EngineHttp, Gateway, Target
from orchestrator.drivers.docker.containers import DockerTarget
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import SOCKET, Endpoint
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.engine_http import EngineHttp as PlainHttp
from orchestrator.drivers.gateway_admin import Gateways, admin_socket, handover_socket
from orchestrator.drivers.keys import KeyFile
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError

Value = TypeVar("Value")
ABSENT = "vllm-cpu-1.0-00000000"
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def wait_until(condition: Callable[[], Value | None], timeout_s: float = 10.0) -> Value:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
    return value


@dataclass
class TargetBench:
    """A target; `launch` is something that stays up, `crash` ends an instance's process and nobody asked for that,
    `damage` makes its record unreadable. `cannot` is a launch whose program is not there, and what is said of it;
    `has_file` whether an instance has a file."""

    target: Target
    launch: Launch
    crash: Callable[[str], None]
    damage: Callable[[str], object]
    cannot: tuple[Launch, str]
    has_file: Callable[[str, str], bool]

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

    def has_file(name: str, filename: str) -> bool:
        return filename in world.target.files.get(name, {})

    return TargetBench(world.target, launch, world.target.crash, world.target.damage, cannot, has_file)


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
        lambda name, filename: target.file_path(name, filename).exists(),
    )
    return bench


def docker_target(home: Path, image: str) -> TargetBench:
    """On the machine's own daemon; `image` has a Python."""
    daemon = Daemon(Endpoint(os.environ.get("DOCKER_HOST", SOCKET)))
    images = DockerImages(daemon, home / "images.json", lambda: True)
    target = DockerTarget(daemon, images, home, home / "containers", home / "cache", home / "logs")
    target.attend()

    def crash(name: str) -> None:
        init = bench.seen(name).pid
        # The init has begun; the program that it is to have may not.
        children = wait_until(Path(f"/proc/{init}/task/{init}/children").read_text).split()
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
        lambda name, filename: (home / "containers" / name / "files" / filename).exists(),
    )
    return bench


@dataclass
class GatewayBench:
    """A gateway run by a target, at an address, with API keys; `awake` lets time pass until it answers."""

    gateway: Gateway
    http: EngineHttp
    target: Target
    launch: Callable[[str, str, tuple[Listener, ...], tuple[str, ...], tuple[str, ...], bool], Launch]
    listeners: tuple[Listener, ...]
    keys: ApiKeys
    awake: Callable[[], object]
    close: Callable[[], object]

    @property
    def listen(self) -> str:
        return self.listeners[0].address

    def start(self, instance: str = GATEWAY, take_over: bool = False) -> None:
        launch = self.launch(LOCAL, instance, self.listeners, (), (), take_over)
        self.target.ensure(instance, launch, gateway_label(self.listeners))
        self.awake()

    @property
    def table(self) -> tuple[Route, ...]:
        status = self.gateway.status()
        assert status is not None
        return tuple(status.routes)


def fake_gateway(listen: str) -> GatewayBench:
    world = FakeWorld(CPU)
    return GatewayBench(
        world.gateway,
        world.http,
        world.target,
        gateway_launch,
        (Listener(listen),),
        world.keys,
        awake=lambda: world.clock.sleep(1.0),
        close=lambda: None,
    )


def real_gateway(home: Path, listen: str) -> GatewayBench:
    gateways = Gateways(home)

    def launch(
        target: str,
        instance: str,
        listeners: tuple[Listener, ...],
        origins: tuple[str, ...],
        limits: tuple[str, ...],
        take_over: bool,
    ) -> Launch:
        (listener,) = listeners
        argv = ["{python}", "-m", "orchestrator.gateway", "--listen", listener.address]
        argv += ["--admin", str(admin_socket(home, instance)), "--state", "{dir}/routes.json"]
        argv += ["--take-over", str(handover_socket(home, instance))] if take_over else []
        argv += ["--key-file", str(home / "keys.json"), "--secrets", str(home / "secrets")]
        argv += [f"--origin={origin}" for origin in origins] + [f"--limit={limit}" for limit in limits]
        port = None if take_over else int(listener.address.rpartition(":")[2])
        return Launch(tuple(argv), stop_grace_s=5.0, port=port)

    return GatewayBench(
        gateways,
        PlainHttp(),
        local_target(home),
        launch,
        (Listener(listen),),
        KeyFile(home / "keys.json", home / "old"),
        awake=lambda: wait_until(lambda: all(map(gateways.status_of, bench_names(home)))),
        close=lambda: None,
    )


def bench_names(home: Path) -> list[str]:
    """The gateways that were started."""
    return [path.name for path in (home / "processes").iterdir() if is_gateway(path.name)]


def _no_environment(name: str) -> Path:
    raise HostError(f"Environment {name} is not ready.")
