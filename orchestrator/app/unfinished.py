"""What a measurement of several engines has to put back: kept while it lasts, so that a kill does not lose it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.deployment import Desired, to_record
from orchestrator.core.part import Unfit
from orchestrator.engines.settings import read_settings

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

_KIND = "measuring"


@dataclass(frozen=True)
class Before:
    """What there was of a profile before: what was recorded (None: nothing), and whether a gateway ran."""

    profile: str
    desired: Desired | None
    gateway: bool

    @property
    def serving(self) -> str:
        """The engine that served it; empty where none did."""
        return self.desired.spec.engine if self.desired is not None and not self.desired.stopped else ""


def what_was(orch: Orchestrator, profile: str) -> Before:
    """What there is of a profile now; or, where a measurement was killed that had another of its engines serve, what
    there was before that."""
    observed = orch.observe()
    now = Before(profile, observed.desired.get(profile), bool(observed.gateway.all))
    left = _left(orch, profile)
    if left is None or now.serving not in left[1]:
        return now
    was, _ = left
    what = f"{was.serving} serves it" if was.serving else "it is taken down"
    orch.note(
        {"unfinished": profile},
        f"A measurement of {profile} was ended before it could put back what was there. After this one {what} again.",
    )
    return was


def keep(orch: Orchestrator, was: Before, engines: Collection[str]) -> None:
    """Before these engines are had in turn."""
    desired = json.loads(to_record(was.desired)) if was.desired is not None else None
    value = {"desired": desired, "gateway": was.gateway, "engines": sorted(engines)}
    orch.records.note(_KIND, was.profile, value)


def forget(orch: Orchestrator, profile: str) -> None:
    """Once all is as it was, or somebody has been told that it is not."""
    orch.records.note(_KIND, profile, None)


def _left(orch: Orchestrator, profile: str) -> tuple[Before, Collection[str]] | None:
    found = orch.records.noted(_KIND, profile)
    if not isinstance(found, dict):
        return None
    try:
        desired = Desired.from_record(found["desired"], read_settings) if found["desired"] is not None else None
        return Before(profile, desired, bool(found["gateway"])), tuple(map(str, found["engines"]))
    except (Unfit, KeyError, TypeError, ValueError):
        return None
