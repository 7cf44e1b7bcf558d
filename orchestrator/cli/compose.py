"""What `orch render compose` makes: a compose project of an engine and the gateway, as texts by path."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import HostError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Deployment, Desired
    from orchestrator.core.launch import Launch
    from orchestrator.core.observed import Observed
    from orchestrator.core.resolved import Resolved

COMPOSE = "compose.yaml"
MARK = "# Written by orch "


@dataclass(frozen=True)
class Project:
    """Texts by path, the compose file first; `gateway_base` is what the gateway's image is made on."""

    files: dict[str, str]
    gateway_base: str


def compose_project(session: Session, desired: Desired, observed: Observed) -> Project:
    """The project of what is wanted; works without a daemon and before anything is downloaded."""
    from orchestrator import resources
    from orchestrator.core import compose
    from orchestrator.engines import ENGINES

    resolved = _resolved(session, desired, observed)
    deployment = resolved.deployment
    listen = _listen(session, observed)
    reference, base = session.gateway_image()
    at = compose.place(f"{session.settings.data} {deployment.profile} {deployment.engine}")
    sheet = ENGINES[deployment.engine]
    loading = None
    texts = {compose.file_of(compose.ENGINE, name): text for name, text in deployment.written}
    if deployment.own_store:
        loading = compose.loading_launch(deployment.launch, reference, sheet.liveness_path())
        requests = [asdict(one) for one in sheet.import_requests(deployment, compose.digest_mark)]
        asked = json.dumps(requests, indent=1, ensure_ascii=False) + "\n"
        texts[compose.file_of(compose.LOADING, compose.REQUESTS)] = asked
        script = resources.render_template("docker/import.py.j2", {})
        texts[compose.file_of(compose.LOADING, compose.SCRIPT)] = script
    texts[compose.file_of(compose.GATEWAY, compose.ROUTES)] = compose.routes_text(resolved.routes, at)
    user = f"{os.getuid()}:{os.getgid()}"
    body = compose.document(deployment.launch, loading, _gateway(session, listen), user, at)
    models = _models(deployment)
    keys = session.settings.keys
    values = {
        "profile": deployment.profile,
        "engine": deployment.engine,
        "listen": listen,
        "models": models,
        "present": [path for path in models if Path(path).exists()],
        "own_store": deployment.own_store,
        "keys": str(keys) if keys.exists() else "",
        "at": at,
        "body": compose.yaml_text(body),
    }
    text = resources.render_template("docker/compose.yaml.j2", values)
    return Project({COMPOSE: text, **texts}, base if isinstance(base, str) else base.reference)


def write_project(project: Project, directory: Path) -> None:
    """The project's files, with the build context of the gateway's image and empty directories for what its
    containers write. HostError when another compose file is there, or when it cannot be written."""
    import tarfile

    from orchestrator.core import compose
    from orchestrator.drivers import files
    from orchestrator.drivers.docker.gateway_image import context

    present = directory / COMPOSE
    try:
        if present.exists() and not present.read_text("utf-8", errors="replace").startswith(MARK):
            raise HostError(f"{present} is there already, and orch did not write it.", hint="Choose another directory.")
        (directory / "cache").mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text in reversed(project.files.items()):
            # Like those of orch's own containers: for this user only.
            (directory / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(directory / path, text.encode(), mode=0o600)
        with tarfile.open(fileobj=context(project.gateway_base)) as tar:
            tar.extractall(directory / compose.GATEWAY, filter="data")
    except OSError as error:
        raise HostError(f"{directory} cannot be written: {error.strerror or error}.") from error


def _resolved(session: Session, desired: Desired, observed: Observed) -> Resolved:
    from orchestrator.cli.wishes import weights_facts
    from orchestrator.core.docker import DockerFacts
    from orchestrator.engines.resolve import fitted, resolve

    weights, shipped = weights_facts(session, desired.wish.profile), session.shipped(observed, desired.wish.profile)
    if session.docker_facts.problem:
        # Nobody tells how a GPU gets into a container there; in most places it is the NVIDIA toolkit's hook.
        shipped = replace(shipped, docker=DockerFacts(hook=True))
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, shipped) for a in desired.adapters)
    return resolve(desired.wish, adapters, weights, observed.host, shipped, to_run=False)


def _listen(session: Session, observed: Observed) -> str:
    """ORCH_LISTEN, else where the gateway listens now, else the default; with a key where others can reach it."""
    from orchestrator.cli.wishes import checked_address, is_loopback

    running = observed.gateway.instance
    here = running.label if running is not None and not session.settings.listen_given else ""
    listen = checked_address(here or session.settings.listen)
    if not is_loopback(listen) and not session.settings.keys.exists():
        raise PlanRefused(
            f"{listen} can be reached by others, so clients have to send an API key, and there is none yet.",
            hint=f"ORCH_API_KEY=KEY orch up --listen {listen} keeps one; or ORCH_LISTEN=127.0.0.1:PORT.",
        )
    return listen


def _gateway(session: Session, listen: str) -> Launch:
    """The gateway as orch starts it, but that nobody has to reach its admin socket: its routes stand in a file."""
    from orchestrator.core.launch import DOCKER

    launch = session.world.gateway_launch(DOCKER, listen)
    if launch.container is None:
        raise TypeError("the gateway's launch on Docker is one of a container")
    admin = str(session.settings.admin_socket)
    argv = tuple("{tmp}/gateway.sock" if word == admin else word for word in launch.argv)
    return replace(launch, argv=argv, container=replace(launch.container, writes=()))


def _models(deployment: Deployment) -> list[str]:
    """What its containers read of this machine."""
    as_gguf = deployment.model_path.endswith(".gguf")
    return [deployment.model_path, *(one.gguf if as_gguf else one.path for one in deployment.adapters)]
