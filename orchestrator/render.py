"""Plans, events, tables and errors for people (rich) or for programs (JSON lines). The only importer of rich.

Results go to stdout; what happens meanwhile, and errors, to stderr. With --json everything is a line on stdout.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.core.events import Event, EventKind, plan_json
from orchestrator.core.going import Going, PartLine, amount
from orchestrator.core.progress import split_part
from orchestrator.core.steps import Action, Plan
from orchestrator.core.vram import Budget
from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status as Spinner
    from rich.text import Text

# A log is not a screen: progress of one step is told at most this often there.
PLAIN_PROGRESS_S = 5.0
SPINNER_PROGRESS_S = 0.1
JSON_PROGRESS_S = 0.5
# In a log, these are told when they begin; the others are over at once.
LONG_STEPS = (
    *("FetchWeights", "FetchArtifact", "BuildArtifact", "BuildTogether", "EnsureEnvironment", "PullImage"),
    *("BuildImage", "AwaitMemory", "ImportArtifact", "AwaitReady", "Drain"),
)
LAST_COLUMN_MIN = 16
SPINNER_WIDTH = 2
# Files that come at once: a name, a bar, and what stands around and after it.
BAR = 20
PART_TAIL = BAR + len("    100 % of 999.9 GB") + 1
PARTS_SHOWN = 8


class Screen:
    """What the CLI speaks through. By itself it says nothing: for when nobody reads any more."""

    def plan(self, plan: Plan) -> None:
        """A plan, before or instead of running it."""

    def event(self, event: Event) -> None:
        """What just happened."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Progress of work that is no plan."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows by column name; a JSON line each."""

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """An outcome: `value` for programs, `text` for people."""

    def note(self, value: Mapping[str, Any], text: str) -> None:
        """What is worth knowing on the way; no outcome."""

    def error(self, error: OrchError) -> None:
        """What went wrong, the evidence, and what to do."""

    def close(self) -> None:
        """End whatever moves on the screen."""


class JsonLines(Screen):
    """One JSON object per line, on stdout, flushed at once; of progress only a line now and then."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def plan(self, plan: Plan) -> None:
        self._line(plan_json(plan))
        if plan.budget is not None:
            self._line({"budget": plan.budget.to_json()})

    def event(self, event: Event) -> None:
        if event.kind is not EventKind.PROGRESS or self._is_time(event.what):
            self._line(event.to_json())

    def progress(self, what: str, done: int, total: int) -> None:
        if total and self._is_time(what):
            self._line({"event": "progress", "what": what, "done": done, "total": total})

    def _is_time(self, what: str) -> bool:
        """Of parts nothing is told: the whole is what programs wait for."""
        now = time.monotonic()
        if split_part(what)[1] or now - self._told < JSON_PROGRESS_S:
            return False
        self._told = now
        return True

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._line(row)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        self._line(value)

    def note(self, value: Mapping[str, Any], text: str) -> None:
        self._line(value)

    def error(self, error: OrchError) -> None:
        told = {"error": error.message, "hint": error.hint, "detail": error.detail, "exit": error.exit_code}
        self._line({name: value for name, value in told.items() if value != ""})

    def close(self) -> None:
        """Nothing moves."""

    def _line(self, value: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


class Human(Screen):
    """Lines that stay for what is done, one that moves for what is going on."""

    def __init__(self) -> None:
        from rich.console import Console

        class Pipe(Console):
            def on_broken_pipe(self) -> None:
                """Not rich's SystemExit: what is going on has to be taken back first."""
                raise BrokenPipeError(errno.EPIPE, "nobody reads on")

        self._out: Console = Pipe(highlight=False, soft_wrap=True)
        self._err: Console = Pipe(stderr=True, highlight=False, soft_wrap=True)
        self._spinner: Spinner | None = None
        self._going = Going()
        self._told = time.monotonic()
        self._gap = False

    def plan(self, plan: Plan) -> None:
        for index, item in enumerate(plan.items):
            if index == plan.commit and index:
                self._print(self._out, "  -", "commit: forward only from here", "dim")
            if isinstance(item, Action):
                back = f"   (undo: {', '.join(step.what for step in item.undo)})" if item.undo else ""
                self._print(self._out, "  +", item.step.what, "bold", back)
            else:
                self._print(self._out, "  =", item.what, "dim", f"   {item.why}")
        count = len(plan.actions)
        self._out.print(f"{count} to do, {len(plan.items) - count} already so." if count else "Nothing to do.")
        if plan.budget is not None:
            self._budget(plan.budget)

    def _budget(self, budget: Budget) -> None:
        parts = list(budget.rows())
        sizes = [f"{size / 2**30:.2f} GiB" for _, size, _ in parts]
        wide = max(map(len, sizes))
        rows = [
            {"part": part, "size": size.rjust(wide), "of": note}
            for (part, _, note), size in zip(parts, sizes, strict=True)
        ]
        self._gap = True
        self.table(f"Memory of {budget.where}", ("part", "size", "of"), rows)

    def event(self, event: Event) -> None:
        match event.kind:
            case EventKind.STARTED:
                if self._err.is_terminal or event.step in LONG_STEPS:
                    self._move(event.what)
            case EventKind.PROGRESS:
                self.progress(event.what, event.done, event.total)
            case EventKind.SKIPPED:
                self._print(self._err, "  =", event.what, "dim", f"   {event.why}")
            case EventKind.DONE:
                self._still()
                self._print(self._err, "  +", event.what, "", f"   {event.seconds:.1f} s")
            case EventKind.FAILED:
                self._still()
                self._print(self._err, "  !", event.what, "red")
            case EventKind.UNDOING:
                self._move(f"undo: {event.what}")
            case EventKind.UNDONE:
                self._still()
                self._print(self._err, "  <", f"undone: {event.what}", "yellow")
            case _:
                pass

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        wait = SPINNER_PROGRESS_S if self._err.is_terminal else PLAIN_PROGRESS_S
        if not total and not split_part(what)[1]:
            return
        if self._going.tell(what, done, total, now) and now - self._told >= wait:
            self._told = now
            self._move(self._going.line, self._going.parts)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        from rich.text import Text

        self._still()
        self._leave_gap()
        if not rows:
            self._out.print(f"{title}: none.")
            return
        cells = [[_cell(column, row.get(column, "")) for column in columns] for row in rows]
        right = {index for index, column in enumerate(columns) if _is_number(column, rows)}
        names = [column.replace("_", " ") for column in columns]
        head, *lines = _aligned([names, *cells], right, self._out.width if self._out.is_terminal else None)
        self._out.print(Text(title, style="bold"))
        self._out.print(Text(head, style="dim"))
        for line in lines:
            self._out.print(Text(line))
        self._gap = True

    def result(self, value: Mapping[str, Any], text: str) -> None:
        from rich.text import Text

        self._still()
        self._leave_gap()
        self._out.print(Text(text))

    def note(self, value: Mapping[str, Any], text: str) -> None:
        self._still()
        self._print(self._err, "  .", text, "dim")

    def error(self, error: OrchError) -> None:
        from rich.text import Text

        self._still()
        self._err.print(Text.assemble(("ERROR ", "bold red"), _harmless(error.message)))
        if error.detail:
            self._err.print(Text(_indented(_harmless(error.detail)), style="dim"))
        if error.hint:
            self._err.print(Text.assemble(("TIP ", "bold cyan"), _harmless(error.hint)))

    def close(self) -> None:
        self._still()

    def _move(self, what: str, parts: Sequence[PartLine] = ()) -> None:
        if not self._err.is_terminal:
            remarks = "".join(f"   ({part.name})" for part in parts if part.share is None)
            self._err.print(f"  . {what}{remarks}", markup=False)
            return
        told = moving(what, parts, self._err.width - SPINNER_WIDTH, self._err.encoding.lower().startswith("utf"))
        if self._spinner is None:
            self._spinner = self._err.status(told)
            self._spinner.start()
        else:
            self._spinner.update(told)

    def _still(self) -> None:
        self._told = time.monotonic()
        self._going = Going()
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _leave_gap(self) -> None:
        """A table and what follows it are kept apart."""
        if self._gap:
            self._out.print()
        self._gap = False

    def _print(self, console: Console, mark: str, what: str, style: str, rest: str = "") -> None:
        from rich.text import Text

        console.print(Text.assemble((f"{mark} {what}", style), (rest, "dim")))


def moving(what: str, parts: Sequence[PartLine], width: int, is_utf: bool) -> Text:
    """What moves, in lines of `width` at most: the whole, and below it what is under way, each with a bar."""
    from rich.text import Text

    done, still = ("\u2501", "\u2500") if is_utf else ("#", ".")
    named = min(max((len(part.name) for part in parts if part.share is not None), default=0), max(9, width - PART_TAIL))
    lines = [Text(what)]
    for part in parts[:PARTS_SHOWN]:
        if part.share is None:
            lines.append(Text(f"  {part.name}", style="yellow"))
            continue
        filled = int(BAR * part.share)
        line = Text(f"  {_ending(part.name, named):<{named}}  ", style="dim")
        line.append(done * filled, style="cyan").append(still * (BAR - filled), style="bright_black")
        lines.append(line.append(f" {int(100 * part.share):>3} % of {part.amount}"))
    if len(parts) > PARTS_SHOWN:
        lines.append(Text(f"  and {len(parts) - PARTS_SHOWN} more", style="dim"))
    for line in lines:
        line.truncate(width, overflow="ellipsis" if is_utf else "crop")
    return Text("\n").join(lines)


def _ending(name: str, width: int) -> str:
    """The end of a name, which is where those of one model differ."""
    return name if len(name) <= width else "..." + name[3 - width :]


def _harmless(text: str) -> str:
    """What others have said (a hub, a file) may not move the cursor or rename the window."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _cell(column: str, value: Any) -> str:
    """A value for people; programs get it whole from --json."""
    if column == "size" and isinstance(value, int):
        return amount(value) if value else ""
    if column == "created":
        return datetime.fromisoformat(str(value)).astimezone().strftime("%Y-%m-%d %H:%M")
    if column == "source":
        return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b", r"\1", str(value))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _is_number(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(isinstance(row.get(column), int) for row in rows)


def _aligned(table: list[list[str]], right: set[int], width: int | None) -> list[str]:
    """Lines of columns, two spaces apart. Only the last column wraps at `width`: names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max(widths[-1] if width is None else width - indent, LAST_COLUMN_MIN)
    lines = []
    for row in table:
        last = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        cells = [
            cell.rjust(wide) if index in right else cell.ljust(wide)
            for index, (cell, wide) in enumerate(zip([*row[:-1], last[0]], widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        lines += [" " * indent + more for more in last[1:]]
    return lines
