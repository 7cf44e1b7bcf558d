"""Facts from /proc about processes and ports, and signals that reach only the process they are meant for.

A pid is a name that is given away again: an Identity (pid and start time) is not. Linux only; imports stay small,
because every keeper carries them.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MARKER = "ORCH_INSTANCE"
PROC = Path("/proc")
_DELETED = " (deleted)"
_GONE_OR_FOREIGN = (FileNotFoundError, ProcessLookupError, PermissionError)


class Identity(NamedTuple):
    """One process for ever: its pid and its start time in clock ticks since boot."""

    pid: int
    start: int


class Stat(NamedTuple):
    """What /proc/PID/stat says; `dead` is a zombie: it holds its pid, and nothing else; `terminal` is 0 without one."""

    identity: Identity
    dead: bool
    group: int
    session: int
    terminal: int


def boot_id() -> str:
    """The id of this boot of the machine: pids and start times of another boot mean nothing."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> Stat | None:
    """The process that has this pid now; None when there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except _GONE_OR_FOREIGN:
        return None
    # The command's name stands in brackets and may hold spaces and brackets itself.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(Identity(pid, int(fields[19])), fields[0] in "ZX", int(fields[2]), int(fields[3]), int(fields[4]))


def resident(pid: int) -> int:
    """Bytes of a process that are in RAM, also those that it shares with others; 0 when it is gone."""
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (*_GONE_OR_FOREIGN, IndexError):
        return 0


def alive(identity: Identity | None) -> bool:
    """Whether exactly this process runs (a zombie does not)."""
    if identity is None:
        return False
    now = stat(identity.pid)
    return now is not None and now.identity == identity and not now.dead


def arguments(pid: int) -> list[str]:
    """The argv of a process, empty when it cannot be read."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except _GONE_OR_FOREIGN:
        return []


def command_line(pid: int) -> str:
    """The command line of a process, empty when it cannot be read."""
    return " ".join(arguments(pid)).strip()


def started_with(*words: str) -> list[Identity]:
    """The living processes that have these words, in this order, side by side in their argv."""
    found = []
    for pid in _pids():
        argv = arguments(pid)
        if any(tuple(argv[index : index + len(words)]) == words for index in range(len(argv))):
            now = stat(pid)
            if now is not None and not now.dead and pid != os.getpid():
                found.append(now.identity)
    return found


def send(identity: Identity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone. A stranger with its pid is never reached."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor pins the process that has the pid now; only then is it known to be the right one.
        if not alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def ask_to_end(identity: Identity) -> bool:
    """SIGTERM, to a stopped process (Ctrl-Z, a debugger) too: it gets it when it goes on. False when it is gone."""
    return send(identity, signal.SIGTERM) and (send(identity, signal.SIGCONT) or True)


def _pids() -> Iterator[int]:
    for name in os.listdir(PROC):  # noqa: PTH208 - a Path per process costs more than the read
        if name.isdigit():
            yield int(name)


def _is_marked(pid: int, instance: Path) -> bool:
    """Whether the process was started with ORCH_INSTANCE=instance; a process may overwrite it (setproctitle does)."""
    try:
        environ = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARKER}={instance}".encode() in environ.split(b"\0")


def _place(pid: int) -> Path | None:
    """Where the process works; with _DELETED behind it when that is no more."""
    try:
        return (PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def _works_in(pid: int, instance: Path) -> bool:
    place = _place(pid)
    return place is not None and place.is_relative_to(instance)


def members(instance: Path, leader: Identity | None) -> list[Identity]:
    """Every living process of an instance: of its leader's session or group, carrying its marker, or working in its
    directory.

    The session's number is certainly the leader's own only while the leader still holds its pid (alive, or a zombie
    not yet reaped). vLLM's EngineCore overwrites its environment, and then only its directory tells whose it is. Who
    looks around in there has a terminal, or is in the session that asks; an engine never is.
    """
    session = _session_of(leader)
    mine = os.getsid(0)
    found = []
    for pid in _pids():
        now = stat(pid)
        if now is None or now.dead or pid == os.getpid():
            continue
        at_work = not now.terminal and now.session != mine and _works_in(pid, instance)
        if (session is not None and session in (now.session, now.group)) or at_work or _is_marked(pid, instance):
            found.append(now.identity)
    return found


def members_of_deleted(instance: Path, leader: Identity | None) -> list[Identity]:
    """As `members`, of an instance whose directory is gone: another may be there now, with members of its own."""
    session = _session_of(leader)
    gone = f"{instance}/"
    found = []
    for pid in _pids():
        now = stat(pid)
        if now is None or now.dead or pid == os.getpid():
            continue
        place = str(_place(pid))
        if session in (now.session, now.group) or (place.startswith(gone) and place.endswith(_DELETED)):
            found.append(now.identity)
    return found


def _session_of(leader: Identity | None) -> int | None:
    holder = stat(leader.pid) if leader else None
    return leader.pid if leader and holder and holder.identity == leader else None


def group(leader: int) -> list[Identity]:
    """The living processes of a group whose number is certainly still its own (its leader is not reaped)."""
    found = (stat(pid) for pid in _pids())
    return [now.identity for now in found if now is not None and not now.dead and now.group == leader]


def end(living: Callable[[], list[Identity]], grace_s: float, tick: Callable[[], None] = lambda: None) -> bool:
    """SIGTERM to all of `living()`, SIGKILL after `grace_s` to what is left; False when something outlives even that.

    `tick` is called between looks. A process that appears meanwhile (a fork) is asked and then killed like the rest.
    """
    asked: set[Identity] = set()
    killing = time.monotonic() + grace_s
    hopeless = killing + 20
    pause = 0.01
    while left := living():
        now = time.monotonic()
        if now > hopeless:
            return False
        for identity in left:
            if now >= killing:
                send(identity, signal.SIGKILL)
            elif identity not in asked:
                ask_to_end(identity)
                asked.add(identity)
        tick()
        time.sleep(min(pause, max(killing - time.monotonic(), 0.01)))
        pause = min(pause * 1.5, 0.2)
    return True


def port_is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be bound now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a previous owner that are still winding down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(avoid: frozenset[int] = frozenset()) -> int:
    """A port of 127.0.0.1 that is free now and not in `avoid` (ports of instances that wait for a restart)."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (PROC / table).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def port_owner(port: int) -> Identity | None:
    """The process that listens on this TCP port; None when nobody does or it belongs to another user."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for pid in _pids():
        try:
            links = [link.readlink() for link in (PROC / str(pid) / "fd").iterdir()]
        except _GONE_OR_FOREIGN:
            continue
        if any(str(link) in inodes for link in links):
            now = stat(pid)
            if now is not None:
                return now.identity
    return None
