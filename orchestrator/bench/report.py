"""The report of measurements: one page with plots and tables, the article's figures beside the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from orchestrator import resources
from orchestrator.bench.charts import Curve, Span, draw
from orchestrator.bench.duel import SURE, duel, in_words
from orchestrator.bench.series import Crossover, Point, Series, crossover, is_of_users, series_of
from orchestrator.bench.words import time_text, users_text
from orchestrator.core.reference import Reference, ReferenceEngine
from orchestrator.errors import HostError


@dataclass(frozen=True)
class Figure:
    """A plot of the page, for wide and narrow ones, and what it says in words."""

    title: str
    about: str
    wide: str
    narrow: str


def report(levels: Sequence[Mapping[str, Any]]) -> str:
    """The page (HTML, self-contained) of closed-loop levels; HostError where there is none of them."""
    reference = resources.reference()
    every = ordered(series_of(levels), reference)
    if not every:
        raise HostError(
            "None of these measurements is of users at a time.", hint="orch bench --engines A,B --concurrency 1,2,4,8"
        )
    kept = [level for level in levels if is_of_users(level) and not level["interrupted"]]
    first = kept[0]
    met = duel(every[0], every[1]) if len(every) == 2 else None
    values = {
        "title": f"{first['profile']}: {' against '.join(dict.fromkeys(one.engine for one in every))}",
        "verdicts": list(verdicts(every)),
        "facts": _facts(kept),
        "figures": _figures(every, met.crossing if met is not None else None, reference),
        "by_users": [_by_users(series) for series in every],
        "as_printed": _as_printed(every, kept, reference),
        "reference": reference,
        "notes": reference.notes,
        "data": [json.dumps(level, sort_keys=True) for level in kept],
        "engines": len(every),
    }
    return resources.render_template("report/report.html.j2", values)


def ordered(every: Sequence[Series], reference: Reference) -> list[Series]:
    """The engine for many users last, as the article has it."""
    return sorted(every, key=lambda series: series.engine == reference.engines[-1].engine)


def verdicts(every: Sequence[Series]) -> Iterable[str]:
    """What it comes to, in sentences."""
    if len(every) < 2:
        (one,) = every
        best = max(one.points, key=lambda point: point.throughput)
        yield f"{one.title}: {best.throughput:,.0f} tokens a second at most, with {users_text(best.users)}."
    for one, other in combinations(every, 2):
        yield from _of_two(one, other)
    for series in every:
        if count := sum(point.failed for point in series.points):
            yield f"{count} requests to {series.title} failed; they are in no other figure."


def _of_two(one: Series, other: Series) -> Iterable[str]:
    found = duel(one, other)
    if found is None:
        yield f"{one.title} and {other.title} were not measured at the same numbers of users."
        return
    yield from in_words(found)
    most = max(point.users for point in one.points if other.at(point.users) is not None)
    firsts = [(point.ttft_p50, series) for series in (one, other) if (point := series.at(most)) is not None]
    if any(first is None for first, _ in firsts):
        return
    (quick, sooner), (slow, later) = sorted(firsts, key=lambda pair: pair[0] or 0.0)
    yield (
        f"With {users_text(most)} the first token comes after {time_text(quick)} from {sooner.title}, and after "
        f"{time_text(slow)} from {later.title}."
    )


def _facts(levels: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was measured, how and where, as names and values."""

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(level[key]) for level in levels if level.get(key)))

    versions = dict.fromkeys(f"{one['engine']} {one.get('engine_version') or ''}".strip() for one in levels)
    gpus = dict.fromkeys(gpu for level in levels for gpu in level["gpus"])
    lengths = dict.fromkeys(
        f"{level['random_input_len'] or 'from a file'} / {level['random_output_len']}" for level in levels
    )
    through = "the engine asked directly" if all_of("through") == "the engine" else f"through {all_of('through')}"
    return [
        ("Model", all_of("model_id")),
        ("Engines", ", ".join(versions)),
        ("Artifacts", all_of("recipe") or "not told"),
        ("Computed on", ", ".join(gpus) or ("the CPU" if all_of("accelerator") else "not told")),
        ("Tokens in / out", ", ".join(lengths)),
        ("Asked", f"{through}, by {all_of('tool')}"),
        ("Measured", f"{levels[0]['date'][:16].replace('T', ' ')} UTC, as {all_of('run')}"),
    ]


def _figures(every: Sequence[Series], found: Crossover | None, reference: Reference) -> list[Figure]:
    theirs = reference.engines
    yours, article = "Yours", f"The article's: {reference.model}, {reference.gpu.removeprefix('NVIDIA GeForce ')}"
    placed = _placed(every, theirs[-1].engine)
    throughput, first_token = "output tokens a second, all users", "first token, ms"
    figures = [
        _figure(
            "throughput",
            f"{yours}: throughput",
            throughput,
            [_throughput(*one) for one in placed],
            found,
        ),
        _figure(
            "throughput-reference",
            f"{article}: throughput",
            throughput,
            [_known(one, place, "throughput") for place, one in enumerate(theirs)],
            _crossing(theirs),
        ),
    ]
    own = [curve for one in placed if (curve := _first_token(*one)) is not None]
    if own:
        figures += [
            _figure("ttft", f"{yours}: time to first token", f"{first_token}; shaded up to p95", own, None, log=True),
            _figure(
                "ttft-reference",
                f"{article}: time to first token",
                first_token,
                [_known(one, place, "ttft") for place, one in enumerate(theirs)],
                None,
                log=True,
            ),
        ]
    return figures


def _placed(every: Sequence[Series], many: str) -> list[tuple[Series, int, str]]:
    """Each with the place of its colour, which the engine for many has to itself, and with what it is called where an
    engine is there twice."""
    engines = [one.engine for one in every]
    others = iter((0, *range(2, 2 + len(every))))
    return [
        (
            one,
            1 if one.engine == many and engines.count(many) == 1 else next(others),
            one.engine if engines.count(one.engine) == 1 else one.title,
        )
        for one in every
    ]


def _throughput(series: Series, place: int, label: str) -> Curve:
    points = series.points
    return Curve(
        label,
        place,
        tuple(point.users for point in points),
        tuple(point.throughput for point in points),
        tuple(max(0.0, point.throughput - SURE * point.error) for point in points),
        tuple(point.throughput + SURE * point.error for point in points),
    )


def _first_token(series: Series, place: int, label: str) -> Curve | None:
    told = [(point.users, point.ttft_p50, point.ttft_p95) for point in series.points if point.ttft_p50]
    if not told:
        return None
    users, middle, late = zip(*told, strict=True)
    return Curve(label, place, users, middle, middle, late)


def _known(engine: ReferenceEngine, place: int, what: str) -> Curve:
    told = [(point.users, value) for point in engine.points if (value := getattr(point, what)) is not None]
    users, values = zip(*told, strict=True)
    return Curve(engine.engine, place, users, values, known=True)


def _crossing(theirs: Sequence[ReferenceEngine]) -> Crossover | None:
    both = [_series_of_reference(one) for one in theirs]
    found = crossover(*both) if len(both) == 2 else None
    # Nobody knows how sure they are.
    return Crossover(found.users, found.users, found.users) if found is not None else None


def _series_of_reference(engine: ReferenceEngine) -> Series:
    points = tuple(
        Point(one.users, one.throughput, 0.0, one.ttft, None, None, None, 0, 0, 1)
        for one in engine.points
        if one.throughput is not None
    )
    return Series(engine.engine, engine.recipe, "", (), "", points)


def _figure(
    name: str, title: str, axis: str, curves: Sequence[Curve], found: Crossover | None, log: bool = False
) -> Figure:
    users = [number for curve in curves for number in curve.users]
    marked = None
    if found is not None:
        least = found.least if found.least is not None else min(users)
        most = found.most if found.most is not None else max(users)
        marked = Span(found.users, least, most, f"{found.users:.1f} users")
    said = "; ".join(
        f"{curve.label} "
        + ", ".join(f"{value:,.0f} at {n}" for n, value in zip(curve.users, curve.values, strict=True))
        for curve in curves
    )
    alt = f"{title}, {axis}, by users at a time: {said}"
    wide, narrow = (draw(name, curves, axis, alt, narrow=small, log=log, marked=marked) for small in (False, True))
    return Figure(title, said, wide, narrow)


def _by_users(series: Series) -> dict[str, Any]:
    """The table of one engine: what is in the curves, and what is not."""
    rows = [
        (
            f"{point.users}",
            f"{point.throughput:,.0f} ± {SURE * point.error:,.0f}",
            f"{point.throughput / point.users:,.1f}",
            time_text(point.ttft_p50),
            time_text(point.ttft_p95),
            f"{point.tpot_p50:,.1f} ms" if point.tpot_p50 is not None else "–",
            time_text(point.e2el_p50),
            f"{point.completed}" + (f", {point.failed} failed" if point.failed else ""),
        )
        for point in series.points
    ]
    heads = ("Users", "tok/s", "tok/s each", "TTFT p50", "TTFT p95", "TPOT p50", "E2EL p50", "Answers")
    return {"title": f"{series.title} {series.version}".strip(), "heads": heads, "rows": rows}


def _as_printed(
    every: Sequence[Series], levels: Sequence[Mapping[str, Any]], reference: Reference
) -> list[dict[str, Any]]:
    """The article's tables, with the user's own figures in front of its own."""
    theirs = reference.engines
    heads = (
        "",
        *(label for _, _, label in _placed(every, reference.engines[-1].engine)),
        *(f"article: {one.engine}" for one in theirs),
    )
    single = [
        (
            "tok/s",
            *(_at(one, 1, "throughput") for one in every),
            *(f"{one.points[0].throughput:,.0f}" for one in theirs),
        ),
        ("First token", *(_at(one, 1, "ttft") for one in every), *(time_text(one.points[0].ttft) for one in theirs)),
        (
            "256 tokens, by TTFT and TPOT",
            *(_seconds_for_256(one) for one in every),
            *(f"{one.seconds_for_256:g} s" for one in theirs),
        ),
        ("Memory", *(_memory(one, levels) for one in every), *(f"{one.memory_gb:g} GB" for one in theirs)),
    ]
    users = sorted({point.users for one in every for point in one.points} | {2, 4, 8})

    def by_users(what: str) -> list[tuple[str, ...]]:
        own = [
            (f"{n}", *(_at(one, n, what) for one in every), *(_article_at(one, n, what) for one in theirs))
            for n in users
        ]
        return [row for row in own if any(cell != "–" for cell in row[1:])]

    return [
        {"title": "One user", "heads": heads, "rows": single},
        {"title": "tok/s of all users together", "heads": ("Users", *heads[1:]), "rows": by_users("throughput")},
        {"title": "Time to first token", "heads": ("Users", *heads[1:]), "rows": by_users("ttft")},
    ]


def _at(series: Series, users: int, what: str) -> str:
    point = series.at(users)
    if point is None:
        return "–"
    return f"{point.throughput:,.0f}" if what == "throughput" else time_text(point.ttft_p50)


def _article_at(engine: ReferenceEngine, users: int, what: str) -> str:
    point = engine.at(users)
    if point is None:
        return "–"
    if what == "ttft":
        return time_text(point.ttft)
    return f"{point.throughput:,.0f}" if point.throughput is not None else "–"


def _seconds_for_256(series: Series) -> str:
    """By TTFT and TPOT, whatever the length of the answers was."""
    point = series.at(1)
    if point is None or point.ttft_p50 is None or point.tpot_p50 is None:
        return "–"
    return f"{(point.ttft_p50 + 255 * point.tpot_p50) / 1000:,.1f} s"


def _memory(series: Series, levels: Sequence[Mapping[str, Any]]) -> str:
    """Of the GPUs at most; of an engine on the CPU what it held in the end."""
    own = [level for level in levels if (level["engine"], level["recipe"]) == (series.engine, series.recipe)]
    on_gpus = [sum(use["memory_used_max"] for use in level["gpu_use"]) for level in own if level["gpu_use"]]
    held = on_gpus or [level["engine_memory"] for level in own if level.get("engine_memory")]
    return f"{max(held) / 1e9:,.2g} GB" if held else "–"
