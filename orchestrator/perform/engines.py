"""Steps that start, feed, ask and stop engines."""

from __future__ import annotations

from contextlib import suppress

from orchestrator.core.deployment import Deployment
from orchestrator.core.progress import Progress
from orchestrator.core.steps import (
    AwaitMemory,
    AwaitReady,
    EnsureEngine,
    ImportArtifact,
    LoadAdapter,
    RemoveEngine,
    StopEngine,
    TidyStore,
    UnloadAdapter,
    UnloadModel,
    WakeEngine,
    WriteFile,
)
from orchestrator.drivers.base import World
from orchestrator.engines import ENGINES
from orchestrator.errors import HostError
from orchestrator.perform.dispatch import perform
from orchestrator.probes import POLL_S, ask_engine, await_ready, digests, import_artifact, instance_of, spare_of


@perform.register
def write_file(step: WriteFile, world: World, progress: Progress) -> None:
    world.targets[step.target].write_file(step.instance, step.name, step.text)


@perform.register
def ensure_engine(step: EnsureEngine, world: World, progress: Progress) -> None:
    deployment = step.deployment
    world.targets[deployment.target].ensure(deployment.instance, deployment.launch, deployment.label)


@perform.register
def await_memory(step: AwaitMemory, world: World, progress: Progress) -> None:
    """The driver gives back what a dead process held some seconds later; nobody tells when."""
    deadline = world.clock.monotonic() + step.limit_s
    while True:
        where, free, hint = _memory_free(step.gpu, world)
        if free >= step.size:
            return
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"{step.size / 2**30:.1f} GiB of {where} are needed, and {free / 2**30:.1f} are free after "
                f"{step.limit_s:.0f} s.",
                hint=hint,
            )
        progress("waiting for memory", 0, 0)
        world.clock.sleep(POLL_S)


def _memory_free(gpu: str, world: World) -> tuple[str, int, str]:
    """Of a GPU, or of the host where none is named: what it is called, how many bytes are free, who has the rest."""
    host = world.read_host()
    if not gpu:
        return f"the memory of {host.memory.name}", host.memory.available, "orch status shows what its engines take."
    seen = next((one for one in host.gpus if one.uuid == gpu), None)
    if seen is None:
        raise HostError(f"GPU {gpu} is no longer there.", hint="nvidia-smi should show it.")
    users = ", ".join(str(user) for user in seen.users) or "no process that the driver knows"
    return seen.name, seen.memory_free, f"It is held by {users}."


@perform.register
def import_into_store(step: ImportArtifact, world: World, progress: Progress) -> None:
    import_artifact(step.deployment, world, progress)


@perform.register
def await_answer(step: AwaitReady, world: World, progress: Progress) -> None:
    began = world.clock.monotonic()
    await_ready(step.deployment, step.timeout_s, step.proved, world, progress)
    if not step.timed:
        return
    # Told to people beforehand, the next time: a disk that is full is no reason to fail.
    with suppress(HostError):
        world.records.note_start(step.deployment.start_key, world.clock.monotonic() - began)


@perform.register
def load_adapter(step: LoadAdapter, world: World, progress: Progress) -> None:
    requests = ENGINES[step.deployment.engine].load_requests(step.deployment, step.adapter, digests(world))
    ask_engine(step.deployment, requests, world, progress, gone_is_fine=False)
    _relabel(step.deployment, world)


@perform.register
def unload_adapter(step: UnloadAdapter, world: World, progress: Progress) -> None:
    requests = ENGINES[step.deployment.engine].unload_requests(step.before, step.name)
    ask_engine(step.deployment, requests, world, progress, gone_is_fine=True)
    _relabel(step.deployment, world)


@perform.register
def tidy_store(step: TidyStore, world: World, progress: Progress) -> None:
    sheet = ENGINES[step.deployment.engine]
    requests = (call for spare in spare_of(step.deployment, world) for call in sheet.discard_requests(spare))
    ask_engine(step.deployment, tuple(requests), world, progress, gone_is_fine=True)


@perform.register
def unload_model(step: UnloadModel, world: World, progress: Progress) -> None:
    deployment = step.deployment
    ask_engine(deployment, ENGINES[deployment.engine].rest_requests(deployment), world, progress, gone_is_fine=True)
    if not deployment.own_store:
        return
    deadline = world.clock.monotonic() + step.limit_s
    # It answers before the process that had the model has ended.
    while (now := instance_of(deployment.target, deployment.instance, world)) is not None and now.children is not None:
        if now.children.count == 0:
            return
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"{deployment.instance} has not given its model's memory back after {step.limit_s:.0f} s.",
                hint="Is it still asked, beside the gateway? Without --keep-old it is ended.",
            )
        progress("waiting for the end of its model", 0, 0)
        world.clock.sleep(POLL_S)


@perform.register
def wake_engine(step: WakeEngine, world: World, progress: Progress) -> None:
    deployment = step.deployment
    ask_engine(deployment, ENGINES[deployment.engine].wake_requests(deployment), world, progress, gone_is_fine=False)
    await_ready(deployment, step.timeout_s, (), world, progress)


@perform.register
def stop_engine(step: StopEngine, world: World, progress: Progress) -> None:
    world.targets[step.target].stop(step.instance, progress)


@perform.register
def remove_engine(step: RemoveEngine, world: World, progress: Progress) -> None:
    world.targets[step.target].remove(step.instance)


def _relabel(deployment: Deployment, world: World) -> None:
    """What the next restart starts with is as what runs now: its adapters stand in its files, or in its launch."""
    target = world.targets[deployment.target]
    for name, text in deployment.written:
        target.write_file(deployment.instance, name, text)
    target.relabel(deployment.instance, deployment.launch, deployment.label)
