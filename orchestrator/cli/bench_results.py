"""`orch bench ls|show|compare`: what was measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import HostError, UsageError, host_errors

if TYPE_CHECKING:
    from orchestrator.bench.results import Results
    from orchestrator.bench.series import Series
    from orchestrator.cli.session import Session

bench = typer.Typer(
    help="Measure throughput and latencies against users: what serves now, or engines one after the other.",
    invoke_without_command=True,
)
app.add_typer(bench, name="bench")

# As vllm bench serve names them; what each is stands in bench/metrics.py.
COLUMNS = {
    "completed": "completed",
    "failed": "failed",
    "req/s": "request_throughput",
    "output tok/s": "output_throughput",
    "TTFT p50 ms": "p50_ttft_ms",
    "p95": "p95_ttft_ms",
    "TPOT p50 ms": "p50_tpot_ms",
    "p95 ": "p95_tpot_ms",
    "E2EL p50 ms": "p50_e2el_ms",
}
FORMULAS = (
    "TTFT: start to first token. E2EL: start to last token. TPOT: (E2EL - TTFT) / (output tokens - 1). "
    "Tokens as the engine counts them; what failed is in no figure but its own."
)
# So many times as fast as what it measures, the client is no part of it.
ENOUGH = 10
RunName = Annotated[str | None, typer.Argument(metavar="[RUN]", help="As ls has it; default: the newest.")]


@bench.command("ls")
def bench_ls(
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Of this one alone, by its name.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was measured."""
    with session_of(as_json) as session:
        rows = [
            {
                "run": name,
                "profile": levels[0]["profile"],
                "engine": levels[0]["engine"],
                "artifact": levels[0].get("recipe"),
                "tokens": f"{levels[0]['random_input_len'] or 'file'} / {levels[0]['random_output_len']}",
                "load": _loads_of(levels),
                "best tok/s": round(max(level["output_throughput"] for level in levels), 1),
            }
            for name, run in results_of(session).runs().items()
            for levels in _by_engine(run)
            if profile is None or levels[0]["profile"] == profile
        ]
        columns = ("run", "profile", "engine", "artifact", "tokens", "load", "best tok/s")
        session.screen.table("Measured", columns, rows)


@bench.command("show")
def bench_show(name: RunName = None, as_json: AsJson = False) -> None:
    """The figures of one measurement."""
    with session_of(as_json) as session:
        levels = results_of(session).run(name)
        for level in levels if as_json else ():
            session.screen.result(level, "")
        if not as_json:
            tell(session, levels)


@bench.command("compare")
def bench_compare(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="As ls has them; default: the newest of each engine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Two measurements side by side, users by users, and where one overtakes the other."""
    with session_of(as_json) as session:
        from orchestrator.bench.series import series_of

        levels = results_of(session).chosen(names or ())
        found = series_of(levels)
        if len(found) < 2:
            raise HostError(
                "There is only one engine among these measurements."
                if found
                else "None of these measurements is of users at a time.",
                hint="orch bench --engines A,B measures two.",
            )
        for one, other in combinations(found, 2):
            _compare(session, one, other, as_json)


@bench.command("report")
def bench_report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="As ls has them; default: the newest of each engine.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.", dir_okay=False)] = Path("orch-bench.html"),
    as_json: AsJson = False,
) -> None:
    """A page with plots and tables: throughput and first token against users, the article's figures beside yours."""
    with session_of(as_json) as session:
        write_report(session, results_of(session).chosen(names or ()), out)


@bench.command("import")
def bench_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    engine: Annotated[str, typer.Option(help="Which answered, where the file does not say.")] = "",
    profile: Annotated[str, typer.Option("--profile", "-p", help="Of which profile.")] = "",
    recipe: Annotated[str, typer.Option(help="The artifact that it served.")] = "",
    gpu: Annotated[list[str] | None, typer.Option(help="On which GPU; several times for several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Results of vllm bench serve, guidellm or another orch, as a measurement beside yours."""
    with session_of(as_json) as session:
        from orchestrator.bench.imports import Told, levels_in, without_run
        from orchestrator.bench.results import new_run

        told, run = Told(profile, engine, recipe, tuple(gpu or ())), new_run()
        # All are read before the first is kept.
        levels = [level for file in files for level in levels_in(_text_of(file), str(file), told, run)]
        results = results_of(session)
        known = [without_run(level) for level in results.all()]
        new = [level for level in levels if without_run(level) not in known]
        for level in new:
            results.add(level)
        already = f"; {len(levels) - len(new)} had been kept before" if len(new) < len(levels) else ""
        number = "1 level is" if len(new) == 1 else f"{len(new)} levels are"
        session.screen.result({"run": run, "levels": len(new)}, f"{number} kept as {run}{already}.")


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error


def check_place(out: Path) -> None:
    """UsageError where a report could not be written: that is said before anything is measured for it."""
    if not out.parent.is_dir():
        raise UsageError(
            f"There is no directory {out.parent} for a report.", hint="Make it first, or name another file."
        )


def write_report(session: Session, levels: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The page of these levels."""
    from orchestrator.bench.report import report

    page = report(levels)
    with host_errors(f"write {out}", {}):
        out.write_text(page, "utf-8")
    session.screen.result({"report": str(out.resolve())}, f"{out} holds the report; open it in a browser.")


def tell(session: Session, levels: Sequence[Mapping[str, Any]]) -> None:
    """All of a run, for people: a table for each engine, and what they come to together."""
    from orchestrator.bench.series import series_of

    for of_engine in _by_engine(levels):
        _tell(session, of_engine)
    session.screen.say(FORMULAS)
    ceiling = levels[-1]["client_ceiling"]
    if ceiling:
        times = ceiling / max(max(level["output_throughput"] for level in levels), 1e-9)
        said = f"The client alone reads {ceiling:.0f} tok/s here: {times:.0f} times the fastest level."
        too_slow = " It may have slowed what it measured." if times < ENOUGH else ""
        session.screen.say(said + too_slow)
    found = series_of(levels)
    if len(found) == 2:
        _compare(session, *found, as_json=False)


def results_of(session: Session) -> Results:
    """Those that are kept."""
    from orchestrator.bench.results import Results

    return Results(session.settings.data / "bench")


def _by_engine(levels: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [list(of) for _, of in groupby(levels, key=_table_of)]


def _tell_how_sure(session: Session, levels: Sequence[Mapping[str, Any]]) -> None:
    """What the repeats of a sweep come to together."""
    from orchestrator.bench.duel import SURE
    from orchestrator.bench.series import series_of

    for series in series_of({**level, "adapters": []} for level in levels):
        repeated = [point for point in series.points if point.levels > 1]
        if repeated:
            rows = [
                {
                    "users": point.users,
                    "times": point.levels,
                    "output tok/s": f"{point.throughput:.1f} ± {SURE * point.error:.1f}",
                    "TTFT p50 ms": _figure(point.ttft_p50),
                    "TPOT p50 ms": _figure(point.tpot_p50),
                }
                for point in repeated
            ]
            session.screen.table("All repeats together (±: two standard errors)", tuple(rows[0]), rows)


def _came_in_one_piece(levels: Sequence[Mapping[str, Any]]) -> bool:
    """Whether answers of several tokens were there whole once they began."""
    several = [level for level in levels if level["total_output_tokens"] > 2 * level["completed"] > 0]
    return any((level["p50_ttft_ms"] or 0.0) > 0.95 * (level["p50_e2el_ms"] or 0.0) for level in several)


def _table_of(level: Mapping[str, Any]) -> tuple[object, ...]:
    return level["engine"], level["recipe"], level["through"], tuple(level["adapters"])


def _tell(session: Session, levels: Sequence[Mapping[str, Any]]) -> None:
    first = levels[0]
    version = f" {first['engine_version']}" if first.get("engine_version") else ""
    title = f"{first['engine']}{version} ({first['recipe']}) through {first['through']}, {first['run']}"
    if first["num_prompts"] and first["random_input_len"]:
        title += f": about {first['random_input_len']} tokens in, {first['random_output_len']} out"
    if first["adapters"]:
        title += f", {len(first['adapters'])} adapters in turn"
    open_loop = first["max_concurrency"] is None
    load = "asked/s" if open_loop else "users"
    rows = [{load: _load_of(level), **{name: _figure(level[key]) for name, key in COLUMNS.items()}} for level in levels]
    session.screen.table(title, (load, *COLUMNS), rows)
    _tell_how_sure(session, levels)
    if _came_in_one_piece(levels):
        session.screen.say("Answers came in one piece or nearly: TTFT is about E2EL here, and TPOT says nothing.")
    for level in levels:
        at = f"At {_load_of(level)}{' a second' if open_loop else ''}"
        for error, count in level["errors"].items():
            session.screen.say(f"{at}: {count} x {error}")
        if level["interrupted"]:
            session.screen.say(f"{at} it was interrupted: {level['completed']} answers by then.")
        if level["request_goodput"] is not None:
            session.screen.say(f"{at}: {level['request_goodput']:.2f} good requests a second.")
    for use in levels[-1]["gpu_use"]:
        told = [f"{use['memory_used_max'] / 1e9:.1f} GB in use at most"]
        told += [f"{use['power_mean']:.0f} W"] if use["power_mean"] is not None else []
        told += [f"{use['utilization_mean']:.0f} % busy"] if use["utilization_mean"] is not None else []
        session.screen.say(f"GPU {use['uuid']}, at the last level: {', '.join(told)}.")


def _compare(session: Session, simple: Series, other: Series, as_json: bool) -> None:
    from orchestrator.bench.duel import duel, in_words

    mine_is, theirs_is = (simple.engine, other.engine) if simple.engine != other.engine else (simple.title, other.title)
    rows = []
    for mine in simple.points:
        theirs = other.at(mine.users)
        if theirs is None:
            continue
        rows.append(
            {
                "users": mine.users,
                f"{mine_is} tok/s": round(mine.throughput, 1),
                f"{theirs_is} tok/s": round(theirs.throughput, 1),
                "ratio": round(theirs.throughput / mine.throughput, 2) if mine.throughput else "-",
                f"{mine_is} TTFT ms": _figure(mine.ttft_p50),
                f"{theirs_is} TTFT ms": _figure(theirs.ttft_p50),
            }
        )
    found = duel(simple, other)
    if found is None:
        session.screen.note(
            {"apart": [simple.title, other.title]},
            f"{simple.title} and {other.title} were not measured at the same numbers of users.",
        )
        return
    if as_json:
        for row in rows:
            session.screen.result({"compared": row}, "")
        across = found.crossing
        told = {"users": across.users, "least": across.least, "most": across.most} if across is not None else None
        who = {"behind": found.behind.title, "ahead": found.ahead.title, "tied": list(found.tied)}
        session.screen.result({"crossover": told, **who}, "")
        return
    session.screen.table(f"{simple.title} against {other.title}", tuple(rows[0]), rows)
    for sentence in in_words(found):
        session.screen.say(sentence)


def _load_of(level: Mapping[str, Any]) -> str:
    return str(level["max_concurrency"]) if level["max_concurrency"] is not None else f"{level['request_rate']:g}"


def _loads_of(levels: Sequence[Mapping[str, Any]]) -> str:
    """What a row of ls has of them: each load once, and what is not plain about it."""
    first = levels[0]
    loads = ", ".join(dict.fromkeys(_load_of(level) for level in levels))
    kind = " users" if first["max_concurrency"] is not None else " a second"
    more = [f"{len(first['adapters'])} adapters in turn" if len(first["adapters"]) > 1 else "an adapter"]
    told = [f"{loads}{kind}", *(more if first["adapters"] else [])]
    told += [f"by {first['tool']}"] if first["tool"] != "orch" else []
    return ", ".join([*told, *(["interrupted"] if any(level["interrupted"] for level in levels) else [])])


def _figure(value: float | None) -> float | str:
    return "-" if value is None else value if isinstance(value, int) else round(value, 1)
