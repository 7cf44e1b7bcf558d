"""`orch bench`: measure what serves now, or engines one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.bench_results import bench, check_place, results_of, tell, write_report
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
    from orchestrator.app.measured import Subject
    from orchestrator.app.runs import Watcher
    from orchestrator.bench.in_turn import Asked
    from orchestrator.bench.prompts import Prompt
    from orchestrator.bench.sweep import Rate, Sweep, Users
    from orchestrator.bench.tools import Tool
    from orchestrator.cli.session import Session

ALL = ("all",)
# Requests at a time; + goes on until more bring no more.
DEFAULT = "1,2,4,8+"
_USERS_HINT = "--concurrency 1,2,4,8; with a + at its end users are doubled until that brings no more."


@bench.callback()
def bench_now(
    context: typer.Context,
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Measure these one after the other (ENGINE or ENGINE:RECIPE); then all is as before."
        ),
    ] = None,
    profile: ProfileName = None,
    target: Target = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Requests at a time; + at the end: on, until more users bring no more.  [default: 1,2,4,8+]",
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(metavar="R,R,...", help="Requests a second instead, at random times, whatever becomes of them."),
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds of each --request-rate.", min=1, max=3600)] = 30.0,
    rounds: Annotated[int, typer.Option(help="Requests for each that is in flight.", min=1, max=1000)] = 4,
    repeats: Annotated[int, typer.Option(help="The whole sweep so often: how sure its figures are.", min=1)] = 1,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt, about.", min=1)] = 256,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 256,
    shared_prefix_len: Annotated[
        int, typer.Option(help="Tokens that all prompts begin with: what a prefix cache may have.", min=0)
    ] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts from a file: JSON lines, or ShareGPT's list.", exists=True, dir_okay=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    adapters: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME|all", help="Ask these deployed adapters in turn, not the base."),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MS", help="What is good: ttft, tpot or e2el within these milliseconds; may be repeated."
        ),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Have vllm (vllm bench serve) or guidellm make the load."),
    ] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Ask the engine, not the gateway.")] = False,
    page: Annotated[
        Path | None, typer.Option("--report", help="Write the report of it, a page, into this file.", dir_okay=False)
    ] = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Ask what serves now, with more and more requests at a time: streams of fixed length, greedy, of prompts that no
    cache has. Ctrl-C keeps what was measured."""
    if context.invoked_subcommand is not None:
        return
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Options, Waiting
        from orchestrator.bench.in_turn import Asked
        from orchestrator.bench.results import new_run
        from orchestrator.bench.sweep import Sweep
        from orchestrator.bench.tools import tool_named

        if shared_prefix_len > input_len:
            raise UsageError(
                f"--shared-prefix-len: {shared_prefix_len} tokens are more than a prompt of {input_len}.",
                hint="A smaller one, or a larger --input-len.",
            )
        if page is not None:
            check_place(page)
        steps, saturate = steps_of(concurrency, request_rate, DEFAULT if tool is None else DEFAULT.removesuffix("+"))
        given, limits = given_prompts(prompts), _limits(goodput or ())
        sweep = Sweep(
            steps, saturate, rounds, duration, repeats, input_len, shared_prefix_len, output_len, seed,
            given, limits=limits,
        )  # fmt: skip
        if adapters is not None and (direct or tool is not None):
            raise UsageError(
                "--adapters asks by public names, through the gateway.", hint="Without --direct and --tool."
            )
        if given and sweep.most > len(given):
            session.screen.say(
                f"{prompts} has {len(given)} prompts for up to {sweep.most} requests: some are asked again, and a "
                "prefix cache may have them."
            )
        chosen = tool_named(tool) if tool is not None else None
        measuring = Measuring(session, sweep, new_run(), as_json, chosen, direct, _listed(adapters))
        asked = Asked(profile, target, Options(waiting=Waiting(timeout, drain, max_hold, form)))
        try:
            if engines is not None:
                take_turns(session, engines, asked, plan, measuring.measure, measuring.check)
            elif plan:
                raise UsageError("Without --engines nothing is changed, so there is no plan.", hint="--engines A,B")
            else:
                measuring.measure(profile)
        finally:
            measuring.tell()
        if page is not None and not plan:
            write_report(session, measuring.found, page)


class Measuring:
    """One run, level by level: each is kept, and told once it is there or in the end. `adapters` are asked in turn, ALL
    of those that are deployed (none: the base)."""

    def __init__(
        self,
        session: Session,
        sweep: Sweep,
        run: str,
        as_json: bool,
        tool: Tool | None = None,
        direct: bool = False,
        adapters: tuple[str, ...] = (),
    ) -> None:
        self._session = session
        self._sweep = sweep
        self._run = run
        self._tool = tool
        self._direct = direct
        self._adapters = adapters
        self._as_json = as_json
        self.found: list[dict[str, Any]] = []

    def measure(self, profile: str | None) -> None:
        """What serves a profile now (None: the only one)."""
        from orchestrator.app.measured import subject_of

        session = self._session
        subject = subject_of(session.orch, profile, direct=self._direct)
        if subject.in_flight:
            session.screen.say(f"Clients' requests are in flight ({subject.in_flight}): the figures are of both.")
        results = results_of(session)
        for level in self._levels(subject):
            results.add(level)
            self.found.append(level)
            if self._as_json:
                session.screen.result(level, "")

    def _levels(self, subject: Subject) -> Iterator[dict[str, Any]]:
        if self._tool is None:
            from orchestrator.bench.sweep import run

            sweep = replace(self._sweep, adapters=_deployed(self._adapters, subject))
            return run(self._session.orch, subject, sweep, self._run)
        from orchestrator.app.environments import plan_install
        from orchestrator.bench import tool_runs

        orch, pin = self._session.orch, self._tool.pin
        tool_runs.check(self._sweep, subject, self._tool)
        self._session.plan_and_run(f"bench --tool {self._tool.name}", lambda: plan_install(orch, pin), False)
        return tool_runs.run(orch, subject, self._sweep, self._run, self._tool)

    def check(self, context: int) -> None:
        """Whether it can be asked at all, of engines with such a context: before they are started for it."""
        from orchestrator.bench.sweep import check

        check(self._sweep, context)

    def tell(self) -> None:
        """What was measured, for people."""
        if self.found and not self._as_json:
            tell(self._session, self.found)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text is not None else ()


def _deployed(named: tuple[str, ...], subject: Subject) -> tuple[str, ...]:
    """The adapters that somebody has named; PlanRefused where one is not deployed."""
    if named and not subject.adapters:
        raise PlanRefused("No adapter is deployed.", hint="orch lora add NAME DIR")
    if named == ALL:
        return subject.adapters
    if unknown := [name for name in named if name not in subject.adapters]:
        raise PlanRefused(
            f"There is no adapter {', '.join(unknown)}.", hint=f"There are: {', '.join(subject.adapters)}."
        )
    return named


def take_turns(
    session: Session,
    engines: str,
    asked: Asked,
    only_plan: bool,
    measure: Callable[[str], None],
    check: Callable[[int], None] | None = None,
    times: int = 0,
    watcher: Watcher | None = None,
) -> None:
    """Have engines serve a profile one after the other, and each measured by its name; or print the plans. `check` is
    told of the profile's context, before anything is started. With `times` each is started so often, whatever serves,
    and `watcher` is told what happens."""
    from orchestrator.app.runs import alone_measuring
    from orchestrator.app.unfinished import what_was
    from orchestrator.bench.in_turn import in_turn, plan_of, profile_meant, sides_of

    sides, orch = sides_of(engines), session.orch
    meant = profile_meant(orch, sides[0], asked)
    if check is not None:
        check(meant.serving.context)
    if only_plan:
        was = what_was(orch, meant.name)
        for side in sides:
            session.screen.say(f"To measure {side}, as things are now:")
            session.screen.plan(plan_of(orch, side, meant.name, asked))
        back = f"{was.serving} serves {meant.name} again" if was.serving else f"{meant.name} is taken down again"
        session.screen.say(f"In the end {back}.")
        return
    every, start = sides * max(times, 1), times > 0
    with alone_measuring(orch, f"bench --engines {engines}"):
        # What there was is looked at by whoever holds it: another one may just have put it back.
        was = what_was(orch, meant.name)
        in_turn(orch, every, was, asked, watcher or session, lambda _: measure(meant.name), session.heed_again, start)


def steps_of(
    concurrency: str | None, request_rate: str | None = None, default: str = DEFAULT
) -> tuple[tuple[Users | Rate, ...], bool]:
    """The loads that somebody has typed, and whether users are to be doubled after them."""
    from orchestrator.bench.sweep import MOST_USERS, Rate, Users

    if request_rate is not None:
        if concurrency is not None:
            raise UsageError(
                "--concurrency and --request-rate are two loads.", hint="Leave one of them out; or measure twice."
            )
        rates = _numbers(request_rate, float)
        if not rates or not all(0 < rate <= 10_000 for rate in rates):
            raise UsageError(
                f"--request-rate: {request_rate!r} is not a list of numbers above 0.", hint="--request-rate 0.5,1,2"
            )
        return tuple(map(Rate, rates)), False
    text = concurrency if concurrency is not None else default
    levels = _numbers(text.removesuffix("+"), int)
    if not levels or not all(1 <= level <= MOST_USERS for level in levels):
        raise UsageError(f"--concurrency: {text!r} is not a list of numbers from 1 to {MOST_USERS}.", hint=_USERS_HINT)
    return tuple(map(Users, levels)), text.endswith("+")


def _numbers(text: str, kind: type[Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []


def given_prompts(path: Path | None) -> tuple[Prompt, ...]:
    """The prompts of a file that somebody has named; none of None."""
    if path is None:
        return ()
    from orchestrator.bench.prompts import prompts_in

    try:
        return prompts_in(path.read_text("utf-8"), str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.") from None


def _limits(texts: Sequence[str]) -> Mapping[str, float]:
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
