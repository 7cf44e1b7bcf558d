"""`orch bench quality`: whether engines and artifacts answer alike, and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.bench import given_prompts, take_turns
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
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.bench.quality_runs import Wanted
    from orchestrator.cli.session import Session


@bench.command("quality")
def bench_quality(
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Compare these (ENGINE or ENGINE:RECIPE) with the first; then all is as before.",
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="TASK,TASK", help="Tasks of lm-evaluation-harness, such as gsm8k.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="A directory of tasks of your own.", exists=True, file_okay=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first N samples of each task.", min=1)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to compare the answers to; default: those that orch ships.", exists=True, dir_okay=False
        ),
    ] = None,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer that is compared, at most.", min=1)] = 64,
    profile: ProfileName = None,
    target: Target = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """How much of greedy answers is the same, engine by engine and artifact by artifact, and what is left of a task's
    score."""
    with session_of(as_json) as session:
        if engines is None and tasks is None:
            raise UsageError(
                "One engine alone has nothing to agree with.", hint="--engines A,B, or --tasks TASK, or both"
            )
        from orchestrator.app.deploy import Options, Waiting
        from orchestrator.bench.in_turn import Asked
        from orchestrator.bench.quality_runs import Wanted, default_prompts

        wanted = Wanted(
            given_prompts(prompts) or default_prompts(),
            output_len,
            tuple(name.strip() for name in tasks.split(",")) if tasks is not None else (),
            str(include.resolve()) if include is not None else None,
            limit,
        )
        asking = _Asking(session, wanted, as_json, compares=engines is not None)
        asked = Asked(profile, target, Options(waiting=Waiting(timeout, drain, max_hold, form)))
        try:
            if engines is not None:
                take_turns(session, engines, asked, plan, asking.ask)
            elif plan:
                raise UsageError("Without --engines nothing is changed, so there is no plan.", hint="--engines A,B")
            else:
                asking.ask(profile)
        finally:
            asking.tell()


class _Asking:
    """One run, engine by engine; each line is kept as it is there."""

    def __init__(self, session: Session, wanted: Wanted, as_json: bool, compares: bool) -> None:
        from orchestrator.bench.results import new_run

        self._session = session
        self._wanted = wanted
        self._as_json = as_json
        self._compares = compares
        self._run = new_run()
        self._first: tuple[Mapping[str, Any], Sequence[str]] | None = None
        self._found: list[Mapping[str, Any]] = []

    def ask(self, profile: str | None) -> None:
        """What serves a profile now (None: the only one)."""
        from orchestrator.app.measured import subject_of
        from orchestrator.bench import quality_runs

        orch = self._session.orch
        subject = subject_of(orch, profile, direct=False)
        if self._compares:
            answered = (subject.facts, quality_runs.answers(orch, subject, self._wanted))
            if self._first is None:
                self._first = answered
                # An engine parts from itself at near ties, too, by what its cache holds: nobody can agree more.
                again = (subject.facts, quality_runs.answers(orch, subject, self._wanted))
                self._keep(quality_runs.compared(answered, again, self._run))
            else:
                self._keep(quality_runs.compared(self._first, answered, self._run))
        if self._wanted.tasks:
            from orchestrator.app.environments import plan_install

            self._session.plan_and_run(
                "bench quality", lambda: plan_install(orch, quality_runs.HARNESS), only_plan=False
            )
            for line in quality_runs.scores(orch, subject, self._wanted, self._run):
                self._keep(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        from orchestrator.bench.results import Results

        Results(self._session.settings.data / "bench" / "quality").add(line)
        self._found.append(line)
        if self._as_json:
            self._session.screen.result(line, "")

    def tell(self) -> None:
        """What was found, for people."""
        if self._as_json or not self._found:
            return
        from orchestrator.bench.quality_runs import side_of

        of = {kind: [line for line in self._found if line["kind"] == kind] for kind in _KINDS}
        agreed = [
            {
                "engine": side_of(line),
                "against": line["against"],
                "same answers": f"{line['same']} of {line['of']}",
                "95 %": f"{100 * line['least']:.0f} to {100 * line['most']:.0f} %",
                "until they part": f"{100 * line['until_they_part']:.0f} % of the words",
            }
            for line in of["agreement"]
        ]
        if agreed:
            self._session.screen.table("Greedy answers", tuple(agreed[0]), agreed)
        scores = [_score_row(line, of["score"]) for line in of["score"]]
        if scores:
            self._session.screen.table("Tasks", tuple(scores[0]), scores)
        for line in of["unmeasurable"]:
            self._session.screen.say(f"{line['task']} is not measurable on {side_of(line)}: {line['why']}.")


_KINDS = ("agreement", "score", "unmeasurable")


def _score_row(line: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A score, and what it is of the first engine's."""
    from orchestrator.bench.quality import Score, recovery
    from orchestrator.bench.quality_runs import side_of

    def score(of: Mapping[str, Any]) -> Score:
        return Score(of["task"], of["metric"], of["value"], of["stderr"], of["samples"])

    alike = [one for one in every if (one["task"], one["metric"]) == (line["task"], line["metric"])]
    found = recovery(score(line), score(alike[0])) if alike[0] is not line else None
    error = f" ± {100 * line['stderr']:.1f}" if line["stderr"] is not None else ""
    left = "-"
    if found is not None:
        left = f"{found.percent:.1f}" + (f" ± {found.error:.1f}" if found.error is not None else "") + " %"
    return {
        "task": line["task"],
        "metric": line["metric"],
        "engine": side_of(line),
        "score": f"{line['value']:,.4g}" if score(line).is_cost else f"{100 * line['value']:.1f}{error} %",
        "of the first": left,
        "samples": line["samples"],
    }
