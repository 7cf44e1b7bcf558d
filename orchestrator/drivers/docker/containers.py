"""The docker target: engines and the gateway as containers, kept by the daemon itself.

Labels are the record. A container's labels are for ever, so what is changed about a running one (adapters that were
loaded, aliases) stands in record.json beside its files, which counts only for the container that it names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.core.container import MOST_OF_MEMORY, RESTART, HostContext, container_spec
from orchestrator.core.gateway_status import is_gateway
from orchestrator.core.launch import DOCKER, SECRET, Exit, Instance, InstanceState, Launch, Usage, out_of_memory
from orchestrator.core.progress import Progress, silent
from orchestrator.drivers import cgroups, files, ports
from orchestrator.drivers.cancellable import cancellable
from orchestrator.drivers.children import children_of
from orchestrator.drivers.docker import endpoints, records
from orchestrator.drivers.docker.daemon import Daemon, DaemonGone, NotThere
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.docker.logs import ContainerLogs
from orchestrator.drivers.docker.networks import Network
from orchestrator.drivers.docker.records import HOME, INSTANCE
from orchestrator.drivers.docker.request import create_body
from orchestrator.drivers.secrets import EngineSecrets
from orchestrator.errors import HostError

KEPT_BY_DAEMON = (RESTART, "unless-stopped")
RLIMIT = "setting rlimit"
SIGNAL_EXITS = range(129, 160)


class DockerTarget:
    """Containers of one data directory (`home`), told by a label; their files lie under `root`, a directory each.

    `saved` is where the logs of removed ones go. The daemon is asked only when something of this home runs or ran
    there (`root` exists), or once `attend` was called.
    """

    name = DOCKER

    def __init__(self, daemon: Daemon, images: DockerImages, home: Path, root: Path, cache: Path, saved: Path) -> None:
        self._daemon = daemon
        self._images = images
        self._home = home
        self._root = root
        self._cache = cache
        self._network = Network(daemon, home)
        self._secrets = EngineSecrets(home / "secrets")
        self._logs = ContainerLogs(daemon, saved)
        self._attending = False

    def attend(self) -> None:
        """From now on ask the daemon, although nothing of this home was ever there."""
        self._attending = True

    @property
    def in_use(self) -> bool:
        """Whether the daemon is asked at all."""
        return self._attending or self._root.is_dir()

    def observe(self) -> tuple[Instance, ...]:
        """Every container of this home as it is now, by name, also one whose record is damaged. Reads only.

        A gateway that somebody removed counts as stopped: its routes are still here.
        """
        if not self.in_use:
            return ()
        self._refuse_another_daemon()
        found = self._daemon.with_retry(self._observe_all)
        found += self._removed_gateways({instance.name for instance in found})
        return tuple(sorted(found, key=lambda instance: instance.name))

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        """Have it run; returns once it is started (not: ready). Decides from what is there now.

        What somebody has done to a running one (paused, renamed, another restart policy, off its network) is put
        right. HostError when it runs with another launch or a damaged record, or cannot be started.
        """
        self.attend()
        return self._daemon.with_retry(lambda: self._ensure(name, launch, label))

    def relabel(self, name: str, launch: Launch, label: str) -> None:
        """Change the label, and what a restart by `ensure` is compared with."""
        info = self._known(name)
        records.write(self._directory(name), str(info["Id"]), launch, label)

    def release(self, name: str) -> None:
        """Let it end by itself: the daemon does not start it again. `ensure` takes that back."""
        info = self._known(name)
        with self._daemon.api_for(f"release {name}") as api, _gone_is_fine():
            api.update_container(info["Id"], restart_policy={"Name": "no"})

    def write_file(self, name: str, filename: str, text: str) -> None:
        """Put a file into the instance's directory (`{dir}`); the instance need not exist yet."""
        self._make_directory(name)
        files.write_atomic(self._files(name) / filename, text.encode(), mode=0o600)

    def remove_file(self, name: str, filename: str) -> None:
        """Remove a file from the instance's directory, if it is there."""
        with files.host_errors(f"remove {filename} of {name}"):
            (self._files(name) / filename).unlink(missing_ok=True)

    def stop(self, name: str, progress: Progress) -> None:
        """End it; returns when it is gone. Stopped or unknown: nothing to do.

        Interrupted by `progress`, the daemon ends it all the same.
        """
        info = self._daemon.with_retry(lambda: self._find(name), progress)
        if info is None or _state(info) is InstanceState.STOPPED:
            return
        grace_s, what = int(info["Config"].get("StopTimeout") or 10), f"stopping {name}"

        def end() -> None:
            with self._daemon.api_for(f"stop {name}") as api, _gone_is_fine():
                if info["State"].get("Paused"):
                    api.unpause(info["Id"])
                api.stop(info["Id"], timeout=grace_s)

        self._daemon.with_retry(lambda: cancellable(end, lambda: progress(what, 0, 0), what), progress)

    def remove(self, name: str) -> None:
        """Remove a stopped container and its files; its log is saved. Unknown: only its files.

        HostError when it still runs, unless its record is damaged.
        """
        if self.in_use:
            self._daemon.with_retry(lambda: self._remove(name))
        shutil.rmtree(self._directory(name), ignore_errors=True)
        self._secrets.remove(name)
        if self.in_use:
            self._daemon.with_retry(lambda: self._tidy({instance.name for instance in self._observe_all()}))

    def usage(self, instance: Instance) -> Usage:
        """See Target. Of its memory page cache that can just be given back is left out, as `docker stats` does; its
        processes are asked for only where it was given GPUs."""
        if instance.state is not InstanceState.RUNNING:
            return Usage()
        name, container = self._network.container_name(instance.name), instance.launch.container
        with self._daemon.api_for(f"tell what {instance.name} takes") as api:
            memory = api.stats(name, stream=False, one_shot=True).get("memory_stats") or {}
            listed = api.top(name, "-eo pid").get("Processes") if container is not None and container.gpus else ()
        cache = memory.get("stats") or {}
        inactive = int(cache.get("total_inactive_file", cache.get("inactive_file", 0)))
        taken = max(0, int(memory["usage"]) - inactive) if "usage" in memory else None
        return Usage(taken, tuple(int(row[0]) for row in listed or ()))

    def log_tail(self, name: str, lines: int) -> str:
        """The last lines of its latest start; empty when there is no log."""
        info = self._daemon.with_retry(lambda: self._find(name)) if self.in_use else None
        return self._logs.tail(name, info, lines)

    def log(self, name: str, lines: int, going_on: Callable[[], bool]) -> Iterator[str] | None:
        """See Target. It goes on over restarts, until the container is removed."""
        if not self.in_use or self._daemon.with_retry(lambda: self._find(name)) is None:
            return None
        return self._logs.lines(lambda: self._find(name), lines, going_on)

    def logs(self) -> tuple[str, ...]:
        """The containers of this home."""
        return tuple(instance.name for instance in self.observe())

    def _refuse_another_daemon(self) -> None:
        """HostError where what runs here is with another one: nothing of it would be seen, and all be started anew."""
        kept, at = endpoints.kept(self._root), self._daemon.at
        if kept is None or not kept.id or kept.host == at.host or kept.id == self._daemon.identity():
            return
        raise HostError(
            f"What runs here in containers is with the Docker daemon at {kept.host}; {at.said_by} is {at.host}.",
            hint=f"Leave {at.said_by} away, or say DOCKER_HOST={kept.host}; with that, orch down --all ends it.",
        )

    def _remove(self, name: str) -> None:
        info = self._find(name)
        if info is None:
            return
        if _state(info) is not InstanceState.STOPPED and not self._instance(info).problem:
            raise HostError(f"{name} still runs.", "Stop it before it is removed.")
        self.stop(name, silent)
        self._remove_container(name, info)

    def _tidy(self, living: set[str]) -> None:
        """Remove what containers have left that somebody else removed; the gateway's routes wait for it to be healed.

        With the last container the network goes, and the directory that says that the daemon is in use.
        """
        for directory in self._root.iterdir() if self._root.is_dir() else ():
            if directory.name not in living and not is_gateway(directory.name):
                self._secrets.remove(directory.name)
                shutil.rmtree(directory, ignore_errors=True)
        if not living:
            self._network.remove()
            endpoints.forget(self._root)
            with contextlib.suppress(OSError):  # the gateway's
                self._root.rmdir()

    def _observe_all(self) -> list[Instance]:
        return [self._instance(info) for info in self._inspect_all()]

    def _removed_gateways(self, living: set[str]) -> Iterator[Instance]:
        for directory in self._root.iterdir() if self._root.is_dir() else ():
            if is_gateway(directory.name) and directory.name not in living and (directory / "files").is_dir():
                yield Instance(directory.name, InstanceState.STOPPED, False, Launch(()), "", None, target=DOCKER)

    def _inspect_all(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        wanted = [f"{HOME}={self._home}", *([f"{INSTANCE}={name}"] if name is not None else [])]
        with self._daemon.api_for("list containers") as api:
            found = api.containers(all=True, filters={"label": wanted})
        for entry in found:
            with contextlib.suppress(NotThere), self._daemon.api_for("inspect a container") as api:
                yield api.inspect_container(entry["Id"])

    def _find(self, name: str) -> dict[str, Any] | None:
        """The container of that name; of several (somebody has copied one) the one that runs."""
        found = sorted(self._inspect_all(name), key=lambda info: _state(info) is InstanceState.RUNNING)
        return found[-1] if found else None

    def _known(self, name: str) -> dict[str, Any]:
        info = self._daemon.with_retry(lambda: self._find(name)) if self.in_use else None
        if info is None:
            raise HostError(f"There is no container named {name}.")
        if problem := self._instance(info).problem:
            raise _damaged(name, problem)
        return info

    def _instance(self, info: dict[str, Any]) -> Instance:
        labels = info["Config"].get("Labels") or {}
        name = str(labels.get(INSTANCE, ""))
        record = records.read(self._directory(name), str(info["Id"]), labels)
        state = _state(info)
        alone = record.launch.container is not None and record.launch.container.host_network
        kept = info["HostConfig"]["RestartPolicy"]["Name"] in KEPT_BY_DAEMON
        return Instance(
            name=name,
            state=state,
            supervised=state is not InstanceState.STOPPED and kept,
            launch=record.launch,
            label=record.label,
            port=record.port,
            pid=info["State"]["Pid"] or None,
            since=info["State"].get("StartedAt"),
            starts=int(info.get("RestartCount") or 0) + 1,
            last_exit=self._last_exit(info),
            problem=record.problem,
            target=DOCKER,
            host="127.0.0.1" if alone else self._network.address_of(info),
            drift="" if record.problem else self._drift(name, info, alone),
            secret=self._secrets.read(name),
            children=children_of(info["State"]["Pid"] or None, below_init=True),
        )

    def _drift(self, name: str, info: dict[str, Any], alone: bool) -> str:
        if info["State"].get("Paused"):
            return "is paused"
        if str(info["Name"]).lstrip("/") != self._network.container_name(name):
            return f"was renamed to {str(info['Name']).lstrip('/')}"
        if not alone and not self._network.holds(info):
            return f"is not connected to the network {self._network.name}"
        return ""

    def _last_exit(self, info: dict[str, Any]) -> Exit | None:
        """The latest exit that the daemon has answered with a restart."""
        if not info.get("RestartCount"):
            return None
        state = info["State"]
        code = int(state["ExitCode"]) if state.get("Restarting") else self._logs.exit_code(info)
        limit = int(info["HostConfig"].get("Memory") or 0)
        oom = self._logs.ran_out_of_memory(info, code)
        signal = code - 128 if code in SIGNAL_EXITS else None
        end = (code if signal is None else None, signal, str(state.get("FinishedAt", "")))
        return out_of_memory(*end, limit) if oom else Exit(*end)

    def _ensure(self, name: str, launch: Launch, label: str) -> Instance:
        info = self._find(name)
        if info is not None and _state(info) is not InstanceState.STOPPED:
            seen = self._instance(info)
            if seen.problem:
                raise _damaged(name, seen.problem)
            if seen.state is InstanceState.RUNNING:
                if seen.launch != launch:
                    raise HostError(f"{name} already runs, with other settings.", "Stop it first, then start it again.")
                if seen.label != label:
                    records.write(self._directory(name), str(info["Id"]), launch, label)
                self._put_right(name, info, seen)
                return self._now(name)
        before = ""
        if info is not None:  # stopped, or it waits to be restarted after a crash: start over instead
            before = self._network.address_of(info)
            self._remove_container(name, info)
        self._start(name, launch, label, before)
        return self._now(name)

    def _now(self, name: str) -> Instance:
        info = self._find(name)
        if info is None:
            raise HostError(f"{name} was removed while it was started.", "Run the same command again.")
        return self._instance(info)

    def _put_right(self, name: str, info: dict[str, Any], seen: Instance) -> None:
        with self._daemon.api_for(f"put {name} right") as api:
            if info["State"].get("Paused"):
                api.unpause(info["Id"])
            if not seen.supervised:
                api.update_container(info["Id"], restart_policy={"Name": RESTART})
            if str(info["Name"]).lstrip("/") != self._network.container_name(name):
                api.rename(info["Id"], self._network.container_name(name))
        if seen.drift and seen.launch.container is not None and not seen.launch.container.host_network:
            self._network.connect(info)

    def _start(self, name: str, launch: Launch, label: str, before: str) -> None:
        container = launch.container
        if container is None:
            raise HostError(f"{name} has no image to run in a container.")
        if container.host_network and launch.port is not None and not ports.is_free(launch.port):
            raise ports.taken(launch.port)
        self._make_directory(name)
        facts = self._images.find(container.image)
        if any(SECRET in value for _, value in launch.env):
            self._secrets.ensure(name)
        made = container_spec(launch, self._host_context(name, facts.entrypoint, container.devices))
        for path in (*container.writes, *container.reads):
            if Path(path).is_relative_to(self._home) or path in container.writes:
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        address = "" if container.host_network else self._network.free_address(before)
        labels = records.labels(self._home, name, launch, label, made.port)
        body = create_body(made, labels, self._network.name, address)
        if self._daemon.relabels():
            # The store is mounted as it is; a label of its own would take it away from everybody else.
            body["HostConfig"]["SecurityOpt"].append("label=disable")
        if container.image not in (*facts.references, *facts.tags):
            body["Image"] = facts.id
        records.forget(self._directory(name))
        try:
            self._create(name, body)
        except HostError as error:
            if RLIMIT not in error.message:
                raise
            # A daemon without CAP_SYS_RESOURCE cannot raise it above its own.
            body["HostConfig"]["Ulimits"] = []
            self._create(name, body)

    def _host_context(self, name: str, entrypoint: tuple[str, ...], devices: tuple[str, ...]) -> HostContext:
        memory, cpus = self._daemon.room()
        nodes = [node for path in map(Path, devices) for node in (path, *(path.iterdir() if path.is_dir() else ()))]
        return HostContext(
            files=str(self._files(name)),
            cache=str(self._cache),
            user=f"{os.getuid()}:{os.getgid()}",
            entrypoint=entrypoint,
            threads=cgroups.threads(cpus),
            memory_mib=int(memory.total * MOST_OF_MEMORY) >> 20,
            # AMD's nodes are for the groups video and render, which have other numbers inside.
            groups=tuple(sorted({str(node.stat().st_gid) for node in nodes if node.exists()})),
            secret=self._secrets.read(name),
        )

    def _create(self, name: str, body: dict[str, Any]) -> None:
        """Create and start; what cannot be started is not left behind."""
        with self._daemon.api_for(f"create {name}") as api:
            created = api.create_container_from_config(body, self._network.container_name(name))
        try:
            with self._daemon.api_for(f"start {name}") as api:
                api.start(created["Id"])
        except DaemonGone:
            raise
        except HostError:
            with self._daemon.api_for(f"remove {name}") as api:
                api.remove_container(created["Id"], v=True, force=True)
            raise

    def _remove_container(self, name: str, info: dict[str, Any]) -> None:
        try:
            self._logs.save(name, info)
        except DaemonGone:
            raise
        except HostError:
            # A full disk, a container that is half removed: what is to go goes, without a last word.
            pass
        with self._daemon.api_for(f"remove {name}") as api, _gone_is_fine():
            api.remove_container(info["Id"], v=True, force=True)

    def _directory(self, name: str) -> Path:
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"not an instance's name: {name!r}")
        return self._root / name

    def _files(self, name: str) -> Path:
        return self._directory(name) / "files"

    def _make_directory(self, name: str) -> None:
        """The instance's directory, for this user only, and the cache."""
        endpoints.keep(self._root, endpoints.Kept(self._daemon.at.host, self._daemon.identity()))
        try:
            self._directory(name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files(name).mkdir(exist_ok=True)
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"The directory of {name} cannot be made: {error}.") from error


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        yield


def _state(info: dict[str, Any]) -> InstanceState:
    state = info["State"]
    if state.get("Restarting"):
        return InstanceState.BACKOFF
    return InstanceState.RUNNING if state.get("Running") else InstanceState.STOPPED


def _damaged(name: str, problem: str) -> HostError:
    return HostError(
        f"The record of {name} is damaged, and it still runs: {problem}.",
        "Stop it: orch down --all, or docker stop; then start it again.",
    )
