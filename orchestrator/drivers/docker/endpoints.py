"""Which Docker daemon is meant: DOCKER_HOST says it; else what runs stays with its daemon; else it is that of the
context in use, found as Docker's own client does:

    CONFIG/config.json                          currentContext, unless DOCKER_CONTEXT names another
    CONFIG/contexts/meta/SHA256(NAME)/meta.json Endpoints.docker.Host, as DOCKER_HOST would be

CONFIG is DOCKER_CONFIG, else ~/.docker. A config.json that cannot be read is passed over, as that client does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.drivers.files import read_json, write_json
from orchestrator.errors import HostError

SOCKET = "unix:///var/run/docker.sock"
# The context that there always is: the system's daemon.
DEFAULT = "default"
KEPT = "daemon.json"


@dataclass(frozen=True)
class Endpoint:
    """Where a daemon is, `host` as in DOCKER_HOST, and who says so; `problem`: why that cannot be found out."""

    host: str = SOCKET
    said_by: str = "DOCKER_HOST"
    problem: str = ""


@dataclass(frozen=True)
class Kept:
    """The daemon that has a data directory's containers: where it was, and its own ID (empty: not known)."""

    host: str
    id: str = ""


def meant(docker_host: str | None, context: str | None, config: Path | None, containers: Path) -> Endpoint:
    """The daemon that is meant, by DOCKER_HOST, DOCKER_CONTEXT, Docker's own directory, and the directory of what runs
    in containers."""
    if docker_host:
        return Endpoint(docker_host)
    if (present := kept(containers)) is not None:
        return Endpoint(present.host, f"{containers / KEPT}")
    return _of_context(context, config)


def kept(containers: Path) -> Kept | None:
    """The daemon that has what runs; None when nothing does. Before it was written down it was the system's, or
    DOCKER_HOST's."""
    if not containers.is_dir():
        return None
    fields = _fields(containers / KEPT)
    return Kept(str(fields.get("host") or SOCKET), str(fields.get("id") or ""))


def keep(containers: Path, daemon: Kept) -> None:
    """Write it down, before the first container is made. HostError when that fails."""
    if kept(containers) != daemon:
        write_json(containers / KEPT, {"host": daemon.host, "id": daemon.id})


def forget(containers: Path) -> None:
    """No container is left."""
    (containers / KEPT).unlink(missing_ok=True)


def _of_context(context: str | None, config: Path | None) -> Endpoint:
    if context:
        name, said_by = context, "DOCKER_CONTEXT"
    else:
        name = str(_fields(config / "config.json").get("currentContext") or DEFAULT) if config is not None else DEFAULT
        said_by = f"{config}/config.json"
    if name == DEFAULT:
        return Endpoint(said_by="the Docker context default")
    there = f"the Docker context {name}"
    if config is None:
        return Endpoint(
            "", there, f"The Docker context {name} cannot be found: there is neither HOME nor DOCKER_CONFIG."
        )
    meta = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    if not meta.exists():
        return Endpoint("", there, f"There is no Docker context {name}, which {said_by} names.")
    try:
        return Endpoint(str(_fields(meta)["Endpoints"]["docker"]["Host"]), there)
    except (LookupError, TypeError):
        return Endpoint("", there, f"The Docker context {name} cannot be used: {meta} names no daemon.")


def _fields(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or it cannot be read."""
    try:
        value = read_json(path)
    except (HostError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
