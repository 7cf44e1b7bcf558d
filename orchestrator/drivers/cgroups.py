"""What the control groups of a process leave it of the machine: memory and CPUs; and whether its memory ran out.

Versions 1 and 2, each controller where it is mounted. A limit counts wherever it is set, from the process's own group
up to the root of what is visible here: in a container that is often the container's own group, with whatever paths.
What is unlimited, absent or unreadable is no limit. Imports stay small, because every keeper carries them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
# Version 1 says "unlimited" as the largest number of pages, in bytes.
_UNLIMITED = 2**60
# Above it nothing is ended, but all of it waits for memory to be given back, and engines give none.
_SLOWS = "memory.high"


class Bound(NamedTuple):
    """A limit of memory: bytes, how many of them are used and cannot just be given back, and the file that says it."""

    limit: int
    used: int
    file: str

    @property
    def available(self) -> int:
        """Bytes that may still be taken."""
        return max(0, self.limit - self.used)


class Limits(NamedTuple):
    """Every limit that holds for a process: of memory, the nearest group's first; of CPUs the least, if there is one.

    `kills` is the file that counts what the kernel has ended in the process's own group for want of memory ("": none).
    """

    memory: tuple[Bound, ...] = ()
    cpus: float | None = None
    kills: str = ""

    @property
    def deadly(self) -> int | None:
        """The least limit, in bytes, at which the kernel ends a process."""
        return min((bound.limit for bound in self.memory if not bound.file.endswith(_SLOWS)), default=None)

    @property
    def tightest(self) -> Bound | None:
        """The limit that leaves least."""
        return min(self.memory, key=lambda bound: bound.available, default=None)


class _Mount(NamedTuple):
    """`root` is the path, in its hierarchy, of the group that is seen at `point`; `controllers` are version 1's."""

    root: str
    point: str
    controllers: frozenset[str]


def limits(root: Path, cgroup: str, mountinfo: str, *, all_here: bool = False) -> Limits:
    """The limits by the texts of /proc/PID/cgroup and /proc/PID/mountinfo; files are read below `root`.

    With `all_here` only those at the root of what is visible: they hold for all that is here, whatever its group.
    """
    version, places, own = _way(cgroup, mountinfo, "memory", all_here)
    bounds = (bound for place in places for bound in _bounds(root, version, place, place == places[-1]))
    memory = tuple(bounds)
    kills = f"{places[0]}/{'memory.oom_control' if version == 1 else 'memory.events'}" if own else ""
    counted = bool(kills) and _field(_read(root, kills), "oom_kill") is not None
    version, places, _ = _way(cgroup, mountinfo, "cpu", all_here)
    cpus = [quota for place in places if (quota := _cpus(root, version, place)) is not None]
    return Limits(memory, min(cpus, default=None), kills if counted else "")


def limits_of(pid: int | None = None) -> Limits:
    """The limits of a process that lives, by default of this one."""
    return limits(Path("/"), *_texts(pid))


def limits_of_all_here() -> Limits:
    """Those that hold for everything that this process can see the groups of: the machine, or a container."""
    return limits(Path("/"), *_texts(None), all_here=True)


def is_here(pid: int) -> bool:
    """Whether a process lives in the part of the hierarchy that is visible here; 0 is nobody's pid."""
    cgroup, mountinfo = _texts(pid)[0], _texts(None)[1]
    found = (_found(cgroup, mountinfo, controller) for controller in ("memory", "cpu"))
    return bool(cgroup) and any(within is not None for _, _, within in found)


def usable_cpus(own: Limits | None = None) -> int:
    """How many CPUs this process, and what it starts, can keep busy: at least 1.

    Its affinity, which no cpuset exceeds, and the quotas of its groups. A part of a CPU counts as one: with 1.5 a
    second thread computes for half of the time, and without it that half stays unused.
    """
    quota = (limits_of() if own is None else own).cpus
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota)) if quota is not None else affinity)


def cpus_in(text: str) -> frozenset[int]:
    """The CPUs of a list as the kernel writes it: "0-3,8"."""
    spans = ([int(end) for end in part.split("-")] for part in text.split(",") if part)
    return frozenset(number for span in spans for number in range(span[0], span[-1] + 1))


def threads(cpus: int) -> int:
    """How many threads an engine is to compute with, on so many CPUs: what feeds them needs one, too."""
    return max(1, cpus - 1)


class Kills:
    """Counts what the kernel ends for want of memory: in the group of a process, or where that does not tell, on the
    whole machine. `of_group` says which."""

    def __init__(self, pid: int) -> None:
        self._texts = _texts(pid)
        file = self._limits.kills
        self.of_group = bool(file)
        self._file = file or str(PROC / "vmstat")
        self._seen = self._count()

    @property
    def limit(self) -> int:
        """Bytes of memory at which it does so for a process of the group; 0 where only the machine sets a limit."""
        return self._limits.deadly or 0

    @property
    def _limits(self) -> Limits:
        return limits(Path("/"), *self._texts)

    def more(self) -> bool:
        """Whether there were any since it was asked last, or made."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        return _field(_read(Path("/"), self._file), "oom_kill") or 0


def _texts(pid: int | None) -> tuple[str, str]:
    own = PROC / ("self" if pid is None else str(pid))
    return _read(own, "cgroup"), _read(own, "mountinfo")


def _way(cgroup: str, mountinfo: str, controller: str, all_here: bool) -> tuple[int, list[str], bool]:
    """The version that has a controller; the directories of groups, from the process's own up to the root of what is
    visible; whether the first one is the process's own."""
    version, mount, within = _found(cgroup, mountinfo, controller)
    if mount is None:
        return version, [], False
    steps = [] if all_here or within is None else [part for part in within.split("/") if part]
    places = ["/".join((mount.point, *steps[:count])) for count in range(len(steps), -1, -1)]
    return version, places, within is not None and not all_here


def _found(cgroup: str, mountinfo: str, controller: str) -> tuple[int, _Mount | None, str | None]:
    """The version that has a controller, where it is mounted, and the process's group below that.

    None where the group is not below it: what is mounted is then taken for its own, as containers are laid out.
    """
    paths = dict(_paths(cgroup))
    version = 1 if controller in paths else 2
    path = paths.get(controller if version == 1 else "")
    # Of several the one that shows most of the way up.
    mounts = sorted(_mounts(mountinfo, version, controller), key=lambda mount: len(mount.root))
    if path is None or not mounts:
        return version, None, None
    for mount in mounts:
        if (within := _below(path, mount.root)) is not None:
            return version, mount, within
    return version, mounts[-1], None


def _below(path: str, root: str) -> str | None:
    """A path from a root that it lies below. "/.." begins the path of what is outside of a namespace's root."""
    if path == root or (root == "/" and not path.startswith("/..")):
        return path.removeprefix(root)
    return path.removeprefix(root) if path.startswith(f"{root}/") else None


def _paths(cgroup: str) -> Iterator[tuple[str, str]]:
    """Group by controller; version 2 is the controller ""."""
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path.removesuffix(" (deleted)")


def _mounts(mountinfo: str, version: int, controller: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] != ("cgroup" if version == 1 else "cgroup2"):
            continue
        mount = _Mount(_unescaped(fields[3]), _unescaped(fields[4]), frozenset(kind[2].split(",")))
        if version == 2 or controller in mount.controllers:
            yield mount


def _unescaped(path: str) -> str:
    r"""A path as the kernel writes it: a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _bounds(root: Path, version: int, place: str, top: bool) -> Iterator[Bound]:
    """The limits that are set on one group; on the `top` of what is visible also those of the groups above it."""
    stat = _read(root, f"{place}/memory.stat")
    if version == 1:
        used = (_number(root, f"{place}/memory.usage_in_bytes") or 0) - (_field(stat, "total_inactive_file") or 0)
        files = {file: _number(root, file) for file in (f"{place}/memory.limit_in_bytes",)}
        if top:
            files[f"{place}/memory.stat"] = _field(stat, "hierarchical_memory_limit")
    else:
        used = (_number(root, f"{place}/memory.current") or 0) - (_field(stat, "inactive_file") or 0)
        files = {file: _number(root, file) for file in (f"{place}/memory.max", f"{place}/{_SLOWS}")}
    for file, limit in files.items():
        if limit is not None and limit < _UNLIMITED:
            yield Bound(limit, max(0, used), file)


def _cpus(root: Path, version: int, place: str) -> float | None:
    if version == 1:
        quota, period = (_number(root, f"{place}/cpu.cfs_{name}_us") for name in ("quota", "period"))
    else:
        words = [*_read(root, f"{place}/cpu.max").split(), "", ""]
        quota, period = (int(word) if word.isdigit() else None for word in words[:2])
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _read(root: Path, file: str) -> str:
    try:
        return (root / file.lstrip("/")).read_text(errors="replace")
    except OSError:
        return ""


def _number(root: Path, file: str) -> int | None:
    text = _read(root, file).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _field(text: str, name: str) -> int | None:
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None
