"""Programs that run in a container to their end: converters, quantizers. Nothing of them stays, whatever happens."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from orchestrator.core.container import HOME_OF_ANYBODY, PORT, ContainerSpec, Mount
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import ran_out
from orchestrator.core.progress import Progress
from orchestrator.core.tools import LOG_LINES, PIDS, SHM_MIB, Tool, ToolEnd, counted
from orchestrator.drivers.docker.daemon import Daemon, NotThere
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.docker.logs import ContainerLogs
from orchestrator.drivers.docker.request import create_body
from orchestrator.errors import HostError

LABEL = "orch.tool"


class DockerTools:
    """The tools of one data directory (`home`), told by a label. One runs at a time: the caller holds a lock, so that
    whatever has the label when a run begins was left behind by an orch that was killed."""

    def __init__(self, daemon: Daemon, images: DockerImages, home: Path, logs: Path) -> None:
        self._daemon = daemon
        self._images = images
        self._home = home
        self._logs = ContainerLogs(daemon, logs)

    def run(self, tool: Tool, progress: Progress) -> ToolEnd:
        """Run it to its end, which may be a bad one. Its container is gone afterwards, also when `progress` raises.

        Progress counts what the program counts in its output (`[i/n]`); 0 of 0 before that. HostError when the image
        is not here, or the container cannot be started.
        """
        facts = self._images.find(tool.image)
        if not facts.entrypoint:
            raise HostError(f"The image {tool.image} has no program of its own to run.", "orch images ls")
        try:
            container = self._daemon.with_retry(lambda: self._start(tool, facts), progress)
            return self._watch(container, tool, progress)
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Remove every container of a tool of this home, running or not."""
        self._daemon.with_retry(self._sweep)

    def _sweep(self) -> None:
        with self._daemon.api_for("list containers") as api:
            found = api.containers(all=True, filters={"label": f"{LABEL}={self._home}"})
        for entry in found:
            try:
                with self._daemon.api_for(f"remove the container {entry['Id'][:12]}") as api:
                    api.remove_container(entry["Id"], v=True, force=True)
            except NotThere:
                continue

    def _start(self, tool: Tool, facts: ImageFacts) -> str:
        self._sweep()
        body = create_body(_container_spec(tool, facts), {LABEL: str(self._home)}, "none", "")
        # It is run once, and opens few files; without a network there is no address either.
        body["HostConfig"] |= {"RestartPolicy": {"Name": "no"}, "Ulimits": []}
        del body["NetworkingConfig"]
        name = f"orch-tool-{hashlib.sha256(os.fsencode(self._home)).hexdigest()[:8]}"
        with self._daemon.api_for(f"create a container for {tool.what}") as api:
            container = str(api.create_container_from_config(body, name)["Id"])
        with self._daemon.api_for(f"start a container for {tool.what}") as api:
            api.start(container)
        return container

    def _watch(self, container: str, tool: Tool, progress: Progress) -> ToolEnd:
        count = (0, 0)

        def inspect() -> dict[str, Any]:
            with self._daemon.api_for(f"inspect the container for {tool.what}") as api:
                found: dict[str, Any] = api.inspect_container(container)
                return found

        def running() -> dict[str, Any] | None:
            info = self._daemon.with_retry(inspect, progress)
            return info if info["State"].get("Running") else None

        def going_on() -> bool:
            progress(tool.what, *count)
            return True

        for line in self._logs.lines(running, LOG_LINES, going_on):
            count = counted(line) or count
            progress(tool.what, *count)
        info = self._daemon.with_retry(inspect, progress)
        code = int(info["State"]["ExitCode"])
        memory = ran_out(tool.memory_mib << 20) if self._logs.ran_out_of_memory(info, code) else ""
        return ToolEnd(code, memory, self._logs.tail("", info, LOG_LINES))


def _container_spec(tool: Tool, facts: ImageFacts) -> ContainerSpec:
    mounts = [Mount(path, path, read_only=True) for path in tool.reads]
    mounts += [Mount(path, path, read_only=False) for path in tool.writes]
    return ContainerSpec(
        image=facts.id,
        command=(*facts.entrypoint, *tool.words),
        env=HOME_OF_ANYBODY,
        mounts=tuple(mounts),
        user=f"{os.getuid()}:{os.getgid()}",
        groups=(),
        port=PORT,
        stop_grace_s=1,
        shm_mib=SHM_MIB,
        memory_mib=tool.memory_mib,
        pids=PIDS,
        devices=tool.devices,
        gpus=tool.gpus,
        gpu_way=tool.gpu_way,
        host_network=False,
    )
