"""GPUs in containers through CDI, on a Docker newer than the distribution's, with the image store that it has by now.

scripts/docker-newer fetches it, once for ORCH_TEST_ENVIRONMENTS; where it cannot be had, all of this is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_orch import DockerOrch
from gpu_docker import Machine, machines, names, nvml, own_daemon, up
from gpu_hook import Hook
from gpu_machines import H200, RTX_5090
from orch_command import ANSWER, ROOT
from own_daemon import OwnDaemon

from orchestrator.drivers.docker.daemon import devices_in

__all__ = ["names", "nvml"]
pytestmark = [pytest.mark.docker, pytest.mark.long]

ENGINE = "tiny-ollama-g1"
UUID, NUMBER = "GPU-aaaa-1", "0"


class Cdi:
    """A directory of CDI specs, which the daemon reads anew when they change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "nvidia.json"

    def knows(self, *devices: str) -> None:
        """Devices by name; each gives /dev/nvidiactl (with the numbers of /dev/null) and tells in ORCH_CDI that it
        did. As nvidia-ctk writes it, what the image says of devices is overruled."""
        node = {"path": "/dev/nvidiactl", "type": "c", "major": 1, "minor": 3}
        spec = {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": [
                {"name": name, "containerEdits": {"env": [f"ORCH_CDI={name}"], "deviceNodes": [node]}}
                for name in devices
            ],
            "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"]},
        }
        self._file.write_text(json.dumps(spec))

    def forget(self) -> None:
        self._file.unlink()


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the newer Docker's programs."""
    kept = os.environ.get("ORCH_TEST_ENVIRONMENTS")
    directory = Path(kept) / "docker-newer" if kept else tmp_path_factory.mktemp("docker-newer")
    done = subprocess.run([ROOT / "scripts" / "docker-newer", directory], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no newer Docker: {done.stderr.strip()}")
    return directory


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Hook:
    made = Hook(tmp_path_factory.mktemp("toolkit"))
    made.write()
    return made


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Cdi:
    return Cdi(tmp_path_factory.mktemp("cdi"))


@pytest.fixture(scope="module")
def own(names: dict[str, str], newer: Path, hook: Hook, specs: Cdi) -> Iterator[OwnDaemon]:
    """Both ways into a container are open."""
    settings = {"cdi-spec-dirs": [str(specs.directory)], "features": {"cdi": True, "containerd-snapshotter": True}}
    path = [newer / "usr/sbin", newer / "usr/bin", hook.directory]
    with own_daemon(names, path, program=f"{newer}/usr/sbin/dockerd", settings=settings) as daemon:
        yield daemon


@pytest.fixture
def machine(
    own: OwnDaemon, hook: Hook, specs: Cdi, names: dict[str, str], nvml: Path, tmp_path: Path
) -> Iterator[Machine]:
    hook.does("give")
    specs.knows(UUID, NUMBER, "all")
    with machines(tmp_path / "home", names, nvml, own.host, hook.directory) as made:
        yield made


def env_of(orch: DockerOrch, instance: str) -> dict[str, str]:
    """The environment of a container's first process: what CDI adds stands nowhere else."""
    pid = orch.inspect(instance)["State"]["Pid"]
    return dict(line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line)


def test_the_gpu_is_given_by_cdi_rather_than_by_the_hook(machine: Machine, hook: Hook) -> None:
    orch = machine(H200, RTX_5090)
    up(orch)
    (asked,) = orch.inspect(ENGINE)["HostConfig"]["DeviceRequests"]
    assert (asked["Driver"], asked["DeviceIDs"]) == ("cdi", [f"nvidia.com/gpu={UUID}"])
    assert env_of(orch, ENGINE)["ORCH_CDI"] == UUID
    assert env_of(orch, ENGINE)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "ORCH_CDI" not in env_of(orch, "gateway")
    assert hook.told() == []
    assert orch.says() == ANSWER
    orch.status()


def test_a_gpu_that_cdi_does_not_know_by_uuid_comes_through_the_hook(machine: Machine, hook: Hook, specs: Cdi) -> None:
    specs.knows(NUMBER, "all")
    orch = machine(RTX_5090)
    up(orch)
    assert {call["devices"] for call in hook.told()} == {UUID}
    assert "ORCH_CDI" not in env_of(orch, ENGINE)
    # The way to the GPU is no change of what is wanted.
    specs.knows(UUID, NUMBER)
    orch.status()
    assert "EnsureEngine" not in orch.actions("up")


def test_a_gpu_by_number_alone_is_refused_before_anything_is_begun(machine: Machine, specs: Cdi) -> None:
    specs.knows(NUMBER, "all")
    orch = machine(RTX_5090)
    orch.env["PATH"] = str(orch.home)
    told = up(orch, code=4)
    assert told["error"] == "Docker knows the GPUs only by number, and numbers change with a reboot."
    assert "--device-name-strategy=uuid" in told["hint"]
    assert orch.containers() == []


def test_a_spec_that_goes_away_meanwhile_is_told_with_what_to_do(machine: Machine, hook: Hook, specs: Cdi) -> None:
    orch = machine(RTX_5090)
    process = orch.start("up", "ollama", "-p", str(orch.profile), "--json")
    assert process.stdout is not None
    lines = []
    for text in process.stdout:
        lines.append(json.loads(text))
        if (lines[-1].get("event"), lines[-1].get("step")) == ("started", "EnsureGateway"):
            specs.forget()
    process.communicate(timeout=60)
    assert process.returncode == 6
    assert f"unresolvable CDI devices nvidia.com/gpu={UUID}" in lines[-1]["error"]
    assert "nvidia-ctk cdi generate" in lines[-1]["hint"]
    assert hook.told() == []
    assert orch.containers() == []


YAML = """\
---
cdiVersion: 0.5.0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - update-ldcache
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-aaaa-1
kind: nvidia.com/gpu
"""


def test_the_specs_themselves_are_read_where_the_daemon_does_not_list_devices(tmp_path: Path, specs: Cdi) -> None:
    (tmp_path / "nvidia.yaml").write_text(YAML)
    (tmp_path / "nvidia.yaml.old").write_text(YAML)
    specs.knows(UUID, "all")
    found = devices_in([str(tmp_path), str(specs.directory), str(tmp_path / "none")])
    assert found == tuple(f"nvidia.com/gpu={name}" for name in ("0", UUID, UUID, "all"))


def test_the_whole_way_there_and_back(machine: Machine) -> None:
    orch = machine(RTX_5090)
    up(orch)
    assert orch.actions("up") == []
    orch.run("migrate", "--to", "ollama", "--recipe", "gguf-bf16")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-bf16"]
    assert orch.says() == ANSWER
    orch.crash("tiny-ollama-g2")
    orch.run("up")
    assert orch.says() == ANSWER
    orch.run("rollback")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-q6_k"]
    assert orch.says() == ANSWER
    orch.run("down")
    assert [container.labels["orch.instance"] for container in orch.containers()] == ["gateway"]
