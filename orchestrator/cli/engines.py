"""The verbs for the environments of engines and builders: ls, install, rm."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, app, session_of

engines = typer.Typer(help="Environments of engines and builders, made and pinned by orch.", no_args_is_help=True)
app.add_typer(engines, name="engines")


@engines.command("ls")
def engines_ls(as_json: AsJson = False) -> None:
    """The engines and builders, what they run from, and whether it is installed."""
    with session_of(as_json) as session:
        from orchestrator.app.environments import environment_rows

        session.screen.table("Engines", ("engine", "environment", "size", "state"), environment_rows(session.orch))


@engines.command("install")
def engines_install(
    engine: Annotated[
        str, typer.Argument(help="Such as vllm, or llmcompressor, which makes NVFP4 (W4A4); not all need one.")
    ],
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Install the environment of an engine or builder now. Otherwise the first command that needs it does."""
    with session_of(as_json) as session:
        from orchestrator.app.environments import plan_install

        session.plan_and_run(f"engines install {engine}", partial(plan_install, session.orch, engine), plan)


@engines.command("rm")
def engines_rm(
    name: Annotated[str, typer.Argument(help="An environment, as `orch engines ls` shows it.")], as_json: AsJson = False
) -> None:
    """Remove an environment that no engine runs from."""
    with session_of(as_json) as session:
        from orchestrator.app.environments import remove_environment
        from orchestrator.app.runs import alone

        with alone(session.orch, "engines rm"):
            remove_environment(session.orch, name)
        session.screen.result({"removed": name}, f"Removed {name}.")
