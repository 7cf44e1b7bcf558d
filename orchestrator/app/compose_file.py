"""What orch runs in containers as a compose file, made of the same ContainerSpec that the Docker driver sends. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.container import (
    DROPPED,
    LOG_FILES,
    LOG_SIZE,
    OPEN_FILES,
    PORT,
    RESTART,
    SECURITY,
    TMP,
    TMP_OPTIONS,
    ContainerSpec,
    HostContext,
    Mount,
    container_spec,
)
from orchestrator.core.docker import CDI
from orchestrator.core.gateway_status import GatewayState
from orchestrator.core.launch import DOCKER, Container, Launch
from orchestrator.core.routes import Backend, Route, RouteTable

# The parts of the project; a directory each under files/.
ENGINE, LOADING, GATEWAY = "engine", "import", "gateway"
# An image is run once while it is built, to see that it can be; for that it needs to reach nobody.
BUILD = {"context": f"./{GATEWAY}", "network": "none"}
NETWORK = "engines"
ROUTES, SCRIPT, REQUESTS = "routes.json", "import.py", "requests.json"
_PLAIN = re.compile(r"[A-Za-z/.][\w/.-]*")
_WORDS = frozenset({"y", "yes", "n", "no", "true", "false", "on", "off", "null", "~"})


@dataclass(frozen=True)
class Place:
    """The private network's subnet, and the fixed addresses on it of the engine and of what imports its model."""

    subnet: str
    engine: str
    loading: str


def place(name: str) -> Place:
    """The same for one name at all times: a route needs an address that stays, which Docker gives only in a subnet
    that was asked for."""
    digest = hashlib.sha256(name.encode()).digest()
    network = ipaddress.IPv4Network((bytes([10, 192 | digest[0] & 63, digest[1], digest[2] & 0xF8]), 29))
    return Place(str(network), str(network[2]), str(network[3]))


def file_of(part: str, name: str) -> str:
    """Where a file of a part lies, from the compose file."""
    return f"files/{part}/{name}"


def routes_text(routes: Iterable[Route], at: Place) -> str:
    """The gateway's routes.json: all of them lead to the engine."""
    url = f"http://{at.engine}:{PORT}"
    table = RouteTable(route.led_to(Backend(ENGINE, url, DOCKER)) for route in routes)
    return json.dumps(GatewayState(table).to_json(), indent=1) + "\n"


def loading_launch(engine: Launch, image: str, alive: str) -> Launch:
    """What puts the model into an engine's own store, in the gateway's image, which has Python: the script with its
    requests, the engine's address, and the path (`alive`) that answers as soon as it can take them."""
    if engine.container is None:
        raise ValueError("not a launch of a container")
    argv = ("{python}", f"{{dir}}/{SCRIPT}", f"{{dir}}/{REQUESTS}", f"http://{ENGINE}:{PORT}", alive)
    return Launch(argv, container=Container(image, reads=engine.container.reads))


def digest_mark(path: str) -> str:
    """Stands for the SHA-256 of a file in requests.json; the script computes it, so that a model that is made later
    will do."""
    return f"<sha256 of {path}>"


def document(
    engine: Launch, loading: Launch | None, gateway: Launch, user: str, threads: int, at: Place
) -> dict[str, Any]:
    """The compose file: `services` and `networks`. `loading` is for an engine that has a store of its own; `user` is
    UID:GID, `threads` is what {threads} stands for.

    Paths of files/ and cache/ are relative to the compose file, those of models are this machine's.
    """
    parts = {ENGINE: _part(ENGINE, engine, user, threads) | _networks(at.engine)}
    ready: dict[str, Any] = {"depends_on": [ENGINE]}
    if loading is not None:
        once = {"restart": "no", "depends_on": [ENGINE]}
        built = {"build": dict(BUILD)}
        parts[LOADING] = built | _part(LOADING, loading, user, threads) | once | _networks(at.loading)
        ready = {"depends_on": {LOADING: {"condition": "service_completed_successfully"}}}
    parts[GATEWAY] = {"build": dict(BUILD)} | _part(GATEWAY, gateway, user, threads) | ready
    network = {"internal": True, "ipam": {"config": [{"subnet": at.subnet}]}}
    return {"services": parts, "networks": {NETWORK: network}}


def _part(name: str, launch: Launch, user: str, threads: int) -> dict[str, Any]:
    # The image's own entrypoint is what a compose file means when it names none.
    own = launch.argv[:1] == ("{entrypoint}",)
    return settings(container_spec(launch, HostContext(f"./files/{name}", "./cache", user, (), threads)), own)


def _networks(address: str) -> dict[str, Any]:
    return {"networks": {NETWORK: {"ipv4_address": address}}}


def settings(made: ContainerSpec, own_entrypoint: bool) -> dict[str, Any]:
    """One container's keys; with `own_entrypoint` its command is arguments to the image's own entrypoint."""
    command = made.command if own_entrypoint else made.command[1:]
    keys: dict[str, Any] = {
        "image": made.image,
        "entrypoint": [] if own_entrypoint else [made.command[0]],
        "command": list(command),
        "environment": dict(made.env),
        "volumes": [_volume(mount) for mount in made.mounts],
        "tmpfs": [f"{TMP}:{TMP_OPTIONS}"],
        "devices": [f"{path}:{path}:rwm" for path in made.devices],
        "deploy": _deploy(made),
        "network_mode": "host" if made.host_network else "",
        "user": made.user,
        "group_add": list(made.groups),
        "init": True,
        "read_only": True,
        "cap_drop": list(DROPPED),
        "security_opt": list(SECURITY),
        "pids_limit": made.pids,
        "shm_size": f"{made.shm_mib}m",
        "ulimits": {"nofile": {"soft": OPEN_FILES, "hard": OPEN_FILES}},
        "restart": RESTART,
        "stop_grace_period": f"{made.stop_grace_s}s",
        "logging": {"driver": "json-file", "options": {"max-size": LOG_SIZE, "max-file": LOG_FILES}},
    }
    if made.memory_mib is not None:
        # The same with swap: an engine that swaps answers nobody.
        keys |= {"mem_limit": f"{made.memory_mib}m", "memswap_limit": f"{made.memory_mib}m"}
    return {key: value for key, value in keys.items() if value not in ("", [], {})}


def _volume(mount: Mount) -> dict[str, Any]:
    only = {"read_only": True} if mount.read_only else {}
    return {"type": "bind", "source": mount.source, "target": mount.target, **only}


def _deploy(made: ContainerSpec) -> dict[str, Any]:
    if not made.gpus:
        return {}
    if made.gpu_way == CDI:
        device: dict[str, Any] = {"driver": "cdi", "device_ids": [f"nvidia.com/gpu={gpu}" for gpu in made.gpus]}
    else:
        device = {"driver": "nvidia", "device_ids": list(made.gpus)}
    return {"resources": {"reservations": {"devices": [device | {"capabilities": ["gpu"]}]}}}


def yaml_text(value: Mapping[str, Any]) -> str:
    """Nested mappings, lists and scalars as YAML for compose, where a `$` stands for a variable unless it is doubled.

    Empty mappings and lists are left out by whoever makes them: they have no form here.
    """
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Mapping[str, Any] | list[Any]) -> Iterator[str]:
    entries: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        entries = ((f"{_scalar(str(key))}:", inner) for key, inner in value.items())
    else:
        entries = (("-", inner) for inner in value)
    for head, inner in entries:
        if not isinstance(inner, Mapping | list):
            yield f"{head} {_scalar(inner)}"
        elif head == "-":
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in _lines(inner))


def _scalar(value: object) -> str:
    if isinstance(value, bool | int):
        return json.dumps(value)
    text = str(value).replace("$", "$$")
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)
