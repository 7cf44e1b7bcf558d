"""What an advice is about: what serves here, what can, what was measured of it, and what clients did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator import resources
from orchestrator.app.choice import Choice, choice_here
from orchestrator.app.live import live_load
from orchestrator.bench.advice import Situation
from orchestrator.bench.results import Results
from orchestrator.bench.series import series_of
from orchestrator.core.live_load import LiveLoad
from orchestrator.errors import PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# What has to be alike for two levels to be points of one curve.
_ALIKE = ("engine", "recipe", "engine_version", "through", "dataset", "random_input_len", "random_output_len")


@dataclass(frozen=True)
class Question:
    """What somebody wants to know: for `users` at a time (None: as many as there were in the last `live_hours`), times
    `growth`, with a first token within `ttft_ms` (None: no limit) and so many adapters (None: those that there are)."""

    users: int | None
    growth: float = 1.0
    ttft_ms: float | None = None
    adapters: int | None = None
    live_hours: float | None = None


def situation(orch: Orchestrator, results: Results, profile: str | None, asked: Question) -> Situation:
    """All that is known about it; PlanRefused where the gateway is to know, and has counted nothing."""
    here = choice_here(orch, profile)
    live = _live(orch, here.profile, asked.live_hours) if asked.live_hours is not None else None
    users = asked.users
    if users is None:
        assert live is not None, "one of them says how many users there are"
        users = max(1, math.ceil(live.users_p95))
    usable, left_out = usable_levels(results.all(), here)
    return Situation(
        users=users,
        later=max(users, math.ceil(users * asked.growth)),
        ttft_ms=asked.ttft_ms,
        adapters=asked.adapters if asked.adapters is not None else here.adapters,
        simple=here.simple,
        many=here.many,
        reference=resources.reference(),
        serving=here.serving,
        cannot=here.cannot,
        measured=series_of(usable),
        left_out=left_out,
        live=live,
    )


def _live(orch: Orchestrator, profile: str, hours: float) -> LiveLoad:
    found = live_load(orch, profile, hours)
    if found is None or not found.requests:
        raise PlanRefused(
            f"The gateway has counted no request for {profile} in the last {hours:g} h.",
            hint="Say how many users there are: --users N",
        )
    return found


def usable_levels(levels: Iterable[Mapping[str, Any]], here: Choice) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """The levels of this profile on this machine that can be put together, the newest deciding what alike means; and
    what was left out of them, in words."""
    own = [
        level
        for level in levels
        if level["profile"] == here.profile and level["max_concurrency"] is not None and not level["adapters"]
    ]
    elsewhere = [level for level in own if tuple(level["gpus"]) != here.gpus]
    local = [level for level in own if tuple(level["gpus"]) == here.gpus and not level["interrupted"]]
    newest = {level["engine"]: level for level in local}
    usable = [level for level in local if _alike(level, newest[level["engine"]])]
    return usable, tuple(_left_out(elsewhere, len(local) - len(usable)))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in _ALIKE)


def _left_out(elsewhere: Sequence[Mapping[str, Any]], older: int) -> Iterator[str]:
    where = dict.fromkeys(", ".join(level["gpus"]) or "a CPU" for level in elsewhere)
    if elsewhere:
        yield f"{len(elsewhere)} levels measured on {' and on '.join(where)} say nothing of this machine."
    if older:
        yield f"{older} levels of another version, artifact or length than the newest are left out."
