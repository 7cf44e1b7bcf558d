"""The GPUs that an engine is to use, how it is told which, and how a container is given them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from orchestrator.core.deployment import DeploymentSpec
from orchestrator.core.docker import CDI, HOOK, DockerFacts
from orchestrator.core.host import MOST_GPUS, Gpu, Host
from orchestrator.core.launch import DOCKER
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark, Skip
from orchestrator.core.profile import Profile
from orchestrator.core.weights import Shape
from orchestrator.engines.base import EngineSheet
from orchestrator.errors import HostError, PlanRefused

# Nodes that every CUDA program opens, besides /dev/nvidiaN of its GPU.
CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


def gpus_for(
    sheet: EngineSheet, profile: Profile, shape: Shape | None, accelerator: Accelerator, host: Host
) -> tuple[Gpu, ...]:
    """Those to use, in the order of their index; none but with CUDA: nothing tells how many GPUs of AMD there are.

    PlanRefused where there are not so many that are alike, or a model of this shape cannot be spread over so many.
    """
    count, able = sheet.gpus(profile, accelerator), _able(sheet, shape)
    if count not in able:
        reason = sheet.cannot_split(shape, count) if shape is not None else ""
        raise PlanRefused(
            f"The model cannot be spread over {count} GPUs: {reason}.",
            hint=f"In the profile, set engines.{sheet.name}.gpus to one of: {', '.join(map(str, able))}.",
        )
    if accelerator is not Accelerator.CUDA:
        return ()
    found = best_gpus(host, count)
    if not found:
        raise _too_few(sheet, count, able, host)
    return found


def _able(sheet: EngineSheet, shape: Shape | None) -> list[int]:
    """Over how many GPUs the model can be spread; any number, while nothing is known of it."""
    return [n for n in range(1, MOST_GPUS + 1) if shape is None or not sheet.cannot_split(shape, n)]


def _too_few(sheet: EngineSheet, count: int, able: list[int], host: Host) -> PlanRefused:
    kinds = Counter((gpu.name, gpu.memory_total, gpu.compute_capability) for gpu in host.gpus)
    most = max(n for n in able if n <= max(map(len, alike(host))))
    parts = " Parts of a GPU (MIG) are used only one at a time." if any(gpu.parent for gpu in host.gpus) else ""
    return PlanRefused(
        f"{sheet.name} is to use {count} GPUs that are alike; there are: "
        f"{', '.join(f'{number} x {name}' for (name, *_), number in kinds.items())}.",
        hint=f"In the profile, set engines.{sheet.name}.gpus = {most}.{parts}",
        detail=host.gpu_problem,
    )


def gpus_left_out(sheet: EngineSheet, profile: Profile, accelerator: Accelerator, host: Host) -> Iterator[Skip]:
    """What is said of GPUs that are not used, though they might be meant to be."""
    if host.gpu_problem and sheet.takes_gpu:
        yield Remark("use every GPU", host.gpu_problem)
    wanted = sheet.gpus(profile, Accelerator.CUDA)
    if wanted > 1 and accelerator is Accelerator.CPU:
        yield Remark(f"use {wanted} GPUs", f"{sheet.name} computes on the CPU here, and that is only one")


def seen_by(spec: DeploymentSpec, gpus: tuple[Gpu, ...], host: Host, docker: DockerFacts | None) -> dict[str, Any]:
    """The Deployment's fields for the GPUs to be seen alone. A process is told only where there are others (CUDA would
    take its own first ones); a container is always given exactly what it is to see."""
    named = ",".join(gpu.uuid for gpu in gpus)
    if spec.target == DOCKER and docker is not None:
        # Without a daemon nothing is run, only shown.
        way = HOOK if gpus and docker.problem else gpu_way(docker, gpus) if gpus else ""
        return {"gpu": named, "gpu_way": way, "gpu_nodes": extra_nodes(docker, way, gpus)}
    # A GPU that is lost still counts for CUDA.
    no_choice = len(host.gpus) == len(gpus) and [gpu.index for gpu in gpus] == list(range(len(gpus)))
    return {"gpu": "" if no_choice else named}


def alike(host: Host) -> tuple[tuple[Gpu, ...], ...]:
    """The GPUs by kind (name, memory and compute capability), of each the freest first.

    A MIG device is a kind of its own: NCCL joins no two of them.
    """
    kinds: dict[object, list[Gpu]] = {}
    for gpu in host.gpus:
        kind = gpu.uuid if gpu.parent else (gpu.name, gpu.memory_total, gpu.compute_capability)
        kinds.setdefault(kind, []).append(gpu)
    return tuple(tuple(sorted(kind, key=lambda gpu: -gpu.memory_free)) for kind in kinds.values())


def best_gpus(host: Host, count: int = 1) -> tuple[Gpu, ...]:
    """So many that are alike, in the order of their index: the most capable, then the largest, then the freest. Empty
    where there are not so many of any kind.

    What an engine is started with follows from the first two alone, so that it does not change with the load.
    """
    able = [kind[:count] for kind in alike(host) if len(kind) >= count]
    least = [(gpus[-1].compute_capability, gpus[-1].memory_total, gpus[-1].memory_free) for gpus in able]
    best = able[least.index(max(least))] if able else ()
    return tuple(sorted(best, key=lambda gpu: gpu.index))


def gpu_way(docker: DockerFacts, gpus: tuple[Gpu, ...]) -> str:
    """How these GPUs are given to a container: CDI where the daemon knows them so, because such a container keeps
    its GPU over `systemctl daemon-reload`; else the toolkit's hook. HostError when there is no way."""
    if gpus and all(f"nvidia.com/gpu={gpu.uuid}" in docker.cdi_devices for gpu in gpus):
        return CDI
    if docker.hook or "nvidia" in docker.runtimes:
        return HOOK
    if any(name.startswith("nvidia.com/gpu=") for name in docker.cdi_devices):
        raise HostError(
            "Docker knows the GPUs only by number, and numbers change with a reboot.",
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
