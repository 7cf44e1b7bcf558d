"""The environment and the directories, read once; nobody else asks for either."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import HostError, UsageError

DEFAULT_LISTEN = "127.0.0.1:8484"
DEFAULT_PULL_PARALLEL = 4
# Less is a forgotten unit.
_LEAST_MEMORY = 1 << 20
MOST_PULL_PARALLEL = 16
# A unix socket's path has room for 107 bytes: a first gateway's is shorter than those that come after it.
SOCKET_PATH_MAX = 100


@dataclass(frozen=True)
class Settings:
    """Where orch keeps things and what the environment says.

    data: ORCH_HOME, else $XDG_DATA_HOME/orch, else ~/.local/share/orch. listen: ORCH_LISTEN. torch_index:
    ORCH_TORCH_INDEX, in place of the pin's own package index. offline: HF_HUB_OFFLINE. target: ORCH_TARGET, where
    engines run when nothing else is said. docker_host: DOCKER_HOST, the daemon's socket. docker_context:
    DOCKER_CONTEXT. docker_config: Docker's own directory, DOCKER_CONFIG, else ~/.docker. gateway_base:
    ORCH_GATEWAY_BASE, in place of the pinned base image of the gateway's. api_key: ORCH_API_KEY, the first one of a new
    gateway. origins: ORCH_ORIGINS, whose web pages may use a gateway without keys besides this machine's own, with
    commas between. limits: ORCH_LIMITS, what clients may take of the gateway, with commas between. shared_stores:
    ORCH_STORES, store directories of others, with colons between. store_limit: ORCH_STORE_LIMIT, the most bytes that
    the own store may have. engine_memory: ORCH_ENGINE_MEMORY, the most bytes of this machine's memory that engines may
    ask for together. hf_token_file: ORCH_HF_TOKEN_FILE, a file with the hub's token in it. pull_parallel:
    ORCH_PULL_PARALLEL, requests at once when weights are downloaded. llama_cpp: ORCH_LLAMA_CPP, a directory with
    llama.cpp's own converter and quantizer.
    """

    data: Path
    listen: str
    listen_given: bool
    torch_index: str | None
    offline: bool
    target: str | None = None
    docker_host: str | None = None
    docker_context: str | None = None
    docker_config: Path | None = None
    gateway_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] | None = None
    limits: tuple[str, ...] | None = None
    hf_token_file: Path | None = None
    pull_parallel: int = DEFAULT_PULL_PARALLEL
    shared_stores: tuple[Path, ...] = ()
    store_limit: int | None = None
    engine_memory: int | None = None
    llama_cpp: Path | None = None

    @property
    def store(self) -> Path:
        return self.data / "store"

    @property
    def environments(self) -> Path:
        return self.data / "environments"

    @property
    def processes(self) -> Path:
        return self.data / "processes"

    @property
    def containers(self) -> Path:
        return self.data / "containers"

    @property
    def container_cache(self) -> Path:
        return self.data / "cache" / "containers"

    @property
    def pins(self) -> Path:
        """Engine images that the user has pinned."""
        return self.data / "pins"

    @property
    def keys(self) -> Path:
        """The file of the gateway's API keys, in a directory of its own that its container sees."""
        return self.data / "keys" / "keys.json"

    @property
    def old_keys(self) -> Path:
        """Where earlier versions kept them, as plain text."""
        return self.data / "keys" / "api-keys"

    @property
    def secrets(self) -> Path:
        """What engines ask of the gateway, a file each; its container sees it too."""
        return self.data / "secrets"

    @property
    def unknown_weights(self) -> Path:
        """Weights that orch's own builder was found not to know."""
        return self.data / "unknown-weights.json"

    @property
    def loaded_images(self) -> Path:
        return self.data / "images.json"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def records(self) -> Path:
        return self.data / "records"

    @property
    def hash_cache(self) -> Path:
        return self.data / "hashes.json"

    @property
    def admin(self) -> Path:
        """The directory of the gateways' admin sockets, which their containers see; under the data directory unless
        that is too deep for a socket's path."""
        path = self.data / "admin"
        if len(os.fsencode(path / "gateway.sock")) <= SOCKET_PATH_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        # Not /tmp, which a reboot may empty: a container that is started by it needs the directory.
        # By whose the data is, not by who asks: root looks at it, too.
        return Path(f"/var/tmp/orch-{_owner(self.data)}-{digest}")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment. Raises HostError when there is no home to put the data directory in, UsageError
    when a size is none."""
    home = environ.get("ORCH_HOME")
    if not home:
        base = environ.get("XDG_DATA_HOME") or (f"{environ['HOME']}/.local/share" if environ.get("HOME") else "")
        if not base:
            raise HostError(
                "Neither ORCH_HOME nor HOME is set.", hint="Say where orch may keep its data: ORCH_HOME=DIR"
            )
        home = f"{base}/orch"
    given = environ.get("ORCH_LISTEN")
    data = Path(home).expanduser().resolve()
    shared = (Path(place).expanduser().resolve() for place in environ.get("ORCH_STORES", "").split(":") if place)
    limit, memory = environ.get("ORCH_STORE_LIMIT"), environ.get("ORCH_ENGINE_MEMORY")
    return Settings(
        data=data,
        listen=given or DEFAULT_LISTEN,
        listen_given=bool(given),
        torch_index=environ.get("ORCH_TORCH_INDEX") or None,
        offline=environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"},
        target=environ.get("ORCH_TARGET") or None,
        docker_host=environ.get("DOCKER_HOST") or None,
        docker_context=environ.get("DOCKER_CONTEXT") or None,
        docker_config=_docker_config(environ),
        gateway_base=environ.get("ORCH_GATEWAY_BASE") or None,
        api_key=environ.get("ORCH_API_KEY") or None,
        origins=_listed(environ.get("ORCH_ORIGINS")),
        limits=_listed(environ.get("ORCH_LIMITS")),
        shared_stores=tuple(dict.fromkeys(place for place in shared if place != data / "store")),
        store_limit=size_of("ORCH_STORE_LIMIT", limit) if limit else None,
        engine_memory=size_of("ORCH_ENGINE_MEMORY", memory, least=_LEAST_MEMORY) if memory else None,
        hf_token_file=Path(token_file).expanduser() if (token_file := environ.get("ORCH_HF_TOKEN_FILE")) else None,
        pull_parallel=_pull_parallel(environ.get("ORCH_PULL_PARALLEL") or str(DEFAULT_PULL_PARALLEL)),
        llama_cpp=Path(tools).expanduser().resolve() if (tools := environ.get("ORCH_LLAMA_CPP")) else None,
    )


def _owner(data: Path) -> int:
    """The user ID that a directory belongs to, or will once this user makes it."""
    try:
        return data.stat().st_uid
    except OSError:
        return os.getuid()


def _docker_config(environ: Mapping[str, str]) -> Path | None:
    said, home = environ.get("DOCKER_CONFIG"), environ.get("HOME")
    return Path(said) if said else Path(home) / ".docker" if home else None


def _pull_parallel(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= MOST_PULL_PARALLEL:
        hint = f"Requests at once when weights are downloaded: 1 to {MOST_PULL_PARALLEL}."
        raise UsageError(f"ORCH_PULL_PARALLEL={said} is not such a number.", hint=hint)
    return int(said)


def size_of(name: str, text: str, least: int = 1) -> int:
    """Bytes that somebody has written for `name`, from such as 200GB (decimal), 186GiB (binary) or 200000000000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT]I?)?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    unit = (found[2] or "").upper() if found else ""
    size = (
        int(float(found[1]) * (1024 if unit.endswith("I") else 1000) ** " KMGT".index(unit[:1] or " ")) if found else 0
    )
    if size < least:
        raise UsageError(f"{name}={text} is not a valid size.", hint="Write it as 200GB (decimal) or 186GiB (binary).")
    return size


def _listed(said: str | None) -> tuple[str, ...] | None:
    """None: nothing is said; empty: none any more."""
    if said is None:
        return None
    return tuple(dict.fromkeys(one for word in said.split(",") if (one := word.strip())))
