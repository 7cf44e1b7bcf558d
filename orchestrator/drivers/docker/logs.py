"""The logs of containers: the daemon's, and what is saved of one before it is removed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.drivers import files
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.errors import HostError

SAVED_LINES = 20_000
POLL_S = 0.2
EARLY_S = 1.0
SIGKILL_EXIT = 137


class ContainerLogs:
    """`saved` is the directory of the logs of containers that are no more, NAME.log each."""

    def __init__(self, daemon: Daemon, saved: Path) -> None:
        self._daemon = daemon
        self._saved = saved

    def tail(self, name: str, info: dict[str, Any] | None, lines: int) -> str:
        """The last lines of the latest start of a container, or of what was saved of it."""
        if info is not None:
            # What was restarted after a crash says why at the end of the start before; the new one may not have begun.
            # The daemon writes down when it started after it has: what is said at once is older than that.
            since = (
                0.0 if info.get("RestartCount") else max(1.0, _seconds(info["State"].get("StartedAt", "")) - EARLY_S)
            )
            return self._daemon.with_retry(lambda: self._text(info, tail=lines, since=since))
        try:
            text = (self._saved / f"{name}.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def save(self, name: str, info: dict[str, Any]) -> None:
        """Keep the end of a container's log; its removal takes it away."""
        text = self._text(info, tail=SAVED_LINES)
        if text:
            files.write_atomic(self._saved / f"{name}.log", text.encode() + b"\n", mode=0o600)

    def lines(
        self, find: Callable[[], dict[str, Any] | None], lines: int, going_on: Callable[[], bool]
    ) -> Iterator[str]:
        """The last lines, then what comes; over restarts, until the container is gone."""
        info = find()
        yield from self._text(info, tail=lines).splitlines() if info is not None else ()
        since = time.time()
        while info is not None and going_on():
            if info["State"].get("Running"):
                yield from self._follow(info, since, going_on)
                since = time.time()
            time.sleep(POLL_S)
            info = find()

    def exit_code(self, info: dict[str, Any]) -> int:
        """The code of the latest exit of a container that runs again; the daemon remembers it as an event only."""
        codes = [event["Actor"]["Attributes"].get("exitCode", "") for event in self._events(info, "die")]
        return int(codes[-1]) if codes and codes[-1].isdigit() else 0

    def ran_out_of_memory(self, info: dict[str, Any], code: int) -> bool:
        """Whether its latest exit, with this code, was for want of memory. The daemon learns that from the kernel later
        than the exit, so its flag may not be set yet; its events are waited for."""
        return bool(info["State"].get("OOMKilled")) or (code == SIGKILL_EXIT and bool(self._events(info, "oom")))

    def _events(self, info: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        at = _seconds(info["State"].get("FinishedAt", ""))
        wanted = {"container": info["Id"], "event": kind}
        with self._daemon.api_for("read events") as api:
            return list(api.events(since=int(at) - 2, until=int(at) + 2, filters=wanted, decode=True))

    def _text(self, info: dict[str, Any], tail: int, since: float = 0) -> str:
        with self._daemon.api_for("read a log") as api:
            data: bytes = api.logs(info["Id"], tail=tail, **({"since": since} if since else {}))
        return data.decode(errors="replace").rstrip("\n")

    def _follow(self, info: dict[str, Any], since: float, going_on: Callable[[], bool]) -> Iterator[str]:
        """Lines as they come, until the container ends. Read in a thread, because the daemon may be silent for long."""
        coming: queue.Queue[bytes | None] = queue.Queue()

        def read() -> None:
            try:
                with self._daemon.api_for("follow a log") as api:
                    for block in api.logs(info["Id"], stream=True, follow=True, since=since):
                        coming.put(block)
            except HostError as error:
                coming.put(f"{error.message}\n".encode())
            finally:
                coming.put(None)

        threading.Thread(target=read, daemon=True, name="following").start()
        rest = b""
        while going_on():
            try:
                block = coming.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if block is None:
                break
            *whole, rest = (rest + block).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if rest:
            yield rest.decode(errors="replace")


def _seconds(stamp: str) -> float:
    """A time of the daemon (RFC 3339 with nanoseconds) in seconds since the epoch; 0 for none."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    try:
        at = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    except ValueError:
        return 0.0
    return max(0.0, at + float(f"0.{fraction}" if fraction.isdigit() else 0))
