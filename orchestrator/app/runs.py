"""Running plans: under the lock, with every event told and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.builders import BUILDERS, BuiltBy, UnknownToBuilder, weights_of
from orchestrator.core.events import Event, EventKind
from orchestrator.core.plan import Plan
from orchestrator.drivers.records import Journal, at_work, exclusive
from orchestrator.errors import HostError
from orchestrator.planning.prerequisites import builds_of

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

LOCK, JOURNAL = "lock", "journal.jsonl"
MEASURING = "measuring.lock"


class Watcher(Protocol):
    """Who watches a run: is told of every event and of a journal that cannot be written, and may end it."""

    def event(self, event: Event) -> None: ...

    def error(self, error: HostError) -> None: ...

    def interrupted(self) -> bool: ...


@contextmanager
def alone(orch: Orchestrator, doing: str) -> Iterator[None]:
    """Hold the lock of the data directory while the world is changed; `doing` is what others are told."""
    with exclusive(orch.settings.data / LOCK, doing):
        yield


@contextmanager
def alone_measuring(orch: Orchestrator, doing: str) -> Iterator[None]:
    """Keep others from having engines in turn meanwhile; whoever changes what serves for another reason may do so."""
    with exclusive(orch.settings.data / MEASURING, doing):
        yield


def who_is_at_work(orch: Orchestrator) -> str:
    """Who holds the lock, in a sentence; empty when nobody does."""
    return at_work(orch.settings.data / LOCK)


def run_plan(orch: Orchestrator, plan: Plan, watcher: Watcher) -> None:
    """Run a plan under the watcher's eyes and the journal's. See run.py for what it raises."""
    for text in dict.fromkeys(build.recipe.loss for build in builds_of(plan) if build.recipe.loss):
        orch.note({"loss": text}, text)
    journal: Journal | None = Journal(orch.settings.data / JOURNAL)

    def emit(event: Event) -> None:
        nonlocal journal
        watcher.event(event)
        if journal is None or event.kind in (EventKind.PROGRESS, EventKind.WAITING):
            return
        try:
            journal.append(event.to_json())
        except HostError as error:
            # The journal is for people; what is being done does not depend on it.
            journal = None
            watcher.error(error)

    # Only here: who looks at who is at work runs nothing.
    from orchestrator.run import run

    run(plan, orch, emit, watcher.interrupted)


def plan_and_run(
    orch: Orchestrator, doing: str, make_plan: Callable[[], Plan], watcher: Watcher, lock: bool = True
) -> Plan:
    """Make a plan and run it. `lock`: alone. What only adds to the store needs none: there each entry has its own.

    Weights that have just come may be none that orch's own builder knows: then there is another plan, by which
    llama.cpp's own tools build of them, or a refusal that says what is missing.
    """
    with alone(orch, doing) if lock else nullcontext():
        while True:
            plan = make_plan()
            try:
                run_plan(orch, plan, watcher)
            except UnknownToBuilder as error:
                if not _keep_unknown(orch, plan, error):
                    raise
            else:
                return plan


def _keep_unknown(orch: Orchestrator, plan: Plan, error: UnknownToBuilder) -> bool:
    """Keep what was found when a plan was run; whether another plan comes of it."""
    others = [build for build in builds_of(plan) if build.by is BuiltBy.ORCH and len(BUILDERS[build.recipe]) > 1]
    if not others or not orch.unknown_weights.keep(weights_of(others[0].source), error.what):
        return False
    orch.note({"unknown": error.what}, f"orch's own builder does not know {error.what}.")
    return True
