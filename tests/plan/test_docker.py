"""How a GPU gets into a container of this daemon, and which device nodes are named besides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import DAEMON, gpu

from orchestrator.core.docker import CDI, HOOK, DockerFacts
from orchestrator.engines.gpus import extra_nodes, gpu_way
from orchestrator.errors import HostError

ONE = gpu("GeForce RTX 5090", (12, 0), 32)
OTHER = replace(gpu("H200", (9, 0), 140), minor=3)
BY_UUID = f"nvidia.com/gpu={ONE.uuid}"
NOTHING = DockerFacts(version="28.0", runtimes=("io.containerd.runc.v2", "runc"))


@pytest.mark.parametrize(
    ("docker", "way"),
    [
        (replace(NOTHING, hook=True), HOOK),
        # Registered as a runtime, by a toolkit that lies elsewhere.
        (replace(NOTHING, runtimes=("nvidia", "runc")), HOOK),
        (replace(NOTHING, cdi_devices=("nvidia.com/gpu=all", BY_UUID)), CDI),
        (replace(NOTHING, cdi_devices=(BY_UUID,), hook=True), CDI),
        # Known to CDI by number, or not this one: the hook takes UUIDs.
        (replace(NOTHING, cdi_devices=("nvidia.com/gpu=0", "nvidia.com/gpu=all"), hook=True), HOOK),
        (replace(NOTHING, cdi_devices=(f"nvidia.com/gpu={OTHER.uuid}",), hook=True), HOOK),
    ],
)
def test_the_way(docker: DockerFacts, way: str) -> None:
    assert gpu_way(docker, (ONE,)) == way


def test_cdi_must_know_all_of_them() -> None:
    docker = replace(NOTHING, cdi_devices=(BY_UUID,), hook=True)
    assert gpu_way(docker, (ONE, OTHER)) == HOOK


@pytest.mark.parametrize(
    ("docker", "said", "hint"),
    [
        (NOTHING, "the NVIDIA Container Toolkit was not found", "nvidia-ctk runtime configure --runtime=docker"),
        (replace(NOTHING, cdi_devices=("amd.com/gpu=0",)), "Toolkit was not found", "nvidia-ctk"),
        (replace(NOTHING, cdi_devices=("nvidia.com/gpu=0",)), "only by number", "--device-name-strategy=uuid"),
    ],
)
def test_no_way(docker: DockerFacts, said: str, hint: str) -> None:
    with pytest.raises(HostError, match=said) as refused:
        gpu_way(docker, (ONE,))
    assert hint in refused.value.hint


def test_under_systemd_the_hooks_nodes_are_named_as_far_as_they_are_there() -> None:
    nodes = extra_nodes(DAEMON, HOOK, (ONE,))
    # /dev/nvidia-modeset is not there.
    assert nodes == ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0")
    assert extra_nodes(replace(DAEMON, nodes=("/dev/nvidia3", "/dev/nvidiactl")), HOOK, (ONE, OTHER)) == (
        "/dev/nvidiactl",
        "/dev/nvidia3",
    )
    assert "/dev/nvidia0" not in extra_nodes(DAEMON, HOOK, (replace(ONE, minor=None),))


@pytest.mark.parametrize(("docker", "way"), [(DAEMON, CDI), (replace(DAEMON, cgroup_driver="cgroupfs"), HOOK)])
def test_else_nothing_takes_them_away(docker: DockerFacts, way: str) -> None:
    assert extra_nodes(docker, way, (ONE,)) == ()
