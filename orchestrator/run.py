"""Plan x World to Events: does the steps in order, and takes them back when one fails before the commit point.

How a step is done lies in perform/; deciding has happened in planning/.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress

from orchestrator.core.events import Event, EventKind, step_name
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.progress import Progress, silent, split_part
from orchestrator.core.steps import Duration, Step
from orchestrator.drivers.base import World
from orchestrator.errors import Interrupted, OrchError, StepFailed, StepStranded
from orchestrator.perform import keeping_hold, perform

Emit = Callable[[Event], None]

# While a step waits, that is told no more often.
WAITING_S = 1.0


def run(plan: Plan, world: World, emit: Emit, interrupted: Callable[[], bool]) -> None:
    """Run a plan to its end.

    Raises the step's own error when no step before it has changed what serves, StepFailed when all was undone,
    StepStranded when something is left over, Interrupted when `interrupted()` came true (after undo). Any other
    exception is a bug: it is undone like a failure, and then raised as it came.
    """
    undo: list[Action] = []
    for index, item in enumerate(plan.items):
        committed = index >= plan.commit
        try:
            if isinstance(item, Skip):
                is_so = not isinstance(item, Remark)
                emit(Event(EventKind.SKIPPED, plan.verb, index, what=item.what, why=item.why, is_so=is_so))
                continue
            if committed and undo:
                emit(Event(EventKind.COMMITTED, plan.verb, index))
                undo = []
            began = world.clock.monotonic()
            progress = _progress(plan.verb, index, item.step, emit, interrupted, world.clock.monotonic)
            long, limit = item.step.duration is Duration.LONG, item.step.limit_s
            if item.within is not None:
                progress = keeping_hold(item.within, world, progress)
                limit = min(limit, item.within.seconds)
            kind, what = step_name(item.step), item.step.what
            emit(Event(EventKind.STARTED, plan.verb, index, kind, what, limit=limit, long=long))
            progress(item.step.what, 0, 0)
            if not committed:
                undo.append(item)
            told = perform(item.step, world, progress) or ""
            seconds = world.clock.monotonic() - began
            emit(Event(EventKind.DONE, plan.verb, index, kind, what, told, seconds=seconds))
        except Exception as error:
            _tell_failure(plan.verb, index, item, error, emit)
            stranded = _take_back(plan, undo, world, emit)
            if stranded is not None:
                raise stranded from error
            if isinstance(error, OrchError) and isinstance(item, Action):
                raise _verdict(plan, item, error, undo if not committed else None) from error
            if committed:
                error.add_note("The switch is done and serves; the same command again finishes what is left.")
            elif any(action.undo for action in undo):
                error.add_note("What had been started was taken back.")
            raise
    emit(Event(EventKind.FINISHED, plan.verb, len(plan.items)))


def _progress(
    verb: str, index: int, step: Step, emit: Emit, interrupted: Callable[[], bool], now: Callable[[], float]
) -> Progress:
    began = told = now()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        if interrupted():
            raise Interrupted()
        if total or split_part(what)[1]:
            emit(Event(EventKind.PROGRESS, verb, index, step_name(step), what, done=done, total=total))
        elif now() - told < WAITING_S:
            return
        else:
            waited = now() - began
            kind = step_name(step)
            emit(Event(EventKind.WAITING, verb, index, kind, step.what, seconds=waited, limit=step.limit_s))
        told = now()

    return progress


def _tell_failure(verb: str, index: int, item: Action | Skip, error: Exception, emit: Emit) -> None:
    what, step = (item.step.what, step_name(item.step)) if isinstance(item, Action) else (item.what, "")
    why = error.message if isinstance(error, OrchError) else repr(error)
    # Where telling is what failed, what has been done must be taken back all the same.
    with suppress(Exception):
        emit(Event(EventKind.FAILED, verb, index, step, what, why))


def _take_back(plan: Plan, done: list[Action], world: World, emit: Emit) -> StepStranded | None:
    """Undo in reverse, the failed step first: it may have got half-way. Undoing is not interruptible, and what cannot
    be undone, for whatever reason, does not keep the rest from it; it is what is returned."""
    stranded: list[tuple[Step, Exception]] = []
    for step in (step for action in reversed(done) for step in action.undo):
        with suppress(Exception):
            emit(Event(EventKind.UNDOING, plan.verb, step=step_name(step), what=step.what))
        try:
            perform(step, world, silent)
        except Exception as error:  # noqa: BLE001  told below, with its traceback where it is a bug
            stranded.append((step, error))
            continue
        with suppress(Exception):
            emit(Event(EventKind.UNDONE, plan.verb, step=step_name(step), what=step.what))
    if not stranded:
        return None
    again = "orch up" if plan.verb == "rollback" else "the same command again"
    step, cause = stranded[0]
    evidence = [*(f"not undone: {other.what}" for other, _ in stranded[1:])]
    evidence += [error.detail if isinstance(error, OrchError) else _traceback(error) for _, error in stranded]
    return StepStranded(
        f"Could not {step.what} while undoing: {cause.message if isinstance(cause, OrchError) else repr(cause)}",
        hint=f"Run {again}, or orch down, when the cause is gone.",
        detail="\n".join(filter(None, evidence)),
    )


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).strip()


def _verdict(plan: Plan, failed: Action, error: OrchError, undone: list[Action] | None) -> OrchError:
    """What to raise; `undone` is None after the commit point."""
    what = f"Could not {failed.step.what}: {error.message}"
    # Rolling back twice goes forward again; the record says already where to.
    again = "orch up finishes it." if plan.verb == "rollback" else "Run the same command again to finish it."
    done = "The switch is done and serves. " if plan.commit else ""
    if undone is None:
        if isinstance(error, Interrupted):
            return Interrupted("Interrupted after the switch." if plan.commit else error.message, hint=again)
        return StepStranded(what, hint=f"{done}{again} {error.hint}".strip(), detail=error.detail)
    if isinstance(error, Interrupted):
        taken_back = any(action.undo for action in undone)
        return Interrupted("Interrupted; what had been started was taken back." if taken_back else error.message)
    if not any(action.undo for action in undone if action is not failed):
        return error
    return StepFailed(what, hint=error.hint, detail=error.detail)
