"""The verb that downloads weights: pull."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, ProfileName, app, session_of


@app.command()
def pull(
    profile: ProfileName = None,
    repo: Annotated[str | None, typer.Option(help="OWNER/NAME@REVISION, without a profile.")] = None,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Download weights into the store. Checked against what the hub states, resumed where it stopped."""
    with session_of(as_json) as session:
        from orchestrator.app.pull import plan_pull

        session.plan_and_run("pull", partial(plan_pull, session.orch, profile, repo), plan, lock=False)
