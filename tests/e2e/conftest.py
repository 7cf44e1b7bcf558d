"""A data directory per test, and the check that nothing is left running after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_orch import DockerOrch, environments, made_images, nothing_left
from orch_command import Orch, stopped_afterwards, with_environments

__all__ = ["environments"]


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` with an empty data directory; everything that it started is stopped by it afterwards."""
    with stopped_afterwards(Orch(tmp_path / "home")) as command:
        yield command


@pytest.fixture(scope="session")
def images(environments: Path) -> dict[str, str]:
    """Container images by what they are for."""
    return made_images(environments, "python", "vllm", "ollama")


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


@pytest.fixture
def orch_vllm(orch: Orch, environments: Path) -> Orch:
    """`orch` whose vLLM environment is the shared one; the first test that needs it has orch install it."""
    with_environments(orch, environments)
    return orch
