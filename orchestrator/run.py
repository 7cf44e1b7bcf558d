"""Plan x World to Events: does the steps in order, and takes them back when one fails before the commit point.

One match over Step, and the whole of "how it is done" is the body of a case. Deciding has happened in core.plan.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from orchestrator.asking import (
    LOG_LINES,
    POLL_S,
    ask_engine,
    await_ready,
    digests,
    import_artifact,
    instance_of,
    verify_routes,
)
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment
from orchestrator.core.events import Event, EventKind, step_name
from orchestrator.core.images import driver_cannot
from orchestrator.core.launch import InstanceState
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.progress import Progress, silent, split_part
from orchestrator.core.steps import (
    GATEWAY,
    Action,
    AwaitMemory,
    AwaitReady,
    BuildArtifact,
    BuildImage,
    BuildTogether,
    Drain,
    EnsureEngine,
    EnsureEnvironment,
    EnsureGateway,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    ImportArtifact,
    LoadAdapter,
    Plan,
    PullImage,
    RecordDesired,
    RemoveEngine,
    RemoveRoute,
    SetRoute,
    Skip,
    Step,
    StopEngine,
    UnloadAdapter,
    VerifyRoute,
    WriteFile,
)
from orchestrator.drivers.base import Gateway, World
from orchestrator.engines import ENGINES
from orchestrator.errors import HostError, Interrupted, OrchError, SourceError, StepFailed, StepStranded

Emit = Callable[[Event], None]


GATEWAY_START_S = 30.0


MEMORY_S = 60.0


def run(plan: Plan, world: World, emit: Emit, interrupted: Callable[[], bool]) -> None:
    """Run a plan to its end.

    Raises the step's own error when no step before it has changed what serves, StepFailed when all was undone,
    StepStranded when something is left over, Interrupted when `interrupted()` came true (after undo).
    """
    undo: list[Action] = []
    for index, item in enumerate(plan.items):
        if isinstance(item, Skip):
            emit(Event(EventKind.SKIPPED, plan.verb, index, what=item.what, why=item.why))
            continue
        committed = index >= plan.commit
        if committed and undo:
            emit(Event(EventKind.COMMITTED, plan.verb, index))
            undo = []
        name, what = step_name(item.step), item.step.what
        progress = _progress(plan.verb, index, item.step, emit, interrupted)
        emit(Event(EventKind.STARTED, plan.verb, index, name, what))
        began = world.clock.monotonic()
        try:
            progress(what, 0, 0)
            if not committed:
                undo.append(item)
            _do(item.step, world, progress)
        except OrchError as error:
            emit(Event(EventKind.FAILED, plan.verb, index, name, what, error.message))
            _take_back(plan, undo, world, emit)
            raise _verdict(plan, item, error, undo if not committed else None) from error
        emit(Event(EventKind.DONE, plan.verb, index, name, what, seconds=world.clock.monotonic() - began))
    emit(Event(EventKind.FINISHED, plan.verb, len(plan.items)))


def _progress(verb: str, index: int, step: Step, emit: Emit, interrupted: Callable[[], bool]) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        if interrupted():
            raise Interrupted()
        if total or split_part(what)[1]:
            emit(Event(EventKind.PROGRESS, verb, index, step_name(step), what, done=done, total=total))

    return progress


def _take_back(plan: Plan, done: list[Action], world: World, emit: Emit) -> None:
    """Undo in reverse, the failed step first: it may have got half-way. Undoing is not interruptible, and what cannot
    be undone does not keep the rest from it."""
    stranded: list[tuple[Step, OrchError]] = []
    for step in (step for action in reversed(done) for step in action.undo):
        emit(Event(EventKind.UNDOING, plan.verb, step=step_name(step), what=step.what))
        try:
            _do(step, world, silent)
        except OrchError as error:
            stranded.append((step, error))
        else:
            emit(Event(EventKind.UNDONE, plan.verb, step=step_name(step), what=step.what))
    if stranded:
        step, cause = stranded[0]
        again = "orch up" if plan.verb == "rollback" else "the same command again"
        raise StepStranded(
            f"Could not {step.what} while undoing: {cause.message}",
            hint=f"Run {again}, or orch down, when the cause is gone.",
            detail="\n".join([*(f"not undone: {other.what}" for other, _ in stranded[1:]), cause.detail]).strip(),
        ) from cause


def _verdict(plan: Plan, failed: Action, error: OrchError, undone: list[Action] | None) -> OrchError:
    """What to raise; `undone` is None after the commit point."""
    what = f"Could not {failed.step.what}: {error.message}"
    # Rolling back twice goes forward again; the record says already where to.
    again = "orch up finishes it." if plan.verb == "rollback" else "Run the same command again to finish it."
    done = "The switch is done and serves. " if plan.commit else ""
    if undone is None:
        if isinstance(error, Interrupted):
            return Interrupted("Interrupted after the switch." if plan.commit else error.message, hint=again)
        return StepStranded(what, hint=f"{done}{again} {error.hint}".strip(), detail=error.detail)
    if isinstance(error, Interrupted):
        taken_back = any(action.undo for action in undone)
        return Interrupted("Interrupted; what had been started was taken back." if taken_back else error.message)
    if not any(action.undo for action in undone if action is not failed):
        return error
    return StepFailed(what, hint=error.hint, detail=error.detail)


def _do(step: Step, world: World, progress: Progress) -> None:
    match step:
        case FetchWeights():
            _fetch_weights(step, world, progress)
        case BuildArtifact():
            _build(step, world, progress)
        case BuildTogether(builds):
            _build_together(builds, world, progress)
        case FetchArtifact():
            _fetch_artifact(step, world, progress)
        case ImportAdapter(_, origin, key, digest):
            _import_adapter(Path(origin), key, digest, world, progress)
        case EnsureEnvironment(spec):
            world.environments.ensure(spec, progress)
        case PullImage(image):
            _pull_image(image, world, progress)
        case BuildImage(reference, base):
            world.images.build(reference, base, progress)
        case EnsureGateway(target, listen):
            _ensure_gateway(target, listen, world, progress)
        case WriteFile(target, instance, name, text):
            world.targets[target].write_file(instance, name, text)
        case EnsureEngine(deployment):
            _ensure_engine(deployment, world)
        case AwaitMemory(gpu, size):
            _await_memory(gpu, size, world, progress)
        case ImportArtifact(deployment):
            import_artifact(deployment, world, progress)
        case AwaitReady(deployment, timeout_s):
            await_ready(deployment, timeout_s, world, progress)
        case LoadAdapter(deployment, adapter):
            requests = ENGINES[deployment.engine].load_requests(deployment, adapter, digests(world))
            ask_engine(deployment, requests, world, progress, gone_is_fine=False)
            _relabel(deployment, world)
        case UnloadAdapter(deployment, name, before):
            requests = ENGINES[deployment.engine].unload_requests(before, name)
            ask_engine(deployment, requests, world, progress, gone_is_fine=True)
            _relabel(deployment, world)
        case RecordDesired(profile, desired):
            world.records.record(profile, desired)
        case SetRoute(target, owner, routes):
            urls = {instance.name: instance.url for instance in world.targets[target].observe()}
            world.gateway.set_routes(owner, tuple(replace(r, url=urls.get(r.backend, r.url)) for r in routes))
        case RemoveRoute(owner):
            world.gateway.remove_routes(owner)
        case VerifyRoute(names):
            verify_routes(names, world, progress)
        case Drain(instance, timeout_s):
            if world.gateway.status() is not None:
                world.gateway.drain(instance, timeout_s, cancel=True, progress=progress)
        case StopEngine(target, instance):
            world.targets[target].stop(instance, progress)
        case RemoveEngine(target, instance):
            world.targets[target].remove(instance)
        case _:
            assert_never(step)


def _fetch_weights(step: FetchWeights, world: World, progress: Progress) -> None:
    with world.store.building(step.key, progress) as building:
        if building.manifest is None:
            snapshot = world.hub.snapshot(step.source, timeout=30.0)
            building.expect(snapshot.size)
            files = world.hub.fetch(snapshot, building.work, progress)
            building.finish(Recipe.WEIGHTS, str(step.source), {}, files, progress)


def _build(step: BuildArtifact, world: World, progress: Progress) -> None:
    with world.store.building(step.key, progress, fresh=True) as building:
        if building.manifest is None:
            base = Path(step.base_path) if step.base_path is not None else None
            source = Path(step.source_path)
            with world.store.reading(base or source, progress):
                building.expect(world.builder.expected_bytes(step.recipe, source), about=True)
                world.builder.build(step.recipe, source, building.work, progress, base, step.calibration)
            versions = world.builder.versions(step.recipe)
            if step.calibration is not None:
                versions["environment"] = step.calibration.environment.name
            building.finish(step.recipe, step.source, versions, None, progress)


def _build_together(builds: tuple[BuildArtifact, ...], world: World, progress: Progress) -> None:
    with ExitStack() as stack:
        # In the order of their keys: two processes that build the same ones would else wait for each other.
        turns = {
            build: stack.enter_context(world.store.building(build.key, progress, fresh=True))
            for build in sorted(builds, key=lambda build: build.key)
        }
        left = {build: turn for build, turn in turns.items() if turn.manifest is None}
        source = Path(builds[0].source_path)
        with world.store.reading(source, progress):
            for build, turn in left.items():
                turn.expect(world.builder.expected_bytes(build.recipe, source), about=True)
            if left:
                works = {build.recipe: turn.work for build, turn in left.items()}
                world.builder.build_together(works, source, progress)
        for build, turn in left.items():
            turn.finish(build.recipe, build.source, world.builder.versions(build.recipe), None, progress)


def _fetch_artifact(step: FetchArtifact, world: World, progress: Progress) -> None:
    with world.store.building(step.key, progress) as building:
        if building.manifest is not None:
            return
        if step.hub is not None:
            snapshot = world.hub.snapshot(step.hub, timeout=30.0, names=[step.file] if step.file else None)
            building.expect(snapshot.size)
            files = world.hub.fetch(snapshot, building.work, progress)
            builder = {"repo": str(snapshot.source)}
        else:
            files = world.builder.copy_in(Path(step.path), building.work, building.expect, progress)
            builder = {}
        try:
            files = world.builder.settle(step.recipe, building.work, files)
        except SourceError:
            # However often it comes, it is not what it should be.
            building.discard()
            raise
        building.finish(step.recipe, step.source, builder, files, progress)


def _import_adapter(origin: Path, key: str, digest: str, world: World, progress: Progress) -> None:
    with world.store.building(key, progress, fresh=True) as building:
        if building.manifest is None:
            building.expect(world.builder.expected_bytes(Recipe.ADAPTER, origin))
            world.builder.build(Recipe.ADAPTER, origin, building.work, progress)
            building.finish(Recipe.ADAPTER, f"dir:{digest}", {}, None, progress)


def _ensure_gateway(target: str, listen: str, world: World, progress: Progress) -> None:
    before = instance_of(target, GATEWAY, world)
    launch = world.gateway_launch(target, listen)
    runs = before is not None and before.state is InstanceState.RUNNING
    # One that runs is put right as it is: another version of orch may have started it.
    world.targets[target].ensure(GATEWAY, before.launch if before is not None and runs else launch, listen)
    if runs and _hangs(world.gateway):
        # Its routes are on disk: a new process is the cure.
        progress("ending the gateway, which hangs", 0, 0)
        world.targets[target].stop(GATEWAY, progress)
        world.targets[target].ensure(GATEWAY, launch, listen)
    deadline = world.clock.monotonic() + GATEWAY_START_S
    while _hangs(world.gateway) or world.gateway.status() is None:
        instance = instance_of(target, GATEWAY, world)
        crashed = instance is None or instance.state is not InstanceState.RUNNING
        if crashed or world.clock.monotonic() > deadline:
            raise HostError(
                f"The gateway did not start at {listen}.",
                hint="Is the address taken?  ORCH_LISTEN=HOST:PORT chooses another one.",
                detail=world.targets[target].log_tail(GATEWAY, LOG_LINES),
            )
        progress("starting the gateway", 0, 0)
        world.clock.sleep(POLL_S / 4)


def _hangs(gateway: Gateway) -> bool:
    """It takes a question and does not answer it; not the same as nobody being there."""
    try:
        gateway.status()
    except HostError:
        return True
    return False


def _ensure_engine(deployment: Deployment, world: World) -> None:
    label = deployment.model_dump_json()
    world.targets[deployment.target].ensure(deployment.instance, deployment.launch, label)


def _relabel(deployment: Deployment, world: World) -> None:
    """What the next restart starts with is as what runs now: its adapters stand in its files, or in its launch."""
    target = world.targets[deployment.target]
    for name, text in deployment.written:
        target.write_file(deployment.instance, name, text)
    target.relabel(deployment.instance, deployment.launch, deployment.model_dump_json())


def _pull_image(image: ImagePin, world: World, progress: Progress) -> None:
    facts = world.images.pull(image, progress)
    if Accelerator.CUDA in image.accelerators and (reason := driver_cannot(image, facts, world.host())):
        hint = "An image that is built with an older CUDA: orch images ls; or a newer NVIDIA driver."
        raise HostError(f"{image.name} cannot run here: {reason}.", hint=hint)


def _await_memory(gpu: str, size: int, world: World, progress: Progress) -> None:
    """The driver gives back what a dead process held some seconds later; nobody tells when."""
    deadline = world.clock.monotonic() + MEMORY_S
    while True:
        seen = next((one for one in world.host().gpus if one.uuid == gpu), None)
        if seen is None:
            raise HostError(f"GPU {gpu} is there no more.", hint="nvidia-smi should show it.")
        if seen.memory_free >= size:
            return
        if world.clock.monotonic() > deadline:
            users = ", ".join(str(user) for user in seen.users) or "no process that the driver knows"
            raise HostError(
                f"{size / 2**30:.1f} GiB of {seen.name} are needed, and {seen.memory_free / 2**30:.1f} are free after "
                f"{MEMORY_S:.0f} s.",
                hint=f"It is held by {users}.",
            )
        progress("waiting for GPU memory", 0, 0)
        world.clock.sleep(POLL_S)
