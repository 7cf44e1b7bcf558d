"""How many processes a process has started, by /proc. A leaf: what looks at instances reads it, on both targets."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def descendants(pid: int | None) -> int | None:
    """The living processes below this one; None where they are not seen: another's namespace, another user's."""
    try:
        return _below(PROC / str(pid)) if pid is not None else None
    except OSError:
        return None


def _below(process: Path) -> int:
    words = (word for task in (process / "task").iterdir() for word in (task / "children").read_text().split())
    below = [PROC / word for word in words]
    return sum(_lives(child) + _below(child) for child in below if child.exists())


def _lives(process: Path) -> bool:
    return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
