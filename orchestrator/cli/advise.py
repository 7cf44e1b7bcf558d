"""`orch advise`: which engine, for how many users, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, ProfileName, app, session_of
from orchestrator.errors import UsageError

# What the gateway keeps, in hours.
WEEK_H = 168.0


@app.command()
def advise(
    users: Annotated[int | None, typer.Option(help="Regular users at a time.", min=1, max=100_000)] = None,
    live: Annotated[
        bool, typer.Option("--live", help="As many as there were: by what the gateway has counted of its clients.")
    ] = False,
    hours: Annotated[float, typer.Option(help="Hours that --live looks back.", min=1, max=WEEK_H)] = WEEK_H,
    growth: Annotated[
        float, typer.Option(help="How many times as many users there will be later.", min=1, max=1000)
    ] = 1.0,
    ttft: Annotated[
        float | None, typer.Option(metavar="MS", help="A first token within this many milliseconds.", min=1)
    ] = None,
    adapters: Annotated[
        int | None, typer.Option(help="LoRA adapters in use; default: those that are deployed.", min=0)
    ] = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """Which engine for how many users: by your own measurements where there are any, else by the article's rules."""
    with session_of(as_json) as session:
        if users is None and not live:
            raise UsageError(
                "How many users are there?", hint="--users N, or --live: as many as the gateway has counted."
            )
        from orchestrator.bench.advice import advise as advised
        from orchestrator.bench.advising import Question, situation
        from orchestrator.cli.bench_results import results_of

        question = Question(users, growth, ttft, adapters, hours if live else None)
        asked = situation(session.orch, results_of(session), profile, question)
        advice = advised(asked)
        if as_json:
            told = {
                "engine": advice.engine,
                "verdict": advice.verdict,
                "sure": advice.sure.name.lower(),
                "users": asked.users,
                "later": asked.later,
                "reasons": [{"text": reason.text, "source": reason.source} for reason in advice.reasons],
                "again": advice.again,
                "run": advice.run,
            }
            session.screen.result(told, "")
            return
        session.screen.say(f"{advice.verdict} ({advice.sure.value})")
        for reason in advice.reasons:
            session.screen.say(f"- {reason.text}\n    {reason.source}")
        for more in (advice.again, f"To be sure: {advice.run}" if advice.run else ""):
            if more:
                session.screen.say(more)
