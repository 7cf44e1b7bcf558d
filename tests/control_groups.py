"""A control group of this machine with limits of its own, to run commands in. Version 1 or 2, as the machine has it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
JOIN = 'for place in $PLACES; do echo $$ > "$place/cgroup.procs" || exit 99; done; unset PLACES; exec "$@"'
FILES = {1: ("memory.limit_in_bytes", "cpu.cfs_quota_us"), 2: ("memory.max", "cpu.max")}


@dataclass(frozen=True)
class Group:
    """`places` are its directories: one, or one for each controller."""

    version: int
    places: dict[str, Path]

    @property
    def within(self) -> tuple[str, ...]:
        """The words before a command that is to run in it, with all that it starts."""
        places = " ".join(dict.fromkeys(map(str, self.places.values())))
        return ("env", f"PLACES={places}", "sh", "-c", JOIN, "in-a-group")

    @property
    def memory_file(self) -> Path:
        """Where its limit of memory stands."""
        return self.places["memory"] / FILES[self.version][0]

    def limit_memory(self, size: int) -> None:
        self.memory_file.write_text(str(size))

    def limit_cpus(self, cpus: float) -> None:
        quota = str(int(cpus * 100_000))
        file = self.places["cpu"] / FILES[self.version][1]
        file.write_text(quota if self.version == 1 else f"{quota} 100000")

    @property
    def kills(self) -> int:
        """How many processes the kernel has ended because they would have outgrown it."""
        said = self.places["memory"] / ("memory.oom_control" if self.version == 1 else "memory.events")
        return next(int(line.split()[1]) for line in said.read_text().splitlines() if line.startswith("oom_kill "))

    def processes(self) -> list[int]:
        return [int(pid) for pid in (self.places["memory"] / "cgroup.procs").read_text().split()]


@contextmanager
def group() -> Iterator[Group]:
    """A new group without limits, which is removed, with whatever still runs in it. OSError where none can be made."""
    version, roots = _roots()
    name = f"orch-test-{os.getpid()}-{time.monotonic_ns()}"
    places = {controller: root / name for controller, root in roots.items()}
    made: list[Path] = []
    try:
        for place in dict.fromkeys(places.values()):
            place.mkdir()
            made.append(place)
        found = Group(version, places)
        found.memory_file.write_text(found.memory_file.read_text())
        yield found
    finally:
        for place in made:
            _remove(place)


def cannot() -> str:
    """Why no group can be made here; empty when one can."""
    try:
        with group():
            return ""
    except (OSError, LookupError) as error:
        return f"no control group with limits can be made: {error}"


def _roots() -> tuple[int, dict[str, Path]]:
    """Where groups are made: below the root of what is visible, apart from whatever group the tests are in."""
    mounts = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [(kind.split(), Path(before.split()[4])) for before, _, kind in mounts]
    version_1 = {
        controller: point
        for kind, point in places
        if kind[0] == "cgroup"
        for controller in ("memory", "cpu")
        if controller in kind[2].split(",")
    }
    if len(version_1) == 2:
        return 1, version_1
    for kind, point in places:
        if kind[0] == "cgroup2" and {"memory", "cpu"} <= set((point / "cgroup.subtree_control").read_text().split()):
            return 2, {"memory": point, "cpu": point}
    raise LookupError("no memory and CPU controllers are mounted")


def _remove(place: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        for pid in map(int, (place / "cgroup.procs").read_text().split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            place.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{place} cannot be removed"
            time.sleep(0.05)
        else:
            return
