"""What the Docker daemon of this machine is."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.host import Memory

# How a GPU gets into a container: as a CDI device, or by the NVIDIA toolkit's hook.
CDI, HOOK = "cdi", "nvidia"


@dataclass(frozen=True)
class DockerFacts:
    """The daemon as `docker info` and this machine tell: `problem` says why it cannot be used, else it is empty.

    `runtimes` are the registered ones, `cdi_devices` fully qualified CDI names ("nvidia.com/gpu=GPU-..."), `hook`
    whether the NVIDIA toolkit's hook is installed, `nodes` the NVIDIA device nodes that exist. `memory` and `cpus` are
    what its containers have, which are not in the control group of this process; None and 0: it did not tell.
    """

    version: str = ""
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    hook: bool = False
    nodes: tuple[str, ...] = ()
    cgroup_driver: str = ""
    memory: Memory | None = None
    cpus: int = 0
    problem: str = ""
    hint: str = ""
