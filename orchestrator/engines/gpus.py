"""The GPUs that an engine is to use, and how it is told which. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from orchestrator.core.deployment import Wish
from orchestrator.core.docker import HOOK, DockerFacts, extra_nodes, gpu_way
from orchestrator.core.gpus import alike, best_gpus
from orchestrator.core.host import Gpu, Host
from orchestrator.core.launch import DOCKER
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import MOST_GPUS, Profile
from orchestrator.core.steps import Skip
from orchestrator.core.weights import Shape
from orchestrator.engines.base import EngineSheet
from orchestrator.errors import PlanRefused


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
    parts = " Parts of a GPU (MIG) are used one by one only." if any(gpu.parent for gpu in host.gpus) else ""
    return PlanRefused(
        f"{sheet.name} is to use {count} GPUs that are alike; there are: "
        f"{', '.join(f'{number} x {name}' for (name, *_), number in kinds.items())}.",
        hint=f"In the profile, set engines.{sheet.name}.gpus = {most}.{parts}",
        detail=host.gpu_problem,
    )


def gpus_left_out(sheet: EngineSheet, profile: Profile, accelerator: Accelerator, host: Host) -> Iterator[Skip]:
    """What is said of GPUs that are not used, though they might be meant to be."""
    if host.gpu_problem and sheet.takes_gpu:
        yield Skip("use every GPU", host.gpu_problem)
    wanted = sheet.gpus(profile, Accelerator.CUDA)
    if wanted > 1 and accelerator is Accelerator.CPU:
        yield Skip(f"use {wanted} GPUs", f"{sheet.name} computes on the CPU here, which is one")


def seen_by(wish: Wish, gpus: tuple[Gpu, ...], host: Host, docker: DockerFacts | None) -> dict[str, Any]:
    """The Deployment's fields for the GPUs to be seen alone. A process is told only where there are others (CUDA would
    take its own first ones); a container is always given exactly what it is to see."""
    named = ",".join(gpu.uuid for gpu in gpus)
    if wish.target == DOCKER and docker is not None:
        # Without a daemon nothing is run, only shown.
        way = HOOK if gpus and docker.problem else gpu_way(docker, gpus) if gpus else ""
        return {"gpu": named, "gpu_way": way, "gpu_nodes": extra_nodes(docker, way, gpus)}
    # A GPU that is lost still counts for CUDA.
    no_choice = len(host.gpus) == len(gpus) and [gpu.index for gpu in gpus] == list(range(len(gpus)))
    return {"gpu": "" if no_choice else named}
