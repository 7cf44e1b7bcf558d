"""The memory of containers is that of the machine, whatever group `orch` is in; and what is said when it runs out."""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_groups import MIB, group
from docker import DockerClient
from docker_orch import DockerOrch, nothing_left
from image_bench import HOST
from orch_command import ANSWER, ROOT

from orchestrator.core.container import MOST_OF_MEMORY
from orchestrator.drivers.docker.daemon import Daemon

pytestmark = pytest.mark.docker

ENGINE = "tiny-ollama-g1"
ASK = """
import json, sys
sys.path[:0] = {paths}
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import Endpoint
from orchestrator.drivers.host import read_host
host = read_host()
print(json.dumps([host.memory.name, host.cpus, host.memory_limit_file, Daemon(Endpoint()).room()[0].total]))
"""
LITTLE = "Lower serving.context or serving.parallel in the profile, or raise serving.memory_mib."


@pytest.fixture
def orch(tmp_path: Path, images: dict[str, str]) -> Iterator[DockerOrch]:
    with nothing_left(DockerOrch(tmp_path / "home", images)) as command:
        yield command


def test_the_room_of_its_containers_is_what_the_daemon_knows(daemon: Daemon) -> None:
    with daemon.api_for("docker info") as api:
        info = api.info()
    memory, cpus = daemon.room()
    assert (memory.total, memory.name, cpus) == (info["MemTotal"], "this machine", info["NCPU"])
    assert 0 < memory.available <= memory.total
    assert (daemon.facts().memory or memory).total == memory.total


@pytest.mark.parametrize("options", [{"cgroupns": "host"}, {"cgroupns": "private"}, {"pid_mode": "host"}], ids=str)
def test_in_a_container_its_limits_count_for_processes_and_not_for_other_containers(
    client: DockerClient, images: dict[str, str], options: dict[str, str]
) -> None:
    """`orch` in a container that was given the daemon's socket: what it has started is beside it, not in it."""
    paths = [str(ROOT), sysconfig.get_path("purelib")]
    here = {path: {"bind": path, "mode": "ro"} for path in paths}
    socket = {HOST.removeprefix("unix://"): {"bind": "/var/run/docker.sock", "mode": "rw"}}
    said = client.containers.run(
        images["python"],
        ["python3", "-c", ASK.format(paths=paths)],
        remove=True,
        network_mode="none",
        mem_limit="300m",
        nano_cpus=500_000_000,
        volumes=here | socket,
        **options,
    )
    own, cpus, file, others = json.loads(said)
    assert (own, cpus) == ("this control group (300 MiB)", 1)
    assert file.startswith("/sys/fs/cgroup/")
    assert others == client.info()["MemTotal"]


@pytest.mark.groups
@pytest.mark.llamacpp
def test_the_group_that_orch_is_in_is_not_that_of_its_containers(orch: DockerOrch) -> None:
    with group() as made:
        made.limit_memory(700 * MIB)
        made.limit_cpus(1.0)
        orch.within = made.within
        lines = orch.run("up", "ollama", "-p", str(orch.profile), "--plan", "--json").lines
        (budget,) = (line["budget"] for line in lines if "budget" in line)
        info: dict[str, Any] = orch.client.info()
        assert (budget["where"], budget["total"]) == ("this machine", info["MemTotal"])
        # 1 GiB of KV cache: too much for the group, and nothing to the machine.
        orch.write_profile(context=2048, parallel=256)
        orch.run("up", "ollama", "-p", str(orch.profile), "--plan")
        orch.write_profile()
        orch.run("up", "ollama", "-p", str(orch.profile))
        limit = orch.inspect(ENGINE)["HostConfig"]["Memory"]
        assert limit == int(info["MemTotal"] * MOST_OF_MEMORY) >> 20 << 20
        assert orch.says() == ANSWER
        orch.within = ()
        assert orch.actions("up") == []


@pytest.mark.llamacpp
def test_a_first_start_that_runs_out_of_memory_is_told_with_what_to_do(orch: DockerOrch) -> None:
    orch.write_profile(memory_mib=32)
    told = orch.run("up", "ollama", "-p", str(orch.profile), "--timeout", "60", "--json", code=6).lines[-1]
    assert re.search(rf"{ENGINE} ran out of memory \(its limit is 32 MiB\)\.$", told["error"])
    assert told["hint"] == f"{LITTLE} All of its log: orch logs {ENGINE}"
    orch.write_profile(memory_mib=2000)
    orch.run("up", "ollama", "-p", str(orch.profile))
    assert orch.says() == ANSWER
