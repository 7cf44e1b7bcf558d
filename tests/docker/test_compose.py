"""orch render compose: what it writes runs under a real docker compose, is what orch runs, and answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from docker_orch import DockerOrch, nothing_left
from orch_command import ANSWER, ASSETS, wait_until

pytestmark = pytest.mark.docker

ULIMITS = re.compile(r"^    ulimits:\n      nofile:\n        soft: \d+\n        hard: \d+\n", re.MULTILINE)
# What is another thing for compose by itself: names, its network, and how it writes down the same empty settings.
OTHERWISE = {
    *("NetworkMode", "Mounts", "Binds", "PortBindings", "VolumesFrom", "Ulimits", "ConsoleSize", "LogConfig"),
    # Most of this machine's, where the profile names none: no figure for another machine.
    *("Memory", "MemorySwap"),
}


def compose_words() -> list[str]:
    """The command, as a plugin or by itself; empty when there is none."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


@pytest.fixture
def orch(tmp_path: Path, images: dict[str, str]) -> Iterator[DockerOrch]:
    """`orch` with the target docker; nothing of it is left afterwards."""
    with nothing_left(DockerOrch(tmp_path / "home", images)) as command:
        yield command


class Project:
    """A directory that compose is run in; what it has started is gone afterwards."""

    def __init__(self, directory: Path, orch: DockerOrch) -> None:
        self.directory = directory
        self.words = compose_words()
        self.env = os.environ | {"DOCKER_HOST": orch.host}

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, *args], cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=300
        )

    def up(self) -> None:
        """Start it; on a daemon that may not raise limits as its first lines say."""
        done = self.run("up", "-d")
        if done.returncode != 0 and "setting rlimit" in done.stdout + done.stderr:
            file = self.directory / "compose.yaml"
            text, count = ULIMITS.subn("", file.read_text())
            assert count == 3
            file.write_text(text)
            done = self.run("up", "-d")
        assert done.returncode == 0, done.stdout + done.stderr

    def inspect(self, part: str, orch: DockerOrch) -> dict[str, Any]:
        """What the daemon says of a part's container."""
        (identity,) = self.run("ps", "-q", part).stdout.split()
        found: dict[str, Any] = orch.client.api.inspect_container(identity)
        return found


@pytest.fixture
def project(orch: DockerOrch, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "left-orch", orch)
    if not made.words:
        pytest.skip("there is no docker compose: apt-get install docker-compose")
    yield made
    if made.directory.is_dir():
        assert made.run("down").returncode == 0


def says(orch: DockerOrch) -> str:
    """What a chat answers; nothing as long as nobody listens."""
    try:
        return orch.says()
    except httpx.ConnectError:
        return ""


def settings(info: dict[str, Any]) -> dict[str, Any]:
    """All that a container was given, but for what has another form in compose, or another value in each container."""
    host = {key: value or None for key, value in info["HostConfig"].items() if key not in OTHERWISE}
    config = {key: info["Config"][key] for key in ("User", "Cmd", "Entrypoint", "StopTimeout", "Image")}
    log = info["HostConfig"]["LogConfig"]
    mounts = sorted((mount["Destination"], mount["RW"], mount["Type"]) for mount in info["Mounts"])
    return host | config | {"Env": sorted(info["Config"]["Env"]), "Mounts": mounts, "LogConfig": log}


def test_the_project_is_what_orch_runs_and_answers_as_it_does(orch: DockerOrch, project: Project) -> None:
    orch.run("up", "ollama", "-p", str(orch.profile))
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    engine = orch.inspect("tiny-ollama-g1")
    orch.run("render", "compose", "-o", str(project.directory))
    orch.run("down", "--all")

    project.up()
    wait_until(lambda: says(orch) == ANSWER, what="an answer of the gateway")
    assert orch.says("test/Tiny") == ANSWER
    assert orch.says("alpha") == "Ahoy! The answer is alpha."
    assert orch.says("stranger").count("stranger")
    assert settings(project.inspect("engine", orch)) == settings(engine)
    network = next(iter(project.inspect("engine", orch)["NetworkSettings"]["Networks"]))
    assert orch.client.networks.get(network).attrs["Internal"] is True

    # Again: what was imported is there, and its requests are few.
    project.up()
    assert "is there" in project.run("logs", "import").stdout
    engine_container = orch.client.containers.get(project.inspect("engine", orch)["Id"])
    engine_container.restart()
    wait_until(lambda: says(orch) == ANSWER, seconds=60, what="an answer at the same address")


def test_the_gateway_of_a_project_asks_for_the_key(orch: DockerOrch, project: Project) -> None:
    orch.env["ORCH_API_KEY"] = "a-key-of-this-test"
    orch.run("up", "ollama", "-p", str(orch.profile))
    gateway = orch.inspect("gateway")
    orch.run("render", "compose", "-o", str(project.directory))
    orch.run("down", "--all")
    project.up()
    wait_until(lambda: "API key" in says(orch), what="a refusal")
    info = project.inspect("gateway", orch)
    assert info["HostConfig"]["NetworkMode"] == "host"
    ours, theirs = settings(info), settings(gateway)
    for entry in ("Cmd", "Mounts"):  # its admin socket has no one to serve
        ours.pop(entry), theirs.pop(entry)
    assert ours | {"Image": ""} == theirs | {"Image": ""}
    written = [path for path in project.directory.rglob("*") if path.is_file()]
    assert [path for path in written if b"a-key-of-this-test" in path.read_bytes()] == []
