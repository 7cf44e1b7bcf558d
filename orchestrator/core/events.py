"""What happened while a plan ran: the journal's line, the thing rendered, the JSON line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.core.steps import Action, Plan, Skip, Step


class EventKind(StrEnum):
    """In the order in which they can come."""

    PLANNED = "planned"
    SKIPPED = "skipped"
    STARTED = "started"
    PROGRESS = "progress"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    COMMITTED = "committed"
    FINISHED = "finished"


@dataclass(frozen=True)
class Event:
    """`index` counts the plan's items from 0; `step` is the Step's class name; seconds are those the step took."""

    kind: EventKind
    verb: str
    index: int = 0
    step: str = ""
    what: str = ""
    why: str = ""
    seconds: float = 0.0
    done: int = 0
    total: int = 0

    def to_json(self) -> dict[str, Any]:
        """The event as a flat JSON object, without what is empty."""
        fields: dict[str, Any] = {"event": self.kind.value, "verb": self.verb, "index": self.index}
        extra = {"step": self.step, "what": self.what, "why": self.why, "seconds": round(self.seconds, 3)}
        fields.update({name: value for name, value in extra.items() if value})
        if self.kind is EventKind.PROGRESS:
            fields.update(done=self.done, total=self.total)
        return fields


def step_name(step: Step) -> str:
    """The Step's kind, as it stands in events and plans."""
    return type(step).__name__


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: the same object that `run` gets, for --plan --json."""
    items: list[dict[str, Any]] = []
    for item in plan.items:
        match item:
            case Action(step, undo):
                entry: dict[str, Any] = {"do": step_name(step), "what": step.what}
                if undo:
                    entry["undo"] = [back.what for back in undo]
                items.append(entry)
            case Skip(what, why):
                items.append({"skip": what, "why": why})
    return {"plan": plan.verb, "commit": plan.commit, "items": items}
