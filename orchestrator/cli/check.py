"""`orch check`: whether a model is the same on every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, Timeout, app, session_of
from orchestrator.errors import DRIFT

if TYPE_CHECKING:
    from orchestrator.app.check import Checked
    from orchestrator.cli.screen import Screen
    from orchestrator.core.parity import Result


@app.command()
def check(
    profile: Annotated[str | None, typer.Argument(help="A profile's name or file; default: the deployed one.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option("--engine", "-e", help="Only this one; may be repeated. Default: all.")
    ] = None,
    timeout: Timeout = 900.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Compare engines: tokens, prompts, ends of answers, greedy answers. Exit code 9 if the model differs."""
    with session_of(as_json) as session:
        from orchestrator.app.check import candidates
        from orchestrator.app.check import check as check_all

        if plan:
            for one in candidates(session.orch, profile, engine or (), timeout)[1]:
                session.screen.plan(one.plan)
            return
        found = check_all(session.orch, profile, engine or (), timeout, session)
        if as_json:
            session.screen.result(_as_json(found), "")
        else:
            _tell(session.screen, found)
        if not found.holds:
            raise typer.Exit(DRIFT)


def _tell(screen: Screen, found: Checked) -> None:
    """A row for each check, a column for each engine; then what differs."""
    engines = [one.engine for one in found.answers]
    rows = [{"check": "what it serves", "as": ""} | {one.engine: one.recipe.value for one in found.answers}]
    rows += [
        {"check": check.name, "as": check.expected} | {one.engine: _figure(one) for one in check.results}
        for check in found.checks
    ]
    screen.table("The same model?", ("check", "as", *engines), rows)
    for check in found.checks:
        for one in check.results:
            if one.first_difference:
                screen.say(f"{check.name}, {one.engine}: {one.first_difference}")
    if any(check.is_a_share and any(one.same != one.of for one in check.results) for check in found.checks):
        screen.say(
            "Two tokens can be nearly as likely: of the same weights most greedy answers have to be equal, of others "
            "they are a figure."
        )
    for skip in found.left_out:
        screen.say(f"Not asked: {skip.what.removeprefix('ask ')}: {skip.why}")
    alone = "Only one engine can be asked here." if len(engines) == 1 else ""
    verdict = "The model is the same on all of them." if found.holds else "The model differs between engines."
    screen.say(alone or verdict)


def _figure(result: Result) -> str:
    if result.same is None:
        return "cannot be asked"
    if result.of == 1:
        return "same" if result.same else "DIFFERS"
    return f"{result.same} of {result.of}{'' if result.holds else '  DIFFERS'}"


def _as_json(found: Checked) -> dict[str, object]:
    checks = [
        {
            "check": check.name,
            "as": check.expected,
            "holds": check.holds,
            "results": [vars(one) for one in check.results],
        }
        for check in found.checks
    ]
    engines = [{"engine": one.engine, "recipe": one.recipe.value} for one in found.answers]
    left_out = [{"engine": skip.what.removeprefix("ask "), "why": skip.why} for skip in found.left_out]
    return {"same": found.holds, "engines": engines, "checks": checks, "left_out": left_out}
