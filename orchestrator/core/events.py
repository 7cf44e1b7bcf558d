"""What happened while a plan ran: the journal's line, the thing rendered, the JSON line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.core.steps import Step


class EventKind(StrEnum):
    """In the order in which they can come."""

    PLANNED = "planned"
    SKIPPED = "skipped"
    STARTED = "started"
    PROGRESS = "progress"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    COMMITTED = "committed"
    FINISHED = "finished"


@dataclass(frozen=True)
class Event:
    """`index` counts the plan's items from 0; `step` is the Step's class name; seconds are those the step took, or has
    taken so far while it waits, and `limit` (0: none) is after how many it gives up. `long`: it may take so long that
    its beginning is worth telling, on a screen that does not move. `is_so` says why it is skipped: it is so already,
    or else it is not done for another reason (a Remark)."""

    kind: EventKind
    verb: str
    index: int = 0
    step: str = ""
    what: str = ""
    why: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    done: int = 0
    total: int = 0
    long: bool = False
    is_so: bool = True

    def to_json(self) -> dict[str, Any]:
        """The event as a flat JSON object, without what is empty."""
        fields: dict[str, Any] = {"event": self.kind.value, "verb": self.verb, "index": self.index}
        extra = {
            "step": self.step,
            "what": self.what,
            "why": self.why,
            "seconds": round(self.seconds, 3),
            "limit": self.limit,
        }
        fields.update({name: value for name, value in extra.items() if value})
        if self.kind is EventKind.PROGRESS:
            fields.update(done=self.done, total=self.total)
        return fields


def step_name(step: Step) -> str:
    """The Step's kind, as it stands in events and plans."""
    return type(step).__name__
