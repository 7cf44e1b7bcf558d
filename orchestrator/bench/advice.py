"""Which engine for how many users, and why. Pure: facts in, words out.

The article's rules are the prior: the simple engine for 1 and 2 users; either for 3 to 7, the one for many where the
first token matters; that one for 8 and more; a switch with 4 regular users, a first token after more than 2 s, several
adapters. What the user has measured on the same GPU takes the place of its figures, as far as it goes. An engine that
was seen to leave requests unanswered is not advised where the other one was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from orchestrator.bench.figures import Figure, article_figure, measured_figure, told_by_article
from orchestrator.bench.series import Crossover, Series, crossover
from orchestrator.bench.words import time_text, users_text
from orchestrator.core.live_load import LiveLoad
from orchestrator.core.reference import Reference

# The article's rules, in users at a time.
SIMPLE_UP_TO = 2
MANY_FROM = 8
REGULAR = 4
# Its "TTFT over 2 s under load", in milliseconds.
SLOW_MS = 2000.0
SEVERAL_ADAPTERS = 2
# Standard errors of both within which two throughputs are the same.
_SURE = 2
# Most users at a time that orch bench measures.
MOST_USERS = 1024

_ARTICLE = "the article's rules"
_MACHINE = "this machine"


class Sure(StrEnum):
    """What an advice rests on, the surest first."""

    MEASURED = "measured here"
    BEYOND = "measured here, for fewer users"
    HALF = "half measured: one engine only"
    RULE = "a rule of thumb: what was measured here does not reach so far"
    PRIOR = "a rule of thumb: nothing was measured here"
    ONLY = "there is no choice"


@dataclass(frozen=True)
class Situation:
    """What is asked: for `users` at a time, and `later`, with a first token within `ttft_ms` (None: no limit) and so
    many adapters. `serving` serves now (empty: nothing). `simple` is the engine for few users that is meant, `many` the
    one for many; `cannot` says why one of them cannot serve here. `measured` are curves of this profile on this
    machine, `noted` what is to be known of them, `left_out` what was measured and is not in them, and why; `live` is
    what clients did, `live_users` of them at a time. `gpu` is this machine's first one (empty: it has none); the
    profile has the simple engine take `parallel` requests at a time, and room for `room` adapters. `with_adapters`:
    what was measured is of several of them in turn, not of the base. `option` is what says in a command which profile
    is meant, and `lengths` in a bench of it which prompts and answers; empty where it goes without."""

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
    noted: Sequence[str] = ()
    left_out: Sequence[str] = ()
    live: LiveLoad | None = None
    gpu: str = ""
    parallel: int = 1
    room: int = 0
    with_adapters: bool = False
    option: str = ""
    lengths: str = ""

    @property
    def live_users(self) -> int | None:
        """At busy times; None where nobody has counted."""
        return max(1, math.ceil(self.live.users_p95)) if self.live is not None else None


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


def advise(asked: Situation) -> Advice:
    """The advice."""
    possible = [engine for engine in (asked.simple, asked.many) if engine not in asked.cannot]
    if len(possible) < 2:
        return _without_choice(asked, possible)
    simple, many = (_as_clients_see(asked, _figure(asked, engine)) for engine in (asked.simple, asked.many))
    both = simple.measured and many.measured
    if both and not (simple.gains or many.gains):
        engine, reasons = _by_figures(asked, simple, many)
        sure = Sure.BEYOND if simple.beyond or many.beyond else Sure.MEASURED
        if engine == asked.many and _of_adapters(asked) in reasons:
            sure = Sure.RULE
    else:
        engine, reasons = _by_rules(asked, simple, many)
        sure = Sure.RULE if both else Sure.HALF if simple.measured or many.measured else Sure.PRIOR
        reasons = [*(_of_gains(one) for one in (simple, many) if one.gains), *reasons]
    told = [*_of_live(asked), *_of_growth(asked), *reasons, *_of_room(asked)]
    told += [*(Reason(text, "your measurements") for text in asked.noted)]
    told += [*(Reason(text, "not used") for text in asked.left_out)]
    run = "" if sure is Sure.MEASURED else _to_measure(asked)
    return Advice(engine, _verdict(asked, engine), sure, tuple(told), _again(asked, engine), run)


def _without_choice(asked: Situation, possible: Sequence[str]) -> Advice:
    reasons = [Reason(f"{engine} cannot serve this here: {why}", _MACHINE) for engine, why in asked.cannot.items()]
    if not possible:
        return Advice("", "Neither engine can serve this here.", Sure.ONLY, tuple(reasons))
    (engine,) = possible
    figure = _as_clients_see(asked, _figure(asked, engine))
    if figure.measured:
        reasons.append(_of_measured(asked, figure))
    elif engine == asked.simple and asked.later > SIMPLE_UP_TO:
        reasons.append(Reason(f"With {users_text(asked.later)} it will be slow: more wait for each answer.", _ARTICLE))
    if asked.ttft_ms is not None and figure.own and (figure.ttft_ms or 0.0) > asked.ttft_ms:
        reasons.append(
            Reason(f"Its first token comes after {figure.first}, past your {time_text(asked.ttft_ms)}.", figure.how)
        )
    told = (*_of_live(asked), *_of_growth(asked), *reasons, *_of_room(asked))
    return Advice(engine, _verdict(asked, engine), Sure.ONLY, told)


def _by_figures(asked: Situation, simple: Figure, many: Figure) -> tuple[str, list[Reason]]:
    """By what was measured of both, for the users that there will be."""
    both, number = _from(simple, many), users_text(asked.later)
    reasons: list[Reason] = []
    engine = _by_failures(asked, simple, many, reasons)
    if engine:
        return engine, reasons
    by_rule = asked.adapters >= SEVERAL_ADAPTERS and not asked.with_adapters
    if by_rule:
        reasons.append(_of_adapters(asked))
    engine = _by_first_token(asked, simple, many, reasons)
    if engine:
        return engine, reasons
    assert simple.throughput is not None, "it was measured"
    assert many.throughput is not None, "it was measured"
    gain = many.throughput - simple.throughput
    noise = _SURE * math.hypot(simple.error, many.error)
    rates = f"With {number}: {simple.rate}, and {many.rate}"
    if abs(gain) <= noise:
        reasons.append(Reason(f"{rates}: as good as the same, within ±{noise:,.0f}.", both))
        tied = asked.many if by_rule else asked.serving or asked.simple
        return (tied if tied in (asked.simple, asked.many) else asked.simple), reasons
    reasons.append(Reason(f"{rates}.", both))
    if gain < 0 and by_rule:
        reasons.append(Reason("These figures are of the base alone: with several adapters the rule counts.", _ARTICLE))
        return asked.many, reasons
    return (asked.many if gain > 0 else asked.simple), reasons


def _by_rules(asked: Situation, simple: Figure, many: Figure) -> tuple[str, list[Reason]]:
    """By the article's rules, with what is known of each engine."""
    number, later = asked.later, users_text(asked.later)
    reasons = [_of_measured(asked, one) for one in (simple, many) if one.measured]
    reasons += _known(asked, [one for one in (simple, many) if not one.measured])
    engine = _by_failures(asked, simple, many, reasons)
    if engine:
        return engine, reasons
    if asked.adapters >= SEVERAL_ADAPTERS and not asked.with_adapters:
        return asked.many, [*reasons, _of_adapters(asked)]
    engine = _by_first_token(asked, simple, many, reasons) if asked.ttft_ms is not None else ""
    if engine:
        return engine, reasons
    if number >= MANY_FROM:
        text = f"{later}: from {MANY_FROM} on {asked.many} serves them together, where {asked.simple} has them wait."
        return asked.many, [*reasons, Reason(text, _ARTICLE)]
    # The article's own word of few users is its rule, not what lies between its figures.
    told = simple.own or number >= REGULAR
    if asked.ttft_ms is None and told and simple.ttft_ms is not None and simple.ttft_ms > SLOW_MS:
        whose = asked.simple if simple.own else asked.reference.engines[0].engine
        text = f"With {later} the first token comes after {simple.first} from {whose}, past {time_text(SLOW_MS)}."
        return asked.many, [*reasons, Reason(text, _from(simple))]
    if number <= SIMPLE_UP_TO:
        return asked.simple, [*reasons, Reason(f"{later}: {asked.simple} is simple, and the faster one.", _ARTICLE)]
    if number >= REGULAR and asked.ttft_ms is None:
        text = f"{later}: with {REGULAR} regular ones the switch to {asked.many} begins to pay."
        return asked.many, [*reasons, Reason(text, _ARTICLE)]
    either = asked.serving if asked.serving in (asked.simple, asked.many) else asked.simple
    return either, [*reasons, Reason(f"{later}: either will do.", _ARTICLE)]


def _by_failures(asked: Situation, simple: Figure, many: Figure, reasons: list[Reason]) -> str:
    """The one that answers, where only one was seen to fail; it is told in any case. Empty where that decides
    nothing."""
    failing = [one for one in (simple, many) if one.fails]
    for one in failing:
        up_to = "up to " if one.between else ""
        share = f"{up_to}{100 * one.failing:.0f} %"
        text = f"With {users_text(asked.later)} {one.engine} leaves {share} of its requests unanswered."
        reasons.append(Reason(text, _from(one)))
    if len(failing) != 1:
        return ""
    return asked.many if failing[0] is simple else asked.simple


def _by_first_token(asked: Situation, simple: Figure, many: Figure, reasons: list[Reason]) -> str:
    """The one that keeps to the limit where the other does not, or the nearer one where neither does. It is told in any
    case; empty where that decides nothing."""
    if simple.ttft_ms is None or many.ttft_ms is None:
        return ""
    limit = asked.ttft_ms if asked.ttft_ms is not None else SLOW_MS
    name = "your limit" if asked.ttft_ms is not None else "what the article calls slow"
    kept = [one for one in (simple, many) if (one.ttft_ms or 0.0) <= limit]
    both = _from(simple, many)
    first = (
        f"With {users_text(asked.later)} the first token comes after {simple.first} from {simple.engine} and "
        f"{many.first} from {many.engine}"
    )
    # Of one that was measured with fewer users it is known that it is too slow, never that it is not.
    if len(kept) == 1 and not kept[0].first_beyond:
        reasons.append(Reason(f"{first}: only {kept[0].engine} keeps to {time_text(limit)}, {name}.", both))
        return kept[0].engine
    if not kept and asked.ttft_ms is not None:
        quicker = min((simple, many), key=lambda one: one.ttft_ms or 0.0).engine
        reasons.append(Reason(f"{first}: neither keeps to {time_text(limit)}; {quicker} is nearer.", both))
        return quicker
    reasons.append(Reason(f"{first}.", both))
    return ""


def _known(asked: Situation, unmeasured: Sequence[Figure]) -> Iterator[Reason]:
    """What the prior has of those that were not measured here, for so many users; and why it may not hold here."""
    number, cells, how = asked.later, [], ""
    for figure in unmeasured:
        of_article = asked.reference.engines[0 if figure.engine == asked.simple else 1]
        rate = told_by_article([(point.users, point.throughput) for point in of_article.points], number)
        if rate is None or number > of_article.points[-1].users:
            continue
        name = (
            figure.engine if figure.engine == of_article.engine else f"{of_article.engine} (it has no {figure.engine})"
        )
        how = rate[1]
        point = of_article.at(number)
        # What lies between its figures of first tokens is no figure of its.
        first = point.ttft if point is not None else None
        of_first = f", first token after {time_text(first)}" if first is not None else ""
        cells.append(f"{name} {rate[0]:.0f} tok/s{of_first}")
    gpu = asked.reference.gpu
    if cells:
        yield Reason(
            f"With {users_text(number)}: {'; '.join(cells)}.",
            f'the article "{asked.reference.title}", {how} on one {gpu}',
        )
    if unmeasured and asked.gpu != gpu:
        yield Reason(f"{asked.gpu or 'No GPU'} is here, not the article's: what it says is a guide.", _MACHINE)
    if number > SIMPLE_UP_TO and asked.parallel > 1 and any(one.engine == asked.simple for one in unmeasured):
        text = f"Its {asked.reference.engines[0].engine} took one request at a time; here {asked.simple} takes "
        yield Reason(f"{text}{asked.parallel}, and may do better.", "serving.parallel in the profile")


def _of_measured(asked: Situation, figure: Figure) -> Reason:
    first = f", first token after {figure.first}" if figure.ttft_ms is not None else ""
    text = f"With {users_text(asked.later)}: {figure.rate}{first}."
    return Reason(text, _from(figure))


def _from(*figures: Figure) -> str:
    """Where figures are from, in words; runs that they share are named once."""
    origins = {one.origin for one in figures}
    if len(origins) > 1:
        return "; ".join(f"{one.engine}: {_from(one)}" for one in figures)
    alike = len({one.how for one in figures}) == 1
    told = figures[0].how if alike else "; ".join(f"{one.engine}: {one.how}" for one in figures)
    (origin,) = origins
    return f"{told} ({origin})" if origin else told


def _of_gains(one: Figure) -> Reason:
    return Reason(f"{one.engine} was still gaining with the most users that it was measured with.", _from(one))


def _of_room(asked: Situation) -> Iterator[Reason]:
    if asked.adapters > asked.room:
        text = f"The profile has room for {asked.room} adapters: set lora.max_adapters = {asked.adapters} in it."
        yield Reason(text, "the profile")


def _of_adapters(asked: Situation) -> Reason:
    simple, many = asked.reference.engines
    text = (
        f"{asked.adapters} adapters: {asked.many} serves them all at once and switches in {many.adapter_swap}; "
        f"{simple.engine} takes {simple.adapter_swap} for a switch."
    )
    if asked.simple != simple.engine:
        text += f" Of {asked.simple} it says nothing."
    return Reason(text, "the article")


def _of_live(asked: Situation) -> Iterator[Reason]:
    live = asked.live
    if live is None:
        return
    first = f", first token p95 {time_text(live.ttft_p95_ms)}" if live.ttft_p95_ms is not None else ""
    failed = f", {live.errors:,} of them failed" if live.errors else ""
    yield Reason(
        f"{live.requests:,} requests{failed}: {live.users_p50:g} at a time as a rule, {live.users_p95:g} at busy "
        f"times, {live.users_max} at most; {live.waiting_p95:g} waiting{first}.",
        f"live traffic of the last {_hours(live.hours)}",
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _of_growth(asked: Situation) -> Iterator[Reason]:
    if asked.later != asked.users:
        yield Reason(f"{users_text(asked.users)} now, {asked.later} later: what is said is for {asked.later}.", "you")


def _as_clients_see(asked: Situation, figure: Figure) -> Figure:
    """With the first token as clients of what serves have had it, where the question is about as many as they were."""
    live = asked.live
    if live is None or live.ttft_p95_ms is None or figure.engine != asked.serving or asked.later != asked.live_users:
        return figure
    how = f"{figure.how}, first token p95 as clients had it" if figure.measured else "first token p95 as clients had it"
    return replace(figure, ttft_ms=live.ttft_p95_ms, how=how, own=True, first_beyond=False)


def _figure(asked: Situation, engine: str) -> Figure:
    """What is known of it for the users that there will be: measured, else the article's."""
    series = next((series for series in asked.measured if series.engine == engine), None)
    if series is not None:
        return measured_figure(series, asked.later)
    place = 0 if engine == asked.simple else 1
    return article_figure(engine, asked.reference.engines[place], asked.later, asked.reference)


def _verdict(asked: Situation, engine: str) -> str:
    if engine == asked.serving:
        return f"Stay with {engine}."
    if asked.serving:
        return f"Move to {engine}: orch migrate --to {engine}{asked.option}"
    return f"Take {engine}: orch up {engine}{asked.option}"


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
    while steps[-1] < min(MOST_USERS, max(MANY_FROM, asked.later)):
        steps.append(steps[-1] * 2)
    load = f"--concurrency {','.join(map(str, steps))}{asked.lengths}"
    of_adapters = " --adapters all" if asked.adapters >= SEVERAL_ADAPTERS else ""
    return f"orch bench --engines {asked.simple},{asked.many} {load}{of_adapters}{asked.option}"
