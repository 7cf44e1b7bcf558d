"""Every driver twice: the fake one, and the real one with real processes and files."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import GatewayBench, TargetBench, docker_target, fake_gateway, fake_target, real_gateway, real_target
from docker_orch import made_images
from fakes.asks import CPU
from fakes.world import FakeWorld

from orchestrator.artifacts.store import Store as DiskStore
from orchestrator.core.progress import silent
from orchestrator.drivers.base import ApiKeys, Records, Store
from orchestrator.drivers.keys import KeyFile
from orchestrator.drivers.records import Records as DiskRecords
from orchestrator.engines.settings import read_settings

BOTH = ("fake", "real")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short path: a unix socket's may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="ct"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def python_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container image that has a Python and nothing else to do."""
    return made_images(tmp_path_factory.mktemp("images"), "python")["python"]


@pytest.fixture(params=[*BOTH, pytest.param("docker", marks=pytest.mark.docker)])
def bench(request: pytest.FixtureRequest, home: Path) -> Iterator[TargetBench]:
    if request.param == "docker":
        made = docker_target(home, request.getfixturevalue("python_image"))
    else:
        made = fake_target() if request.param == "fake" else real_target(home)
    yield made
    for instance in made.target.observe():
        made.target.stop(instance.name, silent)
        made.target.remove(instance.name)


@pytest.fixture(params=BOTH)
def gateway(request: pytest.FixtureRequest, home: Path) -> Iterator[GatewayBench]:
    """A running one, without routes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    made = fake_gateway(listen) if request.param == "fake" else real_gateway(home, listen)
    made.start()
    yield made
    for instance in made.target.observe():
        made.target.stop(instance.name, silent)
    made.close()


@pytest.fixture(params=BOTH)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FakeWorld(CPU).store if request.param == "fake" else DiskStore(tmp_path / "store")


@pytest.fixture(params=BOTH)
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Records:
    return FakeWorld(CPU).records if request.param == "fake" else DiskRecords(tmp_path / "records", read_settings)


@pytest.fixture(params=BOTH)
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> ApiKeys:
    return (
        FakeWorld(CPU).keys if request.param == "fake" else KeyFile(tmp_path / "keys" / "keys.json", tmp_path / "old")
    )
