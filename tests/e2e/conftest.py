"""A data directory per test, and the check that nothing is left running after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_orch import DockerOrch, nothing_left
from orch_command import Orch, script


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` with an empty data directory; everything that it started is stopped by it afterwards."""
    command = Orch(tmp_path / "home")
    yield command
    command.run("down", "--all", timeout=120)
    assert command.processes() == []


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine environments that the tests of this run share (ORCH_TEST_ENVIRONMENTS keeps them between runs)."""
    kept = os.environ.get("ORCH_TEST_ENVIRONMENTS")
    path = Path(kept) if kept else tmp_path_factory.mktemp("environments")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def images(environments: Path) -> dict[str, str]:
    """Container images by what they are for, made on this machine."""
    made: dict[str, str] = script("docker_images").ensure_images(("python", "vllm", "ollama"), environments)
    return made


@pytest.fixture
def orch_docker(tmp_path: Path, images: dict[str, str]) -> Iterator[DockerOrch]:
    """`orch` on the target docker; everything that it started is gone afterwards."""
    with nothing_left(DockerOrch(tmp_path / "home", images)) as command:
        yield command


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def either(request: pytest.FixtureRequest) -> Orch:
    """`orch` on each target: the embedded llama.cpp as a process, Ollama in a container."""
    command: Orch = request.getfixturevalue("orch" if request.param == "local" else "orch_docker")
    return command


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def either_vllm(request: pytest.FixtureRequest) -> Orch:
    """The same with a vLLM that need not be installed first."""
    command: Orch = request.getfixturevalue("orch_vllm" if request.param == "local" else "orch_docker")
    return command


@pytest.fixture
def orch_vllm(orch: Orch, environments: Path) -> Orch:
    """`orch` whose vLLM environment is the shared one; the first test that needs it has orch install it."""
    (orch.home / "environments").symlink_to(environments)
    orch.run("engines", "install", "vllm", timeout=900)
    return orch
