"""Plans, events, tables and errors for people or for programs (JSON lines).

Results go to stdout; what happens meanwhile, and errors, to stderr. With --json everything is a line on stdout. What
stays is text with styles of typer's, which is there anyway; rich, which costs as much as all of a look at what serves,
comes for what moves, on a terminal. The only importer of rich.
"""

from __future__ import annotations

import errno
import json
import re
import select
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

from orchestrator.core.events import Event, EventKind
from orchestrator.core.progress import split_part
from orchestrator.core.progress_view import PartLine, ProgressView, amount, clock, waited
from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status as Spinner
    from rich.text import Text

    from orchestrator.core.meaning import SamplingDefault
    from orchestrator.core.memory import MemoryFit
    from orchestrator.core.plan import Plan

# A log is not a screen: progress of one step is told at most this often there.
PLAIN_PROGRESS_S = 5.0
SPINNER_PROGRESS_S = 0.1
JSON_PROGRESS_S = 0.5
# What only takes its time is told less often, and not at all before it has taken some.
PLAIN_WAIT_S = 30.0
JSON_WAIT_S = 5.0
WAITS_AFTER_S = 1.0
LAST_COLUMN_MIN = 16
SPINNER_WIDTH = 2
# Files that come at once: a name, a bar, and what stands around and after it.
BAR = 20
PART_TAIL = BAR + len("    100 % of 999.9 GB") + 1
PARTS_SHOWN = 8


class NobodyReadsError(Exception):
    """The reader has left: of a pipe, or with `interrupts` of a terminal, which is meant like Ctrl-C."""

    def __init__(self, interrupts: bool) -> None:
        super().__init__("the output has no reader")
        self.interrupts = interrupts


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

    def sampling(self, defaults: Sequence[SamplingDefault]) -> None:
        """What is taken where a request does not say, for people."""
        rows = [{"name": one.name, "value": f"{one.value:g}", "said by": one.said_by} for one in defaults]
        self.table("Sampling, where a request does not say", ("name", "value", "said by"), rows)

    def facts(self, title: str, facts: Mapping[str, str]) -> None:
        """What is known of one thing, for people: a line each, of what is not empty."""

    def say(self, text: str) -> None:
        """A line for people, where programs get one document."""

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
        self._reported_at = time.monotonic()

    def plan(self, plan: Plan) -> None:
        from orchestrator.core.plan import plan_json

        self._line(plan_json(plan))
        if plan.memory_fit is not None:
            self._line({"budget": plan.memory_fit.to_json()})
        if plan.sampling:
            self._line({"sampling": [vars(one) for one in plan.sampling]})

    def event(self, event: Event) -> None:
        every_s = {EventKind.PROGRESS: JSON_PROGRESS_S, EventKind.WAITING: JSON_WAIT_S}.get(event.kind, 0.0)
        if not every_s or self._is_time(event.what, every_s):
            self._line(event.to_json())

    def progress(self, what: str, done: int, total: int) -> None:
        if total and self._is_time(what, JSON_PROGRESS_S):
            self._line({"event": "progress", "what": what, "done": done, "total": total})

    def _is_time(self, what: str, every_s: float) -> bool:
        """Of parts nothing is told: the whole is what programs wait for."""
        now = time.monotonic()
        if split_part(what)[1] or now - self._reported_at < every_s:
            return False
        self._reported_at = now
        return True

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._line(row)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        self._line(value)

    def note(self, value: Mapping[str, Any], text: str) -> None:
        self._line(value)

    def error(self, error: OrchError) -> None:
        fields = {"error": error.message, "hint": error.hint, "detail": error.detail, "exit": error.exit_code}
        self._line({name: value for name, value in fields.items() if value != ""})

    def close(self) -> None:
        """Nothing moves."""

    def _line(self, value: Mapping[str, Any]) -> None:
        _write(json.dumps(value), sys.stdout)


class JsonDocument(JsonLines):
    """One JSON object in all: of what happens on the way nothing is told."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Not told."""

    def note(self, value: Mapping[str, Any], text: str) -> None:
        """Not told."""


class Human(Screen):
    """Lines that stay for what is done, one that moves for what is going on."""

    def __init__(self) -> None:
        self._moves = sys.stderr.isatty()
        self._console: Console | None = None
        self._spinner: Spinner | None = None
        self._view = ProgressView()
        self._reported_at = time.monotonic()
        self._gap = False
        self._waits_for, self._waits_since = "", 0.0

    def plan(self, plan: Plan) -> None:
        from orchestrator.core.plan import Action, Remark

        for index, item in enumerate(plan.items):
            if index == plan.commit and index:
                self._out("  -", "commit: forward only from here", dim=True)
            if isinstance(item, Action):
                back = f"   (undo: {', '.join(step.what for step in item.undo)})" if item.undo else ""
                self._out("  +", item.step.what, back, bold=True)
            else:
                self._out(_skip_mark(not isinstance(item, Remark)), item.what, f"   {item.why}", dim=True)
        count = len(plan.actions)
        _write(f"{count} to do, {plan.already_so} already so." if count else "Nothing to do.", sys.stdout)
        if plan.memory_fit is not None:
            self._memory_fit(plan.memory_fit)
        if plan.sampling:
            self._gap = True
            self.sampling(plan.sampling)

    def _memory_fit(self, memory_fit: MemoryFit) -> None:
        parts = list(memory_fit.rows())
        sizes = [f"{size / 2**30:.2f} GiB" for _, size, _ in parts]
        wide = max(map(len, sizes))
        rows = [
            {"part": part, "size": size.rjust(wide), "of": note}
            for (part, _, note), size in zip(parts, sizes, strict=True)
        ]
        self._gap = True
        self.table(f"Memory of {memory_fit.where}", ("part", "size", "of"), rows)

    def event(self, event: Event) -> None:
        match event.kind:
            case EventKind.STARTED:
                if self._moves:
                    self._wait(event.what, 0.0, event.limit)
                elif event.long:
                    self._move(f"{event.what}   at most {clock(event.limit)}" if event.limit else event.what)
            case EventKind.PROGRESS:
                self.progress(event.what, event.done, event.total)
            case EventKind.WAITING:
                self._wait(event.what, event.seconds, event.limit)
            case EventKind.SKIPPED:
                self._err(_skip_mark(event.is_so), event.what, f"   {event.why}", dim=True)
            case EventKind.DONE:
                self._err("  +", event.what, f"   {event.seconds:.1f} s{f'   {event.why}' if event.why else ''}")
            case EventKind.FAILED:
                self._err("  !", event.what, fg="red")
            case EventKind.UNDOING:
                if self._moves:
                    self._wait(f"undo: {event.what}", 0.0)
                else:
                    self._move(f"undo: {event.what}")
            case EventKind.UNDONE:
                self._err("  <", f"undone: {event.what}", fg="yellow")
            case _:
                pass

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        wait = SPINNER_PROGRESS_S if self._moves else PLAIN_PROGRESS_S
        if not total and not split_part(what)[1]:
            if what != self._waits_for:
                self._waits_for, self._waits_since = what, now
            elif now - self._waits_since >= WAITS_AFTER_S:
                self._wait(what, now - self._waits_since)
            return
        if self._view.tell(what, done, total, now) and now - self._reported_at >= wait:
            self._reported_at = now
            self._move(self._view.line, self._view.parts)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self._still()
        self._leave_gap()
        if not rows:
            _write(f"{title}: none.", sys.stdout)
            return
        cells = [[_cell(column, row.get(column, "")) for column in columns] for row in rows]
        right = {index for index, column in enumerate(columns) if _is_number(column, rows)}
        names = [column.replace("_", " ") for column in columns]
        head, *lines = _aligned([names, *cells], right, _width())
        _write("\n".join([typer.style(title, bold=True), typer.style(head, dim=True), *lines]), sys.stdout)
        self._gap = True

    def facts(self, title: str, facts: Mapping[str, str]) -> None:
        self._still()
        self._leave_gap()
        rows = [[f"  {name}", fact] for name, fact in facts.items() if fact]
        _write("\n".join([typer.style(title, bold=True), *_aligned(rows, set(), _width())]), sys.stdout)
        self._gap = True

    def say(self, text: str) -> None:
        self.result({}, text)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        self._still()
        self._leave_gap()
        _write(text, sys.stdout)

    def note(self, value: Mapping[str, Any], text: str) -> None:
        self._err("  .", text, dim=True)

    def error(self, error: OrchError) -> None:
        self._still()
        _write(typer.style("ERROR ", fg="red", bold=True) + _harmless(error.message), sys.stderr)
        # What one problem is, the message says already.
        if error.detail and error.detail not in error.message:
            _write(typer.style(_indented(_harmless(error.detail)), dim=True), sys.stderr)
        if error.hint:
            _write(typer.style("TIP ", fg="cyan", bold=True) + _harmless(error.hint), sys.stderr)

    def close(self) -> None:
        self._still()

    def _wait(self, what: str, seconds: float, limit: float = 0.0) -> None:
        """Tell how long something has taken, of how long it may; on a terminal that goes on by itself."""
        began = time.monotonic() - seconds
        if self._moves:
            self._show(lambda width, is_utf: Drawn(lambda: moving(_since(began, what, limit), (), width, is_utf)))
        elif time.monotonic() - self._reported_at >= PLAIN_WAIT_S:
            self._reported_at = time.monotonic()
            self._move(waited(what, seconds, limit))

    def _move(self, what: str, parts: Sequence[PartLine] = ()) -> None:
        if self._moves:
            self._show(lambda width, is_utf: moving(what, parts, width, is_utf))
            return
        remarks = "".join(f"   ({part.name})" for part in parts if part.share is None)
        _write(f"  . {what}{remarks}", sys.stderr)

    def _show(self, draw: Callable[[int, bool], Text | Drawn]) -> None:
        if self._console is None:
            # Only here, and only on a terminal: it is the largest of all imports of a look.
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        console = self._console
        shown = draw(console.width - SPINNER_WIDTH, console.encoding.lower().startswith("utf"))
        with _readers():
            if self._spinner is None:
                self._spinner = console.status(shown)
                self._spinner.start()
            else:
                self._spinner.update(shown)

    def _still(self) -> None:
        self._reported_at = time.monotonic()
        self._view = ProgressView()
        self._waits_for = ""
        if self._spinner is not None:
            spinner, self._spinner = self._spinner, None
            with _readers():
                spinner.stop()

    def _leave_gap(self) -> None:
        """A table and what follows it are kept apart."""
        if self._gap:
            _write("", sys.stdout)
        self._gap = False

    def _out(self, mark: str, what: str, rest: str = "", **style: Any) -> None:
        _write(_marked(mark, what, rest, style), sys.stdout)

    def _err(self, mark: str, what: str, rest: str = "", **style: Any) -> None:
        self._still()
        _write(_marked(mark, what, rest, style), sys.stderr)


class Drawn:
    """What moves, drawn anew for each picture of it."""

    def __init__(self, draw: Callable[[], Text]) -> None:
        self._draw = draw

    def __rich__(self) -> Text:
        return self._draw()


def _since(began: float, what: str, limit: float) -> str:
    seconds = time.monotonic() - began
    return waited(what, seconds, limit) if seconds >= WAITS_AFTER_S else what


def _skip_mark(is_so: bool) -> str:
    return "  =" if is_so else "  ."


def _marked(mark: str, what: str, rest: str, style: Mapping[str, Any]) -> str:
    return typer.style(f"{mark} {what}", **style) + (typer.style(rest, dim=True) if rest else "")


def _write(text: str, stream: TextIO) -> None:
    """A line, or several, at once; styles are left out where it is no terminal."""
    with _readers():
        typer.echo(text, file=stream)


@contextmanager
def _readers() -> Iterator[None]:
    """A pipe whose reader has left, and a terminal that was closed, are one error, and not one of what is done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            raise NobodyReadsError(interrupts=error.errno == errno.EIO) from error
        raise
    except SystemExit as error:
        # What rich makes of a broken pipe.
        raise NobodyReadsError(interrupts=False) from error


def reader_has_left() -> bool:
    """Whether nobody can read standard output any more, found out without writing."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


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


def _width() -> int | None:
    """Where text is to wrap; None where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _is_number(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(isinstance(row.get(column), int | float) for row in rows)


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
