"""What the Docker daemon of this machine is, and how a GPU gets into one of its containers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.host import Gpu
from orchestrator.errors import HostError

CDI, HOOK = "cdi", "nvidia"
# Nodes that every CUDA program opens, besides /dev/nvidiaN of its GPU.
CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


@dataclass(frozen=True)
class DockerFacts:
    """The daemon as `docker info` and this machine tell: `problem` says why it cannot be used, else it is empty.

    `runtimes` are the registered ones, `cdi_devices` fully qualified CDI names ("nvidia.com/gpu=GPU-..."), `hook`
    whether the NVIDIA toolkit's hook is installed, `nodes` the NVIDIA device nodes that exist.
    """

    version: str = ""
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    hook: bool = False
    nodes: tuple[str, ...] = ()
    cgroup_driver: str = ""
    problem: str = ""
    hint: str = ""


def gpu_way(docker: DockerFacts, gpus: tuple[Gpu, ...]) -> str:
    """How these GPUs are given to a container: CDI where the daemon knows them so, because such a container keeps
    its GPU over `systemctl daemon-reload`; else the toolkit's hook. HostError when there is no way."""
    if gpus and all(f"nvidia.com/gpu={gpu.uuid}" in docker.cdi_devices for gpu in gpus):
        return CDI
    if docker.hook or "nvidia" in docker.runtimes:
        return HOOK
    if any(name.startswith("nvidia.com/gpu=") for name in docker.cdi_devices):
        raise HostError(
            "Docker knows the GPUs by number only, and numbers change with a reboot.",
            hint="nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml",
        )
    raise HostError(
        "Docker has no way to give a container the GPU: the NVIDIA Container Toolkit was not found.",
        hint="Install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker, and restart "
        "Docker (Docker from snap does not see it). CUDA_VISIBLE_DEVICES= (empty) asks for the CPU instead.",
    )


def extra_nodes(docker: DockerFacts, way: str, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Device nodes to name besides the GPU request.

    With systemd's cgroup driver, `systemctl daemon-reload` takes away what the hook alone has given ("Failed to
    initialize NVML: Unknown Error"); nodes that the daemon itself was told of stay.
    """
    if way != HOOK or docker.cgroup_driver != "systemd":
        return ()
    own = [f"/dev/nvidia{gpu.minor}" for gpu in gpus if gpu.minor is not None]
    return tuple(node for node in (*CONTROL_NODES, *own) if node in docker.nodes)
