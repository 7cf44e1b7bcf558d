"""Programs of the user's own that run to their end: converters, quantizers. They end with orch; what a killed orch left
running is ended by the next run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.progress import Progress
from orchestrator.core.tools import LOG_LINES, ToolEnd, counted
from orchestrator.drivers.local import proc
from orchestrator.drivers.local.command import allowed_environ, run_command
from orchestrator.errors import HostError

_GRACE_S = 3.0
# They are given files, and have nothing to ask anybody for.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def run_tool(what: str, argv: Sequence[str], work: Path, progress: Progress) -> ToolEnd:
    """Run a program in the directory `work` to its end, which may be a bad one; it and what it started are gone
    afterwards, also when `progress` raises.

    Progress is called with `what` and what the program counts in its output (`[i/n]`); 0 of 0 before that. HostError
    when it cannot be started.
    """
    count = (0, 0)

    def line(text: str) -> None:
        nonlocal count
        count = counted(text) or count

    environ = {**allowed_environ(), **_OFFLINE, proc.MARKER: str(work)}
    try:
        finished = run_command(
            list(argv),
            environ,
            tick=lambda: progress(what, *count),
            on_line=line,
            cwd=work,
            keep_lines=LOG_LINES,
        )
    except OSError as error:
        raise HostError(
            f"{argv[0]} cannot be started: {error.strerror}.", "Is it a program for this machine?"
        ) from error
    code = finished.code or 0
    return ToolEnd(code if code >= 0 else 128 - code, finished.out_of_memory, "\n".join(finished.lines))


def end_tools(work: Path) -> None:
    """End what runs for the directory `work` still, since an orch that was killed has started it there."""
    if not proc.end(lambda: proc.members(work, None), _GRACE_S):
        raise HostError(
            f"A program that was started in {work} cannot be ended.", "It may hang in the kernel: see dmesg."
        )
