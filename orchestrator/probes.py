"""Asking engines and the gateway, while a plan runs: is it ready, is it ours, is it alive, does it do as it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from orchestrator.core.deployment import Deployment
from orchestrator.core.launch import Instance, InstanceState
from orchestrator.core.pins import Accelerator
from orchestrator.core.progress import Progress
from orchestrator.drivers.base import Reply, World
from orchestrator.engines import ENGINES
from orchestrator.engines.base import Digest, EngineCall, EngineSheet
from orchestrator.errors import HostError

POLL_S = 0.2
ANSWER_S = 120.0
IMPORT_S = 3600.0
# How often a request of an import is made that was refused for what may have passed.
TRIES = 3
# Until a server takes commands; that its model is loaded comes later.
ALIVE_S = 60.0
LOG_LINES = 30
# How long a keeper may take to say how an engine ended, besides the time that what is left of it has to end.
RECORD_S = 5.0
HELLO = "Hello!"


def question_of(text: str, chats: bool) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask a model something: in a chat, or for a completion where it cannot chat."""
    if chats:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {"prompt": text}


def instance_of(target: str, name: str, world: World) -> Instance | None:
    return next((instance for instance in world.targets[target].observe() if instance.name == name), None)


def digests(world: World) -> Digest:
    """The SHA-256 of files of the store, from the manifests."""

    def digest(path: str) -> str:
        for manifest in world.store.all():
            for file in manifest.files:
                if str(world.store.path(manifest.key) / file.path) == path:
                    return file.sha256
        raise HostError(f"{path} is not in the store.", hint="orch up makes it again.")

    return digest


def import_artifact(deployment: Deployment, world: World, progress: Progress) -> None:
    sheet = ENGINES[deployment.engine]

    def lives(instance: Instance, _: float) -> bool:
        return _ok(world.http.get(instance.url + sheet.liveness_path(), 5.0, instance.secret))

    _watch(deployment, ALIVE_S, world, progress, lives)
    requests = sheet.import_requests(deployment, digests(world))
    ask_engine(deployment, requests, world, progress, gone_is_fine=False)


def await_ready(
    deployment: Deployment, timeout_s: float, proved: Collection[str], world: World, progress: Progress
) -> None:
    """Ready means that the served name and each adapter that is not `proved` answered one real token, that the model is
    ours, and lives."""
    sheet = ENGINES[deployment.engine]
    asked = (None, *(adapter for adapter in deployment.adapters if adapter.name not in proved))
    to_ask = [(sheet.upstream(deployment, one), sheet.patch(deployment, one)) for one in asked]

    def answers(instance: Instance, left_s: float) -> bool:
        identity = world.http.get(instance.url + sheet.identity_path(), 5.0, instance.secret)
        if identity is None or identity.status != 200 or not sheet.recognises(deployment, identity.json):
            return False
        for name, patch in to_ask:
            path, question = question_of(HELLO, deployment.chats)
            body = {"model": name, **question, "max_tokens": 1, **patch}
            # The first one may load the model, and Ollama gives a load up when nobody waits for it any more.
            url = f"{instance.url}{path}"
            reply = world.http.post(url, body, max(left_s, 1.0), progress, instance.secret)
            if reply is not None and 400 <= reply.status < 500:
                raise HostError(f"{deployment.instance} refuses a first request to {name}.", detail=reply.text[:2000])
            if not _ok(reply):
                return False
        return _on_its_gpu(deployment, instance, world)

    _watch(deployment, timeout_s, world, progress, answers)


def _on_its_gpu(deployment: Deployment, instance: Instance, world: World) -> bool:
    """An engine that was given a GPU and computes without it says so only when it is asked; False: it did not say."""
    sheet = ENGINES[deployment.engine]
    if deployment.accelerator is Accelerator.CPU or not sheet.gpu_path():
        return True
    reply = world.http.get(instance.url + sheet.gpu_path(), 5.0, instance.secret)
    if reply is None or reply.status != 200:
        return False
    if problem := sheet.not_on_gpu(reply.json):
        raise HostError(
            f"{deployment.instance} does not compute on the GPU: {problem}.",
            hint="Does `docker run --rm --gpus all` show it with nvidia-smi? Is other GPU memory in use? The CPU is "
            "asked for with CUDA_VISIBLE_DEVICES= (empty).",
            detail=world.targets[deployment.target].log_tail(deployment.instance, LOG_LINES),
        )
    return True


def _watch(
    deployment: Deployment, timeout_s: float, world: World, progress: Progress, good: Callable[[Instance, float], bool]
) -> None:
    """Probe, process and deadline together: a dead engine fails at once, with its telling line. The probe is told how
    many seconds are left."""
    deadline = world.clock.monotonic() + timeout_s
    first = instance_of(deployment.target, deployment.instance, world)
    while True:
        now = instance_of(deployment.target, deployment.instance, world)
        if now is None or first is None:
            raise HostError(f"{deployment.instance} is gone.", hint="Somebody else stopped it; run the command again.")
        if now.state is not InstanceState.RUNNING or now.last_exit != first.last_exit:
            raise _died(deployment, _recorded(deployment, now, world, progress), world)
        if now.port is not None and good(now, deadline - world.clock.monotonic()):
            return
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"{deployment.instance} did not answer within {timeout_s:.0f} s.",
                hint="A larger --timeout gives it longer; orch up --fresh starts a new one beside one that hangs.",
                detail=world.targets[deployment.target].log_tail(deployment.instance, LOG_LINES),
            )
        progress(f"waiting for {deployment.instance}", 0, 0)
        world.clock.sleep(POLL_S)


def _recorded(deployment: Deployment, instance: Instance, world: World, progress: Progress) -> Instance:
    """The same once its keeper, which first ends what is left of it, has written down how it ended."""
    deadline = world.clock.monotonic() + deployment.launch.stop_grace_s + RECORD_S
    while instance.state is InstanceState.BACKOFF and instance.last_exit is None:
        if world.clock.monotonic() > deadline:
            break
        progress(f"waiting for {deployment.instance}", 0, 0)
        world.clock.sleep(POLL_S)
        instance = instance_of(deployment.target, deployment.instance, world) or instance
    return instance


def _died(deployment: Deployment, instance: Instance, world: World) -> HostError:
    log = world.targets[deployment.target].log_tail(deployment.instance, 2000)
    ended = instance.last_exit
    detail = "\n".join(log.splitlines()[-LOG_LINES:])
    if ended is not None and ended.memory_limit is not None:
        # Its log ends anywhere then, and tells nothing.
        hint = _memory_hint(deployment, ended.memory_limit)
        return HostError(f"{deployment.instance} {ended}.", hint=hint, detail=detail)
    failure = ENGINES[deployment.engine].failure(log)
    return HostError(
        f"{deployment.instance} {ended or 'is not running'}: {failure.line or 'its log says nothing'}",
        hint=failure.hint or f"All of its log: orch logs {deployment.instance}",
        detail=detail,
    )


def _memory_hint(deployment: Deployment, limit: int) -> str:
    settings, container = ENGINES[deployment.engine].hold_less(deployment.accelerator), deployment.launch.container
    more = "free some of this machine's memory"
    if container is not None and container.memory_mib is not None:
        more = "raise serving.memory_mib"
    elif container is None and limit:
        more = "raise the limit of the control group that it runs in"
    hint = f"Lower {settings} in the profile, or {more}." if settings else f"{more[0].upper()}{more[1:]}."
    return f"{hint} All of its log: orch logs {deployment.instance}"


def _ok(reply: Reply | None) -> bool:
    return reply is not None and reply.status == 200


def ask_engine(
    deployment: Deployment, requests: tuple[EngineCall, ...], world: World, progress: Progress, *, gone_is_fine: bool
) -> None:
    instance = instance_of(deployment.target, deployment.instance, world)
    if instance is None or instance.state is not InstanceState.RUNNING:
        if gone_is_fine:
            return
        raise HostError(f"{deployment.instance} is not running.", hint="orch status shows more.")
    sheet = ENGINES[deployment.engine]
    for request in requests:
        reply = _answer_to(request, instance, sheet, world, progress)
        if reply is None:
            raise HostError(f"{deployment.instance} does not answer.", hint="orch status shows more.")
        if gone_is_fine and reply.status == 404:
            continue
        if said := sheet.refusal(reply.status, reply.text):
            raise HostError(f"{deployment.instance} refused: {said}", hint=sheet.failure(said).hint)
        if spent := sheet.spent(request, reply.text):
            world.targets[deployment.target].remove_file(deployment.instance, spent)


def _answer_to(
    request: EngineCall, instance: Instance, sheet: EngineSheet, world: World, progress: Progress
) -> Reply | None:
    """What a request is answered, or what makes it needless; made again after a refusal that may pass."""
    for left in reversed(range(TRIES)):
        needless = (request.done, EngineCall("HEAD", request.unless) if request.unless else None)
        for call in filter(None, needless):
            url = instance.url + call.path
            reply = world.http.send(call.method, url, call.body, ANSWER_S, progress, instance.secret)
            if _ok(reply):
                return reply
        content = Path(request.file) if request.file else request.body
        url = instance.url + request.path
        reply = world.http.send(request.method, url, content, IMPORT_S, progress, instance.secret)
        if reply is None or not left or not sheet.passes(sheet.refusal(reply.status, reply.text)):
            return reply
        world.clock.sleep(POLL_S)
    raise AssertionError("the last try returns")


def spare_of(deployment: Deployment, world: World) -> tuple[str, ...]:
    """What lies in the engine's own store and is of no adapter of it; nothing where it does not tell."""
    sheet, instance = ENGINES[deployment.engine], instance_of(deployment.target, deployment.instance, world)
    if instance is None:
        return ()
    reply = world.http.get(instance.url + sheet.identity_path(), 5.0, instance.secret)
    return sheet.spare(deployment, reply.json) if reply is not None and reply.status == 200 else ()


def verify_routes(names: tuple[str, ...], timeout_s: float, world: World, progress: Progress) -> None:
    status = world.gateway.status()
    if status is None:
        raise HostError("The gateway does not answer.", hint="orch logs gateway")
    for done, name in enumerate(names):
        progress("asking through the gateway", done, len(names))
        route = status.routes.find(name)
        path, question = question_of(HELLO, route is None or route.chats)
        body = {"model": name, **question, "max_tokens": 1}
        # Of its own for each: another gateway may have taken over meanwhile.
        key = world.gateway.credential()
        reply = world.http.post(f"http://{status.listen}{path}", body, timeout_s, progress, key)
        if not _ok(reply):
            said = reply.text[:500] if reply is not None else "nothing"
            raise HostError(f"{name} does not answer through the gateway.", detail=f"It said: {said}")
