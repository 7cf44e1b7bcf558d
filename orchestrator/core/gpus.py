"""Which GPUs of a machine are used: so many that are alike, of the best kind the freest. Pure."""

from __future__ import annotations

from orchestrator.core.host import Gpu, Host


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
