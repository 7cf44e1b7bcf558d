"""One run of the CLI: its screen, its signals, its questions, and orch over the data directory that it is about."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.cli.screen import Human, JsonLines, NobodyReadsError, Screen
from orchestrator.errors import HostError, Interrupted
from orchestrator.settings import Settings, read_settings

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator
    from orchestrator.core.events import Event
    from orchestrator.core.plan import Plan


class Session:
    """What a verb works with. It watches runs (app/runs.py): shows what happens, and knows whether to stop."""

    def __init__(self, as_json: bool) -> None:
        self.settings: Settings = read_settings(os.environ)
        self.screen: Screen = JsonLines() if as_json else Human()
        self._interrupted = False
        self.goes_on_unread = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @cached_property
    def orch(self) -> Orchestrator:
        """orch over the data directory."""
        from orchestrator.app.orchestrator import Orchestrator

        return Orchestrator(self.settings, self.progress, lambda value, text: self.screen.note(value, text))

    def interrupted(self) -> bool:
        """Whether the user asked to stop."""
        return self._interrupted

    def heed_again(self) -> None:
        """What was asked to stop has stopped: from now on only who asks again stops anything."""
        self._interrupted = False

    def event(self, event: Event) -> None:
        """Show it."""
        try:
            self.screen.event(event)
        except (OSError, NobodyReadsError):
            # A reader that has left, a full disk: stop, and take back in silence; or go on, where it has what it needs.
            self._interrupted, self.screen = self._interrupted or not self.goes_on_unread, Screen()

    def error(self, error: HostError) -> None:
        """Show it; what is being done goes on."""
        self.screen.error(error)

    def progress(self, what: str, done: int, total: int) -> None:
        """The Progress of work outside of a plan."""
        if self._interrupted:
            raise Interrupted()
        self.screen.progress(what, done, total)

    def ask(self, question: str) -> bool:
        """Yes or no, from the terminal; no where there is none. Ctrl-C is Interrupted."""
        if not sys.stdin.isatty():
            return False
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            sys.stderr.write(f"{question} [y/N] ")
            sys.stderr.flush()
            return sys.stdin.readline().strip().lower() in {"y", "yes"}
        except KeyboardInterrupt as error:
            raise Interrupted() from error
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, plan: Plan) -> None:
        """Run a plan in sight."""
        from orchestrator.app.runs import run_plan

        run_plan(self.orch, plan, self)

    def plan_and_run(self, doing: str, make_plan: Callable[[], Plan], only_plan: bool, lock: bool = True) -> None:
        """Make a plan and run it in sight; with `only_plan` print it, and stop. See app/runs.py for `lock`."""
        from orchestrator.app.runs import plan_and_run

        if only_plan:
            self.screen.plan(make_plan())
        else:
            plan_and_run(self.orch, doing, make_plan, self, lock)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
