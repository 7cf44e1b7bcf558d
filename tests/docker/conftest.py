"""`orch` with a real Docker daemon, and a registry on loopback that it pulls from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker_orch import environments, made_images
from image_bench import HOST, SMALL, orch_at, registry_server, remove, small_image
from orch_command import Orch

from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import Endpoint
from orchestrator.drivers.docker.images import DockerImages

__all__ = ["environments"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("docker")


@pytest.fixture(scope="session")
def images(environments: Path) -> dict[str, str]:
    """The images of the gateway's base and of Ollama's stand-in."""
    return made_images(environments, "python", "ollama")


@pytest.fixture(scope="session")
def client() -> Iterator[DockerClient]:
    """What the daemon itself says, beside orch."""
    made = DockerClient(base_url=HOST)
    yield made
    made.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """The daemon as orch speaks with it."""
    made = Daemon(Endpoint(HOST))
    yield made
    with made.api_for("end the connection") as api:
        api.close()


@pytest.fixture
def docker_images(daemon: Daemon, tmp_path: Path) -> DockerImages:
    """The images of the daemon, and what stands for what in a file of this test."""
    return DockerImages(daemon, tmp_path / "images.json", lambda: True)


@pytest.fixture
def registry(client: DockerClient) -> Iterator[Any]:
    """An empty registry. What was pulled from it or named after it is removed from the daemon."""
    with registry_server.RegistryServer({}) as server:
        yield server
    for image in client.images.list():
        names = [*image.attrs["RepoTags"], *image.attrs["RepoDigests"]]
        if any(name.startswith(f"{server.address}/") for name in names):
            remove(client, image.id)


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    """`orch` with an empty data directory, this daemon, and a hub that nobody runs."""
    command = orch_at(tmp_path / "home")
    yield command
    assert command.processes() == []


@pytest.fixture
def small(client: DockerClient) -> Iterator[str]:
    """A small image that only the daemon has, by its name."""
    small_image(client, SMALL, NVIDIA_REQUIRE_CUDA="cuda>=12.9")
    yield SMALL
    remove(client, SMALL)
