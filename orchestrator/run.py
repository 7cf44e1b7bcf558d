"""Plan x World to Events: does the steps in order, and takes them back when one fails before the commit point.

One match over Step, and the whole of "how it is done" is the body of a case. Deciding has happened in core.plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment
from orchestrator.core.events import Event, EventKind, step_name
from orchestrator.core.images import driver_cannot
from orchestrator.core.launch import Instance, InstanceState
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.progress import Progress, silent
from orchestrator.core.steps import (
    GATEWAY,
    Action,
    AwaitMemory,
    AwaitReady,
    BuildArtifact,
    BuildImage,
    Drain,
    EnsureEngine,
    EnsureEnvironment,
    EnsureGateway,
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
from orchestrator.drivers.base import Gateway, Reply, World
from orchestrator.engines import ENGINES
from orchestrator.engines.base import Digest, Exchange
from orchestrator.errors import HostError, Interrupted, OrchError, StepFailed, StepStranded

Emit = Callable[[Event], None]

POLL_S = 0.2
ANSWER_S = 120.0
GATEWAY_START_S = 30.0
IMPORT_S = 3600.0
# Until a server takes commands; that its model is loaded comes later.
ALIVE_S = 60.0
MEMORY_S = 60.0
LOG_LINES = 30
HELLO = [{"role": "user", "content": "Hello!"}]


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
        if total:
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
            _import_artifact(deployment, world, progress)
        case AwaitReady(deployment, timeout_s):
            _await_ready(deployment, timeout_s, world, progress)
        case LoadAdapter(deployment, adapter):
            requests = ENGINES[deployment.engine].load_requests(deployment, adapter, _digests(world))
            _ask_engine(deployment, requests, world, progress, gone_is_fine=False)
            _relabel(deployment, world)
        case UnloadAdapter(deployment, name, before):
            requests = ENGINES[deployment.engine].unload_requests(before, name)
            _ask_engine(deployment, requests, world, progress, gone_is_fine=True)
            _relabel(deployment, world)
        case RecordDesired(profile, desired):
            world.records.record(profile, desired)
        case SetRoute(target, owner, routes):
            urls = {instance.name: instance.url for instance in world.targets[target].observe()}
            world.gateway.set_routes(owner, tuple(replace(r, url=urls.get(r.backend, r.url)) for r in routes))
        case RemoveRoute(owner):
            world.gateway.remove_routes(owner)
        case VerifyRoute(names):
            _verify_routes(names, world, progress)
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
            files = world.hub.fetch(snapshot, building.work, progress)
            building.finish(Recipe.WEIGHTS, str(step.source), {}, files, progress)


def _build(step: BuildArtifact, world: World, progress: Progress) -> None:
    with world.store.building(step.key, progress, fresh=True) as building:
        if building.manifest is None:
            base = Path(step.base_path) if step.base_path is not None else None
            world.builder.build(step.recipe, Path(step.source_path), building.work, progress, base)
            versions = world.builder.versions(step.recipe)
            building.finish(step.recipe, step.source, versions, None, progress)


def _import_adapter(origin: Path, key: str, digest: str, world: World, progress: Progress) -> None:
    with world.store.building(key, progress, fresh=True) as building:
        if building.manifest is None:
            world.builder.build(Recipe.ADAPTER, origin, building.work, progress)
            building.finish(Recipe.ADAPTER, f"dir:{digest}", {}, None, progress)


def _instance(target: str, name: str, world: World) -> Instance | None:
    return next((instance for instance in world.targets[target].observe() if instance.name == name), None)


def _ensure_gateway(target: str, listen: str, world: World, progress: Progress) -> None:
    before = _instance(target, GATEWAY, world)
    launch = world.gateway_launch(target, listen)
    world.targets[target].ensure(GATEWAY, launch, listen)
    if before is not None and before.state is InstanceState.RUNNING and _hangs(world.gateway):
        # Its routes are on disk: a new process is the cure.
        progress("ending the gateway, which hangs", 0, 0)
        world.targets[target].stop(GATEWAY, progress)
        world.targets[target].ensure(GATEWAY, launch, listen)
    deadline = world.clock.monotonic() + GATEWAY_START_S
    while _hangs(world.gateway) or world.gateway.status() is None:
        instance = _instance(target, GATEWAY, world)
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


def _digests(world: World) -> Digest:
    """The SHA-256 of files of the store, from the manifests."""

    def digest(path: str) -> str:
        for manifest in world.store.all():
            for file in manifest.files:
                if str(world.store.path(manifest.key) / file.path) == path:
                    return file.sha256
        raise HostError(f"{path} is not in the store.", hint="orch up makes it again.")

    return digest


def _import_artifact(deployment: Deployment, world: World, progress: Progress) -> None:
    sheet = ENGINES[deployment.engine]
    _watch(deployment, ALIVE_S, world, progress, lambda url: _ok(world.http.get(url + sheet.liveness_path(), 5.0)))
    requests = sheet.import_requests(deployment, _digests(world))
    _ask_engine(deployment, requests, world, progress, gone_is_fine=False)


def _await_ready(deployment: Deployment, timeout_s: float, world: World, progress: Progress) -> None:
    """Ready means that the served name and each adapter answered one real token, that the model is ours, and lives."""
    sheet = ENGINES[deployment.engine]
    to_ask = [(sheet.upstream(deployment, one), sheet.patch(deployment, one)) for one in (None, *deployment.adapters)]

    def answers(url: str) -> bool:
        identity = world.http.get(url + sheet.identity_path(), 5.0)
        if identity is None or identity.status != 200 or not sheet.recognises(deployment, identity.json):
            return False
        for name, patch in to_ask:
            body = {"model": name, "messages": HELLO, "max_tokens": 1, **patch}
            reply = world.http.post(url + "/v1/chat/completions", body, ANSWER_S, progress)
            if reply is not None and 400 <= reply.status < 500:
                raise HostError(f"{deployment.instance} refuses a first chat with {name}.", detail=reply.text[:2000])
            if not _ok(reply):
                return False
        _refuse_cpu(deployment, url, world)
        return True

    _watch(deployment, timeout_s, world, progress, answers)


def _refuse_cpu(deployment: Deployment, url: str, world: World) -> None:
    """An engine that was given a GPU and computes without it says so only when it is asked."""
    sheet = ENGINES[deployment.engine]
    if deployment.accelerator is Accelerator.CPU or not sheet.gpu_path():
        return
    reply = world.http.get(url + sheet.gpu_path(), 5.0)
    if reply is not None and (problem := sheet.not_on_gpu(reply.json)):
        raise HostError(
            f"{deployment.instance} does not compute on the GPU: {problem}.",
            hint="Does `docker run --rm --gpus all` show it with nvidia-smi? Is other GPU memory in use? The CPU is "
            "asked for with CUDA_VISIBLE_DEVICES= (empty).",
            detail=world.targets[deployment.target].log_tail(deployment.instance, LOG_LINES),
        )


def _watch(
    deployment: Deployment, timeout_s: float, world: World, progress: Progress, good: Callable[[str], bool]
) -> None:
    """Probe, process and deadline together: a dead engine fails at once, with its telling line."""
    deadline = world.clock.monotonic() + timeout_s
    first = _instance(deployment.target, deployment.instance, world)
    while True:
        now = _instance(deployment.target, deployment.instance, world)
        if now is None or first is None:
            raise HostError(f"{deployment.instance} is gone.", hint="Somebody else stopped it; run the command again.")
        if now.state is not InstanceState.RUNNING or now.last_exit != first.last_exit:
            raise _died(deployment, now, world)
        if now.port is not None and good(now.url):
            return
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"{deployment.instance} did not answer within {timeout_s:.0f} s.",
                hint="A larger --timeout gives it longer; orch up --fresh starts a new one beside one that hangs.",
                detail=world.targets[deployment.target].log_tail(deployment.instance, LOG_LINES),
            )
        progress(f"waiting for {deployment.instance}", 0, 0)
        world.clock.sleep(POLL_S)


def _died(deployment: Deployment, instance: Instance, world: World) -> HostError:
    log = world.targets[deployment.target].log_tail(deployment.instance, 2000)
    failure = ENGINES[deployment.engine].failure(log)
    how = str(instance.last_exit) if instance.last_exit is not None else "is not running"
    return HostError(
        f"{deployment.instance} {how}: {failure.line or 'it left no word in its log'}",
        hint=failure.hint or f"All of its log: orch logs {deployment.instance}",
        detail="\n".join(log.splitlines()[-LOG_LINES:]),
    )


def _ok(reply: Reply | None) -> bool:
    return reply is not None and reply.status == 200


def _ask_engine(
    deployment: Deployment, requests: tuple[Exchange, ...], world: World, progress: Progress, *, gone_is_fine: bool
) -> None:
    instance = _instance(deployment.target, deployment.instance, world)
    if instance is None or instance.state is not InstanceState.RUNNING:
        if gone_is_fine:
            return
        raise HostError(f"{deployment.instance} is not running.", hint="orch status tells more.")
    sheet = ENGINES[deployment.engine]
    for request in requests:
        if request.unless and _ok(world.http.send("HEAD", instance.url + request.unless, None, ANSWER_S, progress)):
            continue
        content = Path(request.file) if request.file else request.body
        reply = world.http.send(request.method, instance.url + request.path, content, IMPORT_S, progress)
        if reply is None:
            raise HostError(f"{deployment.instance} does not answer.", hint="orch status tells more.")
        if gone_is_fine and reply.status == 404:
            continue
        if said := sheet.refusal(reply.status, reply.text):
            raise HostError(f"{deployment.instance} refused: {said}")


def _verify_routes(names: tuple[str, ...], world: World, progress: Progress) -> None:
    status = world.gateway.status()
    if status is None:
        raise HostError("The gateway does not answer.", hint="orch logs gateway")
    for done, name in enumerate(names):
        progress("asking through the gateway", done, len(names))
        body = {"model": name, "messages": HELLO, "max_tokens": 1}
        reply = world.front.post(f"http://{status.listen}/v1/chat/completions", body, ANSWER_S, progress)
        if not _ok(reply):
            said = reply.text[:500] if reply is not None else "nothing"
            raise HostError(f"{name} does not answer through the gateway.", detail=f"It said: {said}")
