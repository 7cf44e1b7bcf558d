"""The Docker daemon of this machine: one connection, its errors in our words, and patience while it restarts."""

from __future__ import annotations

import math
import re
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.core.docker import DockerFacts
from orchestrator.core.host import Memory
from orchestrator.core.progress import Progress, silent
from orchestrator.drivers import cgroups
from orchestrator.drivers.docker.endpoints import SOCKET, Endpoint
from orchestrator.drivers.memory import memory_within, of_machine
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from docker import APIClient

Value = TypeVar("Value")

# A daemon that answered before is waited for this long: it is being restarted.
PATIENCE_S = 90.0
ANSWER_S = 60.0
TICK_S = 0.3
HOOKS = ("nvidia-container-runtime-hook", "nvidia-ctk")
HOOK_SAYS = re.compile(r"nvidia-container-cli: .+")

# By a mark in what the daemon says; the first that fits decides.
HINTS: Mapping[str, str] = {
    "could not select device driver": "The daemon has no NVIDIA Container Toolkit: install it, then "
    "nvidia-ctk runtime configure --runtime=docker, and restart Docker.",
    "unresolvable CDI devices": "The GPU's CDI name has changed: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    "unsatisfied condition": "The image needs a newer NVIDIA driver: orch images ls shows others.",
    "nvidia-container-cli: device error": "The toolkit does not know the GPU: nvidia-smi -L shows the ones there are.",
    "nvidia-container-cli: initialization error": "The toolkit finds no NVIDIA driver that works: nvidia-smi should "
    "work first (after an update of the driver, reboot); Docker from snap does not see it.",
    "ddress already in use": "Another program has the address: choose another one with --listen HOST:PORT.",
    "toomanyrequests": "The registry limits anonymous pulls: docker login, or wait.",
    "unauthorized": "The registry wants a login: docker login",
    "requested access to the resource is denied": "The registry wants a login, or has no such image: docker login",
    "no such host": "The registry cannot be reached. Offline: orch images load FILE",
    "i/o timeout": "The registry cannot be reached. Offline: orch images load FILE",
    "connection refused": "The registry cannot be reached. Offline: orch images load FILE",
}
TAKE_SYSTEM = f"DOCKER_HOST={SOCKET} takes the system's daemon."
# However the daemon says that a disk is full.
FULL = ("no space left on device", "disk quota exceeded")


class DaemonGone(HostError):
    """Nothing answers at the daemon's socket now."""


class NotThere(HostError):
    """The daemon knows no such container, image or network."""


class Daemon:
    """One daemon, at a unix socket. Connects when it is first asked.

    Every method raises HostError. A daemon that has answered once and answers no more is waited for: what is asked is
    asked again when it is back, so it has to bear being done twice.
    """

    def __init__(self, at: Endpoint, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S) -> None:
        self.at = at
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._met = False

    @cached_property
    def _api(self) -> APIClient:
        from docker import APIClient

        if self.at.problem:
            raise HostError(self.at.problem, hint=f"docker context ls shows those that there are; {TAKE_SYSTEM}")
        if not self.at.host.startswith("unix://"):
            raise HostError(
                f"orch needs the Docker daemon of this machine, at a unix socket; {self.at.said_by} is {self.at.host}.",
                hint=TAKE_SYSTEM,
            )
        return APIClient(base_url=self.at.host, version="auto", timeout=self._answer_s)

    @contextmanager
    def api_for(self, what: str) -> Iterator[APIClient]:
        """The API for one exchange; what goes wrong in it is reported as: it could not do `what`."""
        from docker.errors import APIError, DockerException
        from requests.exceptions import ReadTimeout, RequestException
        from urllib3.exceptions import HTTPError

        try:
            yield self._api
            self._met = True
        except APIError as error:
            raise self.refused(what, str(error.explanation or error), error.status_code) from error
        except ReadTimeout as error:
            raise HostError(
                f"The Docker daemon takes too long to answer: it could not {what}.",
                hint="Is it overloaded? Run the command again when `docker ps` answers.",
            ) from error
        except (RequestException, HTTPError, DockerException, OSError) as error:
            if "redentials store" in str(error) or "docker-credential" in str(error):
                raise HostError(
                    "The credential helper that Docker is configured with does not work.",
                    hint="Remove credsStore (or credHelpers) from ~/.docker/config.json, or install that helper.",
                    detail=str(error)[:300],
                ) from error
            raise self._gone(error) from error

    def with_retry(self, call: Callable[[], Value], progress: Progress = silent) -> Value:
        """`call()`, again when the daemon went away in the middle of it and came back."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except DaemonGone:
                if not self._met or time.monotonic() > deadline:
                    self._met = False  # it was waited for once; nobody waits for it again
                    raise
                self.__dict__.pop("_api", None)
                progress("waiting for the Docker daemon", 0, 0)
                time.sleep(TICK_S)

    def refused(self, what: str, said: str, status: int | None = None) -> HostError:
        """Why it did not do `what`, in our words where they are known; `said` is its answer, or a line of it."""
        if any(mark in said.lower() for mark in FULL):
            return HostError(
                f"The disk where Docker keeps its data{self._data()} is full: it could not {what}.",
                hint="Free some space there, then run the same command again. `docker system df` shows what takes it, "
                "`docker image prune` removes images that have no name.",
                detail=said.strip()[:500],
            )
        kind = NotThere if status == 404 else HostError
        hint = next((hint for mark, hint in HINTS.items() if mark in said), "")
        return kind(f"Docker refused to {what}: {_telling(said)[:500]}", hint=hint)

    def _data(self) -> str:
        """Where that is, as far as the daemon, which has just answered, still does."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        if "_api" not in self.__dict__:
            return ""
        try:
            place = str(self._api.info().get("DockerRootDir") or "")
        except (RequestException, DockerException, OSError):
            return ""
        return f" ({place})" if place else ""

    def facts(self) -> DockerFacts:
        """What it can do. One that cannot be used is told as a `problem`, not raised."""
        try:
            info = self.with_retry(self._info)
        except HostError as error:
            return DockerFacts(problem=error.message, hint=error.hint)
        found = [entry["ID"] for entry in info.get("DiscoveredDevices") or () if entry.get("Source") == "cdi"]
        options = " ".join(info.get("SecurityOptions") or ())
        problem, hint = _unusable(info, options)
        memory, cpus = self._room(info)
        return DockerFacts(
            version=str(info.get("ServerVersion", "")),
            runtimes=tuple(sorted(info.get("Runtimes") or ())),
            cdi_devices=tuple(found) or devices_in(info.get("CDISpecDirs") or ()),
            hook=any(shutil.which(name) for name in HOOKS),
            nodes=tuple(sorted(str(path) for path in Path("/dev").glob("nvidia*"))),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            memory=memory,
            cpus=cpus,
            problem=problem,
            hint=hint,
        )

    def identity(self) -> str:
        """Its own ID, which it has as long as its data."""
        return str(self.with_retry(self._info).get("ID") or "")

    def relabels(self) -> bool:
        """Whether SELinux keeps containers from files of this machine that are not labelled for them."""
        return "name=selinux" in (self._info().get("SecurityOptions") or ())

    def room(self) -> tuple[Memory, int]:
        """The memory and the CPUs that its containers have."""
        return self._room(self.with_retry(self._info))

    def _room(self, info: Mapping[str, Any]) -> tuple[Memory, int]:
        """The daemon makes control groups beside the caller's, so the caller's own limits are not theirs: they have the
        machine's memory, as the daemon knows it. Where the daemon is in the same container as orch, that holds what it
        makes, too; one that is reached by a socket from outside is in no group that is seen from here."""
        machine, cpus = of_machine(), int(info.get("NCPU") or 0)
        total = int(info.get("MemTotal") or 0) or machine.total
        machine = Memory(total, min(machine.available, total))
        limits = cgroups.limits_of_all_here() if cgroups.is_here(_listener(self.at.host)) else cgroups.Limits()
        if limits.cpus is not None:
            cpus = min(cpus, math.ceil(limits.cpus))
        return memory_within(limits, machine), cpus

    def _info(self) -> dict[str, Any]:
        with self.api_for("docker info") as api:
            found: dict[str, Any] = api.info()
            return found

    def _gone(self, error: Exception) -> HostError:
        text = str(error)
        place = self.at.host.removeprefix("unix://")
        if "PermissionError" in text or "Permission denied" in text:
            return HostError(
                f"This user may not use the Docker daemon at {place}.",
                hint="Add the user to the group docker: sudo usermod -aG docker $USER, then log in again.",
            )
        start = "Start it: systemctl start docker (Docker Engine has to be installed)."
        hint = start if self.at.host == SOCKET else f"Start it; {TAKE_SYSTEM}"
        return DaemonGone(f"The Docker daemon does not answer at {place}.", hint=hint, detail=text[:300])


def _listener(host: str) -> int:
    """The pid of the process that has opened a unix socket, as it is seen from here; 0 when it is not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(host.removeprefix("unix://"))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return 0
    return int(struct.unpack("3i", credentials)[0])


def _telling(said: str) -> str:
    """Its first line; of the toolkit's hook what that says itself, which stands at the end of it or below."""
    found = HOOK_SAYS.search(said)
    return found[0].removesuffix(": unknown") if found else (said.strip().splitlines() or ["it does not say why"])[0]


def _unusable(info: Mapping[str, Any], options: str) -> tuple[str, str]:
    if info.get("OSType", "linux") != "linux":
        return "The Docker daemon runs Windows containers.", "Switch it to Linux containers."
    if "rootless" in options or "userns" in options:
        kind = "rootless" if "rootless" in options else "with user namespaces (userns-remap)"
        return (
            f"The Docker daemon runs {kind}: its containers cannot be reached from here at their own addresses.",
            TAKE_SYSTEM,
        )
    if "Docker Desktop" in str(info.get("OperatingSystem", "")):
        return (
            "Docker Desktop keeps its containers in a virtual machine, where their addresses cannot be reached.",
            "Install Docker Engine (also within WSL).",
        )
    return "", ""


def devices_in(directories: Iterable[str]) -> tuple[str, ...]:
    """Names in the CDI specs of these directories (JSON or YAML, read as far as needed), for daemons before 28.2, which
    do not list them."""
    found = []
    for directory in directories:
        for path in sorted(Path(directory).glob("*")):
            if path.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                text = path.read_text()
            except OSError:
                continue
            kind = re.search(r'"?kind"?\s*:\s*"?([\w.-]+/[\w.-]+)', text)
            names = re.findall(r'"?name"?\s*:\s*"?([\w.:-]+)', text)
            found += [f"{kind[1]}={name}" for name in names] if kind is not None else []
    return tuple(found)
