"""`orch` whose engines run in containers: images made on this machine, a daemon (the system's, or one of its own)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker.models.containers import Container
from orch_command import Orch, script, wait_until

SYSTEM = "unix:///var/run/docker.sock"
PIN = """engine = "{engine}"

[[docker]]
image = "{image}"
tag = "{tag}"
digest = "{id}"
accelerators = ["cpu", "cuda"]
verified = true
local = true
source = "made on this machine"
"""


class DockerOrch(Orch):
    """The `orch` command over one data directory, with the target docker; `images` by name as scripts/docker_images.py
    makes them."""

    target = "docker"
    engine = "ollama"
    # The gateway and one engine.
    all_of_it = 2

    def __init__(self, home: Path, images: dict[str, str], host: str = "") -> None:
        super().__init__(home)
        self.host = host or os.environ.get("DOCKER_HOST", SYSTEM)
        self.env = {"ORCH_TARGET": "docker", "ORCH_GATEWAY_BASE": images["python"], "DOCKER_HOST": self.host}
        (home / "pins").mkdir()
        self.client = DockerClient(base_url=self.host)
        for engine, name in (("ollama", "ollama"), ("vllm", "vllm")):
            if name in images:
                self.pin(engine, images[name])

    def pin(self, engine: str, name: str) -> None:
        """What `orch images pin` writes for an image that no registry has."""
        image, _, tag = name.rpartition(":")
        found = self.client.images.get(name)
        text = PIN.format(engine=engine, image=image, tag=tag, id=found.id)
        (self.home / "pins" / f"{engine}.toml").write_text(text)

    def containers(self) -> list[Container]:
        """All of this data directory's, also the stopped ones."""
        return list(
            self.client.containers.list(all=True, ignore_removed=True, filters={"label": f"orch.home={self.home}"})
        )

    def container(self, instance: str) -> Container:
        """The container of an instance."""
        (found,) = (c for c in self.containers() if c.labels["orch.instance"] == instance)
        return found

    def inspect(self, instance: str) -> dict[str, Any]:
        """What the daemon says of an instance's container."""
        attributes: dict[str, Any] = self.container(instance).attrs
        return attributes

    def processes(self) -> list[int]:
        """Main processes of its containers, and what it may have started besides them."""
        return super().processes() + [container.attrs["State"]["Pid"] for container in self.containers()]

    def inner_processes(self) -> list[int]:
        """All processes in its containers, as this machine counts them."""
        tops = [container.top() for container in self.containers()]
        return [int(row[top["Titles"].index("PID")]) for top in tops for row in top["Processes"]]

    def crash(self, instance: str) -> None:
        """Its main process ends, and nobody asked for that. The init in it ends with its child."""
        init = self.inspect(instance)["State"]["Pid"]
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    def close(self) -> None:
        """End the connection to the daemon."""
        self.client.close()


def made_images(kept: Path, *names: str) -> dict[str, str]:
    """Container images by what they are for; those that are not there yet are made on this machine, `kept` is for
    vLLM's environment. Somebody else makes them where ORCH_IMAGES_MADE names the file that will tell of them."""
    if elsewhere := os.environ.get("ORCH_IMAGES_MADE"):
        wait_until(Path(elsewhere).exists, 900, "the making of the images")
    made: dict[str, str] = script("docker_images").ensure_images(names, kept)
    return made


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine environments that the tests of this run share (ORCH_TEST_ENVIRONMENTS keeps them between runs)."""
    kept = os.environ.get("ORCH_TEST_ENVIRONMENTS")
    path = Path(kept) if kept else tmp_path_factory.mktemp("environments")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def nothing_left(command: DockerOrch) -> Iterator[DockerOrch]:
    """Everything that it started is gone afterwards, the network too."""
    yield command
    command.run("down", "--all", timeout=180)
    networks = command.client.networks.list(filters={"label": f"orch.home={command.home}"})
    left = [*command.processes(), *networks]
    command.close()
    assert left == []


@contextmanager
def serving(home: Path, images: dict[str, str], host: str = "") -> Iterator[DockerOrch]:
    """The tiny model on Ollama in a container."""
    with nothing_left(DockerOrch(home, images, host)) as command:
        command.run("up", "ollama", "-p", str(command.profile))
        yield command
