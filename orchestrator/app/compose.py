"""What `orch render compose` makes: a compose project of an engine and the gateway, as texts by path."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import resources
from orchestrator.app import compose_file
from orchestrator.app.gateway import checked_address, is_loopback, wanted_limits, wanted_origins
from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.profiles import weights_facts
from orchestrator.app.resolution import observed_for
from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.docker import DockerFacts
from orchestrator.core.gateway_status import GATEWAY, Listener
from orchestrator.core.launch import DOCKER, Launch
from orchestrator.core.observed import Observed
from orchestrator.core.resolved import Resolved
from orchestrator.drivers import cgroups, files
from orchestrator.drivers.docker.gateway_image import context as image_context
from orchestrator.engines import ENGINES
from orchestrator.engines.prerequisites import fitted
from orchestrator.engines.resolve import resolve
from orchestrator.errors import HostError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

COMPOSE = "compose.yaml"
MARK = "# Written by orch "


@dataclass(frozen=True)
class Project:
    """Texts by path, the compose file first; `gateway_base` is what the gateway's image is made on."""

    files: dict[str, str]
    gateway_base: str


def compose_project(orch: Orchestrator, intent: Serve) -> Project:
    """The project of what is asked for; works without a daemon and before anything is downloaded."""
    observed = orch.observe()
    desired = desired_for(orch, intent, observed)
    with_images = sorted(name for name, pin in orch.pins.items() if pin.docker)
    if desired.spec.engine not in with_images:
        raise PlanRefused(
            f"{desired.spec.engine} has no image, and a compose file is of containers.",
            hint=f"Engines that have one: {', '.join(with_images)}. orch render compose ENGINE",
        )
    observed = observed_for(orch, desired, observed)
    resolved = _resolved(orch, desired, observed)
    deployment = resolved.deployment
    listen = _listen(orch, observed)
    reference, base = orch.gateway_image()
    at = compose_file.place(f"{orch.settings.data} {deployment.profile} {deployment.engine}")
    sheet = ENGINES[deployment.engine]
    loading = None
    texts = {compose_file.file_of(compose_file.ENGINE, name): text for name, text in deployment.written}
    if deployment.own_store:
        loading = compose_file.loading_launch(deployment.launch, reference, sheet.liveness_path())
        # A project is written anew for another model too, over the same store: nothing there is taken for done.
        calls = (replace(one, done=None) for one in sheet.import_requests(deployment, compose_file.digest_mark))
        requests = [asdict(one) for one in calls]
        asked = json.dumps(requests, indent=1, ensure_ascii=False) + "\n"
        texts[compose_file.file_of(compose_file.LOADING, compose_file.REQUESTS)] = asked
        script = resources.render_template("docker/import.py.j2", {})
        texts[compose_file.file_of(compose_file.LOADING, compose_file.SCRIPT)] = script
    texts[compose_file.file_of(compose_file.GATEWAY, compose_file.ROUTES)] = compose_file.routes_text(
        resolved.routes, at
    )
    user = f"{os.getuid()}:{os.getgid()}"
    threads = cgroups.threads(orch.docker_facts.cpus or orch.host.cpus)
    body = compose_file.document(deployment.launch, loading, _gateway(orch, observed, listen), user, threads, at)
    models = _models(deployment)
    values = {
        "profile": deployment.profile,
        "engine": deployment.engine,
        "listen": listen,
        "models": models,
        "present": [path for path in models if Path(path).exists()],
        "own_store": deployment.own_store,
        "keys": str(orch.settings.keys) if orch.keys.read().keys else "",
        "at": at,
        "body": compose_file.yaml_text(body),
    }
    text = resources.render_template("docker/compose.yaml.j2", values)
    return Project({COMPOSE: text, **texts}, base if isinstance(base, str) else base.reference)


def write_project(project: Project, directory: Path) -> None:
    """The project's files, with the build context of the gateway's image and empty directories for what its
    containers write. HostError when another compose file is there, or when it cannot be written."""
    present = directory / COMPOSE
    try:
        if present.exists() and not present.read_text("utf-8", errors="replace").startswith(MARK):
            raise HostError(f"{present} already exists, and orch did not write it.", hint="Choose another directory.")
        (directory / "cache").mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text in reversed(project.files.items()):
            # Like those of orch's own containers: for this user only.
            (directory / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(directory / path, text.encode(), mode=0o600)
        with tarfile.open(fileobj=image_context(project.gateway_base)) as tar:
            tar.extractall(directory / compose_file.GATEWAY, filter="data")
    except OSError as error:
        raise HostError(f"{directory} cannot be written: {error.strerror or error}.") from error


def _resolved(orch: Orchestrator, desired: Desired, observed: Observed) -> Resolved:
    weights, context = weights_facts(orch, desired.spec.profile), orch.resolve_context(observed, desired.spec.profile)
    if orch.docker_facts.problem:
        # Nobody tells how a GPU gets into a container there; in most places it is the NVIDIA toolkit's hook.
        context = replace(context, docker=DockerFacts(hook=True))
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, context) for a in desired.adapters)
    return resolve(desired.spec, adapters, weights, observed.host, context, to_run=False)


def _listen(orch: Orchestrator, observed: Observed) -> str:
    """ORCH_LISTEN, else where the gateway listens now, else the default; with a key where others can reach it."""
    here = observed.gateway.listeners if not orch.settings.listen_given else ()
    listen = checked_address(here[0].address if here else orch.settings.listen)
    kept = orch.keys.read()
    if kept.keys and not orch.keys.written:
        raise PlanRefused(
            "The API keys are still stored as plain text.", hint="orch up --gateway stores their digests."
        )
    if not is_loopback(listen) and not kept.keys:
        raise PlanRefused(
            f"{listen} can be reached by others, so clients have to send an API key, and there is none yet.",
            hint="orch keys add NAME makes one; or ORCH_LISTEN=127.0.0.1:PORT.",
        )
    return listen


def _gateway(orch: Orchestrator, observed: Observed, listen: str) -> Launch:
    """The gateway as orch starts it, but that nobody has to reach its admin socket: its routes stand in a file."""
    origins = wanted_origins(orch, observed)
    limits = wanted_limits(orch, observed)
    launch = orch.gateway_launch(DOCKER, GATEWAY, (Listener(listen),), origins, limits, take_over=False)
    if launch.container is None:
        raise TypeError("the gateway's launch on Docker is one of a container")
    keys, asks = orch.settings.keys, bool(orch.keys.read().keys)
    argv = _with_option(launch.argv, "--admin", "{tmp}/gateway.sock")
    # Compose's engines are on a network of their own, and ask for nothing.
    argv = _with_option(argv, "--secrets", None)
    argv = argv if asks else _with_option(argv, "--key-file", None)
    reads = (str(keys.parent),) if asks else ()
    return replace(launch, argv=argv, container=replace(launch.container, reads=reads, writes=()))


def _with_option(argv: tuple[str, ...], option: str, value: str | None) -> tuple[str, ...]:
    """A command line with another value of an option, or (None) without it."""
    at = argv.index(option)
    return (*argv[:at], *((option, value) if value is not None else ()), *argv[at + 2 :])


def _models(deployment: Deployment) -> list[str]:
    """What its containers read of this machine."""
    as_gguf = deployment.model_path.endswith(".gguf")
    return [deployment.model_path, *(one.gguf if as_gguf else one.path for one in deployment.adapters)]
