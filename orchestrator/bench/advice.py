"""Which engine for how many users, and why. Pure: facts in, words out.

The article's rules are the prior: the simple engine for 1 and 2 users; either for 3 to 7, the one for many where the
first token matters; that one for 8 and more; a switch with 4 regular users, a first token after more than 2 s, several
adapters. What the user has measured on the same GPU takes the place of its figures, as far as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from orchestrator.bench.series import Crossover, Point, Series, crossover
from orchestrator.bench.words import time_text, users_text
from orchestrator.core.live_load import LiveLoad
from orchestrator.core.reference import Reference, ReferenceEngine

# The article's rules, in users at a time.
SIMPLE_UP_TO = 2
MANY_FROM = 8
REGULAR = 4
# Its "TTFT over 2 s under load", in milliseconds.
SLOW_MS = 2000.0
SEVERAL_ADAPTERS = 2
# Standard errors of both within which two throughputs are the same.
_SURE = 2


_ARTICLE = "the article's rules"
_MACHINE = "this machine"


class Sure(StrEnum):
    """What an advice rests on, the surest first."""

    MEASURED = "measured here"
    BEYOND = "measured here, for fewer users"
    HALF = "half measured: one engine only"
    PRIOR = "a rule of thumb: nothing was measured here"
    ONLY = "there is no choice"


@dataclass(frozen=True)
class Situation:
    """What is asked: for `users` at a time, and `later`, with a first token within `ttft_ms` (None: no limit) and so
    many adapters. `serving` serves now (empty: nothing). `simple` is the engine for few users that is meant, `many` the
    one for many; `cannot` says why one of them cannot serve here. `measured` are curves of this profile on this
    machine, `left_out` what was measured and is not in them, and why; `live` is what clients did."""

    users: int
    later: int
    ttft_ms: float | None
    adapters: int
    simple: str
    many: str
    reference: Reference
    serving: str = ""
    cannot: Mapping[str, str] = field(default_factory=dict)
    measured: Sequence[Series] = ()
    left_out: Sequence[str] = ()
    live: LiveLoad | None = None


@dataclass(frozen=True)
class Reason:
    """Why, and where the figures in it are from."""

    text: str
    source: str


@dataclass(frozen=True)
class Advice:
    """The engine (empty: none can serve), what to do about it, how sure that is, why; when to look again, and what to
    run to know better (empty: nothing)."""

    engine: str
    verdict: str
    sure: Sure
    reasons: tuple[Reason, ...]
    again: str = ""
    run: str = ""


@dataclass(frozen=True)
class Figure:
    """What an engine does with so many users: tokens a second of all with their standard error, the first token in
    milliseconds (p95 where it was measured); `how` it is known. `beyond`: of fewer users than are meant, so the first
    token comes later than that; `gains`: and more users still brought more tokens."""

    engine: str
    throughput: float | None
    error: float
    ttft_ms: float | None
    how: str
    measured: bool
    beyond: bool = False
    gains: bool = False

    @property
    def first(self) -> str:
        """Its first token, in words."""
        return f"{time_text(self.ttft_ms)} or more" if self.beyond else time_text(self.ttft_ms)


def advise(asked: Situation) -> Advice:
    """The advice."""
    possible = [engine for engine in (asked.simple, asked.many) if engine not in asked.cannot]
    if len(possible) < 2:
        return _without_choice(asked, possible)
    simple, many = (_as_clients_see(asked, _figure(asked, engine)) for engine in (asked.simple, asked.many))
    if simple.measured and many.measured and not (simple.gains or many.gains):
        engine, reasons = _by_figures(asked, simple, many)
        sure = Sure.BEYOND if simple.beyond or many.beyond else Sure.MEASURED
    else:
        engine, reasons = _by_rules(asked, simple)
        both = simple.measured and many.measured
        sure = Sure.BEYOND if both else Sure.HALF if simple.measured or many.measured else Sure.PRIOR
        reasons = [*(_of_gains(one) for one in (simple, many) if one.gains), *reasons]
    told = [*_of_live(asked), *_of_growth(asked), *reasons, *(Reason(text, "not used") for text in asked.left_out)]
    run = "" if sure is Sure.MEASURED else _to_measure(asked)
    return Advice(engine, _verdict(asked, engine), sure, tuple(told), _again(asked, engine), run)


def _without_choice(asked: Situation, possible: Sequence[str]) -> Advice:
    reasons = [Reason(f"{engine} cannot serve this here: {why}", _MACHINE) for engine, why in asked.cannot.items()]
    if not possible:
        return Advice("", "Neither engine can serve this here.", Sure.ONLY, tuple(reasons))
    (engine,) = possible
    if engine == asked.simple and asked.later > SIMPLE_UP_TO:
        reasons.append(Reason(f"With {users_text(asked.later)} it will be slow: more wait for each answer.", _ARTICLE))
    return Advice(engine, _verdict(asked, engine), Sure.ONLY, (*_of_live(asked), *reasons))


def _by_figures(asked: Situation, simple: Figure, many: Figure) -> tuple[str, list[Reason]]:
    """By what was measured of both, for the users that there will be."""
    both = f"{simple.engine}: {simple.how}; {many.engine}: {many.how}"
    users = users_text(asked.later)
    reasons: list[Reason] = []
    if asked.adapters >= SEVERAL_ADAPTERS:
        reasons.append(_of_adapters(asked))
    if simple.ttft_ms is not None and many.ttft_ms is not None:
        limit = asked.ttft_ms if asked.ttft_ms is not None else SLOW_MS
        name = "your limit" if asked.ttft_ms is not None else "what the article calls slow"
        kept = [one.engine for one in (simple, many) if (one.ttft_ms or 0.0) <= limit]
        first = (
            f"With {users} the first token comes after {simple.first} from {simple.engine} and {many.first} from "
            f"{many.engine}"
        )
        # Of one that was measured with fewer users it is known that it is too slow, never that it is not.
        unknown = any(one.beyond and one.engine in kept for one in (simple, many))
        if len(kept) == 1 and not unknown:
            reasons.append(Reason(f"{first}: only {kept[0]} keeps to {time_text(limit)}, {name}.", both))
            return kept[0], reasons
        if not kept and asked.ttft_ms is not None:
            quicker = min((simple, many), key=lambda one: one.ttft_ms or 0.0).engine
            reasons.append(Reason(f"{first}: neither keeps to {time_text(limit)}; {quicker} is nearer.", both))
            return quicker, reasons
        reasons.append(Reason(f"{first}.", both))
    assert simple.throughput is not None, "it was measured"
    assert many.throughput is not None, "it was measured"
    gain = many.throughput - simple.throughput
    noise = _SURE * math.hypot(simple.error, many.error)
    rates = (
        f"With {users} {simple.engine} gives {simple.throughput:,.0f} tokens a second and {many.engine} "
        f"{many.throughput:,.0f}"
    )
    if abs(gain) <= noise:
        reasons.append(Reason(f"{rates}: as good as the same, within ±{noise:,.0f}.", both))
        tied = asked.many if asked.adapters >= SEVERAL_ADAPTERS else asked.serving or asked.simple
        return (tied if tied in (asked.simple, asked.many) else asked.simple), reasons
    reasons.append(Reason(f"{rates}.", both))
    if gain < 0 and asked.adapters >= SEVERAL_ADAPTERS:
        reasons.append(Reason("These figures are of the base alone: with several adapters the rule counts.", _ARTICLE))
        return asked.many, reasons
    return (asked.many if gain > 0 else asked.simple), reasons


def _by_rules(asked: Situation, simple: Figure) -> tuple[str, list[Reason]]:
    """By the article's rules, with what is known of the simple engine."""
    users, later = asked.later, users_text(asked.later)
    reasons: list[Reason] = list(_known(asked))
    limit = asked.ttft_ms if asked.ttft_ms is not None else SLOW_MS
    slow = simple.ttft_ms is not None and simple.ttft_ms > limit
    if asked.adapters >= SEVERAL_ADAPTERS:
        return asked.many, [*reasons, _of_adapters(asked)]
    if users >= MANY_FROM:
        text = f"{later}: from {MANY_FROM} on {asked.many} serves them together, where {asked.simple} has them wait."
        return asked.many, [*reasons, Reason(text, _ARTICLE)]
    if slow:
        first = f"With {later} the first token comes after {time_text(simple.ttft_ms)} from {asked.simple}"
        text = f"{first}, past {time_text(limit)}."
        return asked.many, [*reasons, Reason(text, simple.how)]
    if users <= SIMPLE_UP_TO:
        return asked.simple, [*reasons, Reason(f"{later}: {asked.simple} is simple, and the faster one.", _ARTICLE)]
    if users >= REGULAR and asked.ttft_ms is None:
        text = f"{later}: with {REGULAR} regular ones the switch to {asked.many} begins to pay."
        return asked.many, [*reasons, Reason(text, _ARTICLE)]
    either = asked.serving if asked.serving in (asked.simple, asked.many) else asked.simple
    return either, [*reasons, Reason(f"{later}: either will do.", _ARTICLE)]


def _known(asked: Situation) -> Iterator[Reason]:
    """What the prior has for so many users."""
    cells = []
    for place, engine in enumerate((asked.simple, asked.many)):
        of_article = asked.reference.engines[place]
        point = of_article.at(asked.later)
        if point is None or point.throughput is None:
            return
        name = engine if engine == of_article.engine else f"{of_article.engine} (a cousin of {engine})"
        first = f", first token after {time_text(point.ttft)}" if point.ttft is not None else ""
        cells.append(f"{name} {point.throughput:g} tok/s{first}")
    yield Reason(f"With {users_text(asked.later)}: {'; '.join(cells)}.", f"the article, on one {asked.reference.gpu}")


def _of_gains(one: Figure) -> Reason:
    return Reason(f"{one.engine} was still gaining with the most users that it was measured with.", one.how)


def _of_adapters(asked: Situation) -> Reason:
    simple, many = asked.reference.engines
    text = (
        f"{asked.adapters} adapters: {asked.many} serves them all at once and switches in {many.adapter_swap}; "
        f"{simple.engine} takes {simple.adapter_swap} for a switch."
    )
    return Reason(text, "the article")


def _of_live(asked: Situation) -> Iterator[Reason]:
    live = asked.live
    if live is None:
        return
    first = f", first token p95 {time_text(live.ttft_p95_ms)}" if live.ttft_p95_ms is not None else ""
    yield Reason(
        f"{live.requests:,} requests: {live.users_p50:g} at a time as a rule, {live.users_p95:g} at busy times, "
        f"{live.users_max} at most; {live.waiting_p95:g} waiting{first}.",
        f"live traffic of the last {_hours(live.hours)}",
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _of_growth(asked: Situation) -> Iterator[Reason]:
    if asked.later != asked.users:
        yield Reason(f"{users_text(asked.users)} now, {asked.later} later: what is said is for {asked.later}.", "you")


def _as_clients_see(asked: Situation, figure: Figure) -> Figure:
    """With the first token as clients of what serves have had it, where the question is about them."""
    live = asked.live
    if live is None or live.ttft_p95_ms is None or figure.engine != asked.serving or asked.later != asked.users:
        return figure
    return replace(figure, ttft_ms=live.ttft_p95_ms, how=f"{figure.how}, first token p95 as clients had it")


def _figure(asked: Situation, engine: str) -> Figure:
    """What is known of it for the users that there will be: measured, else the article's."""
    of_engine = [series for series in asked.measured if series.engine == engine]
    if of_engine:
        return _measured(of_engine[0], asked.later)
    place = 0 if engine == asked.simple else 1
    return _of_article(engine, asked.reference.engines[place], asked.later, asked.reference)


def _measured(series: Series, users: int) -> Figure:
    points = series.points
    exact = series.at(users)
    if exact is not None:
        return _told(series, exact, f"measured with {users_text(users)}")
    if users > points[-1].users:
        saturated = series.beyond(users) is not None
        what = "which was all that it could give" if saturated else "the most that was measured"
        return _told(
            series, points[-1], f"as with {users_text(points[-1].users)}, {what}", beyond=True, gains=not saturated
        )
    if users < points[0].users:
        return _told(series, points[0], f"as with {users_text(points[0].users)}, the fewest measured")
    low = max((point for point in points if point.users < users), key=lambda point: point.users)
    high = min((point for point in points if point.users > users), key=lambda point: point.users)
    part = math.log2(users / low.users) / math.log2(high.users / low.users)

    def between(one: float | None, other: float | None) -> float | None:
        return one + (other - one) * part if one is not None and other is not None else None

    return Figure(
        series.engine,
        between(low.throughput, high.throughput),
        max(low.error, high.error),
        between(low.ttft_p95, high.ttft_p95),
        f"between {low.users} and {high.users} users as measured",
        measured=True,
    )


def _told(series: Series, point: Point, how: str, beyond: bool = False, gains: bool = False) -> Figure:
    return Figure(series.engine, point.throughput, point.error, point.ttft_p95, how, True, beyond, gains)


def _of_article(engine: str, known: ReferenceEngine, users: int, reference: Reference) -> Figure:
    """The article's figure for so many, or for the most below that: one for more would be too bad for fewer."""
    below = [point for point in known.points if point.users <= users and point.ttft is not None]
    point = below[-1] if below else None
    how = f"the article, with {users_text(point.users)} on one {reference.gpu}" if point is not None else "the article"
    return Figure(engine, None, 0.0, point.ttft if point is not None else None, how, measured=False)


def _verdict(asked: Situation, engine: str) -> str:
    if engine == asked.serving:
        return f"Stay with {engine}."
    if asked.serving:
        return f"Move to {engine}: orch migrate --to {engine}"
    return f"Take {engine}: orch up {engine}"


def _again(asked: Situation, engine: str) -> str:
    """When to look again."""
    if engine != asked.simple or asked.many in asked.cannot:
        return ""
    found = crossing(asked)
    if found is not None and found.users <= asked.later:
        return f"With more than {asked.later} users {asked.many} gives more, as measured."
    if found is not None:
        least = f", perhaps from {found.least:.0f}" if found.least is not None and found.least < found.users - 1 else ""
        return f"Look again at {math.ceil(found.users)} users{least}: there {asked.many} gives more, as measured."
    if len({series.engine for series in asked.measured} & {asked.simple, asked.many}) == 2:
        most = min(series.points[-1].users for series in asked.measured)
        return f"Up to {most} users nothing changes, as measured; look again beyond that."
    return f"Look again at {REGULAR} regular users, or once the first token takes more than {SLOW_MS / 1000:g} s."


def crossing(asked: Situation) -> Crossover | None:
    """Where the engine for many comes to give more, as measured."""
    by_engine = {series.engine: series for series in reversed(asked.measured)}
    if asked.simple not in by_engine or asked.many not in by_engine:
        return None
    return crossover(by_engine[asked.simple], by_engine[asked.many])


def _to_measure(asked: Situation) -> str:
    """The command that would make it sure."""
    steps = [1]
    while steps[-1] < max(MANY_FROM, asked.later):
        steps.append(steps[-1] * 2)
    return f"orch bench --engines {asked.simple},{asked.many} --concurrency {','.join(map(str, steps))}"
