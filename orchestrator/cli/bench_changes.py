"""`orch bench lora|starts`: what adapters cost, and what a start does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.bench import ALL, Measuring, steps_of, take_turns
from orchestrator.cli.bench_results import bench
from orchestrator.cli.options import (
    AsJson,
    Drain,
    FormOfChange,
    LongestHold,
    OnlyPlan,
    ProfileName,
    Target,
    Timeout,
    session_of,
)
from orchestrator.errors import PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session

Engines = Annotated[
    str | None, typer.Option(metavar="A,B", help="Measure these one after the other; then all is as before.")
]
InputLen = Annotated[int, typer.Option(help="Tokens of a prompt, about.", min=1)]
OutputLen = Annotated[int, typer.Option(help="Tokens of an answer.", min=1)]


@bench.command("lora")
def bench_lora(
    engines: Engines = None,
    concurrency: Annotated[str, typer.Option(metavar="N,N,...", help="Requests at a time.")] = "1,4",
    rounds: Annotated[int, typer.Option(help="Requests for each that is in flight.", min=1, max=1000)] = 6,
    input_len: InputLen = 256,
    output_len: OutputLen = 64,
    profile: ProfileName = None,
    target: Target = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """The deployed adapters in turn, against one of them alone and against the base: throughput, and what a swap takes.
    On Ollama each adapter is a model of its own there, so that a swap is one of models."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Options, Waiting
        from orchestrator.app.measured import subject_of
        from orchestrator.bench.in_turn import Asked
        from orchestrator.bench.results import new_run
        from orchestrator.bench.sweep import Sweep

        steps, _ = steps_of(concurrency)
        sweep = Sweep(steps, rounds=rounds, input_tokens=input_len, output_tokens=output_len)
        run, found = new_run(), list[Mapping[str, Any]]()

        def measure(name: str | None) -> None:
            names = subject_of(session.orch, name, direct=False).adapters
            if len(names) < 2:
                raise PlanRefused("A swap takes two adapters that are deployed.", hint="orch lora add NAME DIR")
            for asked in ((), names[:1], ALL):
                measuring = Measuring(session, sweep, run, as_json, adapters=asked)
                try:
                    measuring.measure(name)
                finally:
                    found.extend(measuring.found)

        asked = Asked(profile, target, Options(waiting=Waiting(timeout, drain, max_hold, form)))
        try:
            _each(session, engines, asked, plan, measure, profile)
        finally:
            _tell_swaps(session, found, as_json)


def _each(session: Session, engines: str | None, asked: Any, plan: bool, measure: Any, profile: str | None) -> None:
    if engines is not None:
        take_turns(session, engines, asked, plan, measure)
    elif plan:
        raise UsageError("Without --engines nothing is changed, so there is no plan.", hint="--engines A,B")
    else:
        measure(profile)


def _tell_swaps(session: Session, found: list[Mapping[str, Any]], as_json: bool) -> None:
    from orchestrator.bench.swaps import swaps

    told = list(swaps(found))
    if as_json:
        for one in told:
            session.screen.result({"swap": one}, "")
        return
    rows = [
        {
            "engine": f"{one['engine']} ({one['recipe']})",
            "users": one["users"],
            "base tok/s": round(one["base_throughput"], 1),
            "one adapter": round(one["one_throughput"], 1),
            f"{one['adapters']} in turn": round(one["turns_throughput"], 1),
            "TTFT one, ms": _ms(one["one_ttft_ms"]),
            "in turn": _ms(one["turns_ttft_ms"]),
            "swap, ms": _ms(one["swap_ms"]),
        }
        for one in told
    ]
    if rows:
        session.screen.table("Adapters", tuple(rows[0]), rows)
        session.screen.say(
            "swap: how much later the first token comes (p50) where the adapter is another one each time; one below 0 "
            "is noise."
        )


def _ms(value: float | None) -> float | str:
    return round(value, 1) if value is not None else "-"


@bench.command("starts")
def bench_starts(
    engines: Annotated[
        str, typer.Option(metavar="A,B", help="Start these one after the other; then all is as before.")
    ],
    times: Annotated[int, typer.Option(help="Starts of each.", min=1, max=100)] = 1,
    input_len: InputLen = 256,
    output_len: OutputLen = 16,
    profile: ProfileName = None,
    target: Target = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Cold and warm: from an engine's start to a token through the gateway, and to a first token once it is warm. What
    the system's cache has of the model's files stays there, so that a disk is slower."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Options, Waiting
        from orchestrator.app.measured import subject_of
        from orchestrator.bench.in_turn import Asked
        from orchestrator.bench.results import Results, new_run
        from orchestrator.bench.starts import Clocked, started, summed_up, warm
        from orchestrator.bench.sweep import Sweep

        sweep = Sweep(rounds=5, input_tokens=input_len, output_tokens=output_len)
        watcher, run, found = Clocked(session), new_run(), list[Mapping[str, Any]]()
        results = Results(session.settings.data / "bench" / "starts")

        def measure(name: str) -> None:
            subject, seconds = subject_of(session.orch, name, direct=False), dict(watcher.seconds)
            line = started(subject, seconds, warm(session.orch, subject, sweep, run), run)
            results.add(line)
            found.append(line)
            if as_json:
                session.screen.result(line, "")

        asked = Asked(profile, target, Options(waiting=Waiting(timeout, drain, max_hold, form), fresh=True))
        try:
            take_turns(session, engines, asked, plan, measure, times=times, watcher=watcher)
        finally:
            rows = [] if as_json else list(summed_up(found))
            if rows:
                session.screen.table("Starts", tuple(rows[0]), rows)
