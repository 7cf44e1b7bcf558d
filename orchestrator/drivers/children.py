"""What an instance's process has started besides itself, by /proc. A leaf: both targets look at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.launch import Children

PROC = Path("/proc")


def children_of(pid: int | None, below_init: bool = False) -> Children | None:
    """What the process has started; with `below_init` it is an init, and its child is meant. None where it is not seen:
    another's namespace, another user's."""
    if pid is None:
        return None
    try:
        process = next(_children(PROC / str(pid))) if below_init else PROC / str(pid)
        found = list(_below(process))
    except (OSError, StopIteration):
        return None
    return Children(len(found), sum(found))


def _children(process: Path) -> Iterator[Path]:
    for task in (process / "task").iterdir():
        yield from (PROC / pid for pid in (task / "children").read_text().split())


def _below(process: Path) -> Iterator[int]:
    """The clock ticks of each living process below this one."""
    for child in _children(process):
        # The command's name stands in brackets and may hold spaces and brackets itself.
        fields = (child / "stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[0] not in "ZX":
            yield int(fields[11]) + int(fields[12])
        yield from _below(child)
