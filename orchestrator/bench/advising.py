"""What an advice is about: what serves here, what can, what was measured of it, and what clients did."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator import resources
from orchestrator.app.choice import Choice, choice_here
from orchestrator.app.live import live_load
from orchestrator.bench.advice import SEVERAL_ADAPTERS, Situation
from orchestrator.bench.results import Results
from orchestrator.bench.series import series_of
from orchestrator.bench.sweep import AROUND, Sweep
from orchestrator.core.live_load import LiveLoad
from orchestrator.errors import PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# What has to be alike for two engines to be compared, and for two levels of one to be points of a curve besides.
_LOAD = ("through", "dataset", "random_input_len", "random_output_len", "shared_prefix_len")
_SUBJECT = ("recipe", "artifact", "engine_version", "gpus")
# From then on it is said how old a measurement is.
_OLD_DAYS = 30


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
    here = choice_here(orch, profile, asked.adapters)
    live = _live(orch, here.profile, asked.live_hours) if asked.live_hours is not None else None
    levels = list(results.all())
    usable, left_out = usable_levels(levels, here, of_adapters=here.adapters >= SEVERAL_ADAPTERS)
    with_adapters = {level["engine"] for level in usable} == {here.simple, here.many}
    with_adapters = with_adapters and here.adapters >= SEVERAL_ADAPTERS
    if here.adapters >= SEVERAL_ADAPTERS and not with_adapters:
        usable, left_out = usable_levels(levels, here)
    known = Situation(
        users=1,
        later=1,
        ttft_ms=asked.ttft_ms,
        adapters=here.adapters,
        simple=here.simple,
        many=here.many,
        reference=resources.reference(),
        serving=here.serving,
        cannot=here.cannot,
        measured=series_of({**level, "adapters": []} for level in usable),
        with_adapters=with_adapters,
        noted=notes_of(usable, here, datetime.now(UTC)),
        left_out=left_out,
        live=live,
        gpu=here.gpus[0] if here.gpus else "",
        parallel=here.parallel,
        room=here.room,
        option=here.option,
        lengths=_lengths(usable, here.context),
    )
    users = asked.users or known.live_users
    assert users is not None, "one of them says how many users there are"
    return replace(known, users=users, later=max(users, math.ceil(users * asked.growth)))


def _lengths(usable: Sequence[Mapping[str, Any]], context: int) -> str:
    """How a bench is told of the lengths of what was measured; or of shorter prompts and answers than its usual ones,
    where those are more than a context."""
    usual = Sweep()
    measured = {(level["random_input_len"], level["random_output_len"]) for level in usable}
    if len(measured) == 1:
        ((prompt, answer),) = measured
        if prompt is not None and (prompt, answer) != (usual.input_tokens, usual.output_tokens):
            return f" --input-len {prompt} --output-len {answer}"
    if usual.input_tokens + usual.output_tokens + AROUND <= context:
        return ""
    each = max(1, (context - AROUND) // 2)
    return f" --input-len {each} --output-len {each}"


def _live(orch: Orchestrator, profile: str, hours: float) -> LiveLoad:
    found = live_load(orch, profile, hours)
    if found is None or not found.requests:
        raise PlanRefused(
            f"The gateway has counted no request for {profile} in the last {hours:g} h.",
            hint="Say how many users there are: --users N",
        )
    return found


def usable_levels(
    levels: Iterable[Mapping[str, Any]], here: Choice, of_adapters: bool = False
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """The levels of this profile on this machine that can be put together, and what was left out of them, in words: of
    the base, or of several adapters in turn.

    Engines are compared under one load: the last that both of them had, else the last of any. Of an engine the newest
    level under it decides which version and artifact are meant."""
    own = [
        level for level in levels if level["profile"] == here.profile and level["engine"] in (here.simple, here.many)
    ]
    closed = [level for level in own if level["max_concurrency"] is not None and _is_meant(level, of_adapters)]
    local = [level for level in closed if _is_here(level, here)]
    whole = [level for level in local if not level["interrupted"]]
    load = _load_meant(whole, {here.simple, here.many})
    loaded = [level for level in whole if _of(level, _LOAD) == load]
    newest = {level["engine"]: level for level in loaded}
    usable = [level for level in loaded if _of(level, _SUBJECT) == _of(newest[level["engine"]], _SUBJECT)]
    elsewhere = [level for level in closed if not _is_here(level, here)]
    where = dict.fromkeys(", ".join(level["gpus"]) or "a CPU" for level in elsewhere)
    told = (
        (len(elsewhere), f"measured on {' and on '.join(where)}: not what it computes on here."),
        (len(own) - len(closed), f"at a rate, or of {'the base' if of_adapters else 'adapters'}: another question."),
        (len(local) - len(whole), "cut short by an interrupt."),
        (len(whole) - len(loaded), "of other lengths, or asked another way, than those that are compared."),
        (len(loaded) - len(usable), "of another version or artifact than the newest."),
    )
    return usable, tuple(f"{'1 level' if number == 1 else f'{number} levels'} {why}" for number, why in told if number)


def _is_meant(level: Mapping[str, Any], of_adapters: bool) -> bool:
    return len(level["adapters"]) >= SEVERAL_ADAPTERS if of_adapters else not level["adapters"]


def _is_here(level: Mapping[str, Any], here: Choice) -> bool:
    """Whether it was measured on GPUs that are here; or on none, where its engine takes none here either."""
    if not level["gpus"]:
        return level["engine"] not in here.on_gpu
    return Counter(level["gpus"]) <= Counter(here.gpus)


def _load_meant(levels: Sequence[Mapping[str, Any]], engines: set[str]) -> tuple[Any, ...] | None:
    of_load: dict[tuple[Any, ...], set[str]] = {}
    for level in levels:
        # The last one that came is the last in order.
        load = _of(level, _LOAD)
        of_load[load] = of_load.pop(load, set()) | {level["engine"]}
    of_both = [load for load, measured in of_load.items() if measured == engines]
    return next(reversed(of_both or list(of_load)), None)


def _of(level: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(level.get(key) for key in keys)


def notes_of(usable: Sequence[Mapping[str, Any]], here: Choice, now: datetime) -> tuple[str, ...]:
    """What is to be known of the levels of each engine: that they are old, of another version of orch, or of another
    artifact than the one that serves."""
    return tuple(
        text
        for engine, newest in {level["engine"]: level for level in usable}.items()
        for text in _notes(engine, newest, here, now)
    )


def _notes(engine: str, newest: Mapping[str, Any], here: Choice, now: datetime) -> Iterator[str]:
    days = _days_since(str(newest["date"]), now)
    if days is not None and days >= _OLD_DAYS:
        yield f"{engine} was measured {days} days ago."
    if newest["orch"] and newest["orch"] != here.orch:
        yield f"{engine} was measured by orch {newest['orch']}; this is {here.orch}."
    if engine == here.serving and here.recipe and newest["recipe"] and newest["recipe"] != here.recipe:
        yield f"{engine} was measured with {newest['recipe']}; now it serves {here.recipe}."


def _days_since(date: str, now: datetime) -> int | None:
    """None where a date is none, as another instrument may write it."""
    try:
        then = datetime.fromisoformat(date)
    except ValueError:
        return None
    return (now - (then if then.tzinfo is not None else then.replace(tzinfo=UTC))).days
