"""A Plan: ordered values, each to be done, already so, or a remark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.core.events import step_name
from orchestrator.core.form import LongestHold
from orchestrator.core.steps import Step

if TYPE_CHECKING:
    from orchestrator.core.meaning import SamplingDefault
    from orchestrator.core.memory import MemoryFit


@dataclass(frozen=True)
class Action:
    """A Step to be done, and the Steps that take it back (in the order to run them). `within`: while it is done
    requests are held, and it fails before one is for too long."""

    step: Step
    undo: tuple[Step, ...] = ()
    within: LongestHold | None = None


@dataclass(frozen=True)
class Skip:
    """Something that need not be done, because it is so: what, and how that is known."""

    what: str
    why: str


@dataclass(frozen=True)
class Remark(Skip):
    """Something that is not done and is not so either: what, and why not."""


@dataclass(frozen=True)
class Upgrade(Remark):
    """What would be served by now, were it asked for anew, and why it is not."""


@dataclass(frozen=True)
class Plan:
    """Ordered values. A failure in the first `commit` items undoes all before it; after them it goes forward only.

    Of the engine that it starts, `memory_fit` says how it fits into memory, where that is known, and `sampling` what is
    taken where requests do not say.
    """

    verb: str
    items: tuple[Action | Skip, ...]
    commit: int
    memory_fit: MemoryFit | None = None
    sampling: tuple[SamplingDefault, ...] = ()

    @property
    def actions(self) -> tuple[Action, ...]:
        """The items that are to be done."""
        return tuple(item for item in self.items if isinstance(item, Action))

    @property
    def already_so(self) -> int:
        """How many of the items are."""
        return sum(isinstance(item, Skip) and not isinstance(item, Remark) for item in self.items)


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
