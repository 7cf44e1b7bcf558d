"""`orch bench`: measure what serves now, and look at what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.bench.results import Results
    from orchestrator.cli.session import Session

bench = typer.Typer(
    help="Measure what serves now: throughput and latencies against users.", invoke_without_command=True
)
app.add_typer(bench, name="bench")

# As vllm bench serve names them; what each is stands in bench/metrics.py.
COLUMNS = {
    "users": "max_concurrency",
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


@bench.callback()
def bench_now(
    context: typer.Context,
    profile: Annotated[str | None, typer.Option("--profile", help="Which one, where several are served.")] = None,
    concurrency: Annotated[str, typer.Option(metavar="N,N,...", help="Requests at a time.")] = "1,2,4,8",
    rounds: Annotated[int, typer.Option(help="Requests for each that is in flight.", min=1, max=1000)] = 4,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt, about.", min=1)] = 256,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MS", help="What is good: ttft, tpot or e2el within these milliseconds; may be repeated."
        ),
    ] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Ask the engine, not the gateway.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask what serves now, with more and more requests at a time: streams of fixed length, greedy, of prompts that no
    cache has. Ctrl-C keeps what was measured."""
    if context.invoked_subcommand is not None:
        return
    with session_of(as_json) as session:
        levels, limits = _levels(concurrency), _limits(goodput or ())
        from orchestrator.app.measured import subject_of
        from orchestrator.bench.sweep import Sweep, run

        subject = subject_of(session.orch, profile, direct=direct)
        if subject.in_flight:
            session.screen.say(f"{subject.in_flight} requests of clients are in flight; the figures are of both.")
        sweep = Sweep(levels, rounds, input_len, output_len, seed, limits)
        results = _results(session)
        found: list[dict[str, Any]] = []
        try:
            for level in run(session.orch, subject, sweep):
                results.add(level)
                found.append(level)
                if as_json:
                    session.screen.result(level, "")
        finally:
            _tell(session, () if as_json else found)


@bench.command("ls")
def bench_ls(as_json: AsJson = False) -> None:
    """What was measured."""
    with session_of(as_json) as session:
        rows = [
            {
                "run": name,
                "profile": levels[0]["profile"],
                "engine": levels[0]["engine"],
                "artifact": levels[0].get("recipe"),
                "users": ", ".join(str(level["max_concurrency"]) for level in levels),
                "best tok/s": round(max(level["output_throughput"] for level in levels), 1),
            }
            for name, levels in _results(session).runs().items()
        ]
        columns = ("run", "profile", "engine", "artifact", "users", "best tok/s")
        session.screen.table("Measured", columns, rows)


@bench.command("show")
def bench_show(
    name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="As ls has it; default: the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """The figures of one measurement."""
    with session_of(as_json) as session:
        levels = _results(session).run(name)
        for level in levels if as_json else ():
            session.screen.result(level, "")
        _tell(session, () if as_json else levels)


def _tell(session: Session, levels: Sequence[Mapping[str, Any]]) -> None:
    if not levels:
        return
    first = levels[0]
    title = f"{first['engine']} ({first['recipe']}) through {first['through']}, {first['run']}"
    if first.get("num_prompts"):
        title += f": about {first['random_input_len']} tokens in, {first['random_output_len']} out"
    session.screen.table(title, tuple(COLUMNS), [_row(level) for level in levels])
    for level in levels:
        for error, count in level["errors"].items():
            session.screen.say(f"At {level['max_concurrency']}: {count} x {error}")
        if level["interrupted"]:
            session.screen.say(
                f"At {level['max_concurrency']} it was interrupted: {level['completed']} answers by then."
            )
        if level["request_goodput"] is not None:
            session.screen.say(f"At {level['max_concurrency']}: {level['request_goodput']:.2f} good requests a second.")
    session.screen.say(FORMULAS)


def _row(level: Mapping[str, Any]) -> dict[str, float | str]:
    return {column: _figure(level[name]) for column, name in COLUMNS.items()}


def _figure(value: float | None) -> float | str:
    return "-" if value is None else value if isinstance(value, int) else round(value, 1)


def _results(session: Session) -> Results:
    from orchestrator.bench.results import Results

    return Results(session.settings.data / "bench")


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(1 <= level <= 1024 for level in levels):
        raise UsageError(
            f"--concurrency: {text!r} is not a list of numbers from 1 to 1024.", hint="--concurrency 1,2,4,8"
        )
    return levels


def _limits(texts: Sequence[str]) -> dict[str, float]:
    from orchestrator.bench.metrics import LIMITED

    found: dict[str, float] = {}
    for text in texts:
        name, _, said = text.partition(":")
        try:
            limit = float(said)
        except ValueError:
            limit = 0.0
        if name not in LIMITED or not 0 < limit < float("inf"):
            raise UsageError(
                f"--goodput: {text!r} is not NAME:MS.", hint=f"NAME is one of {', '.join(LIMITED)}: ttft:200"
            )
        found[name] = limit
    return found
