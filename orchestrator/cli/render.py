"""The verb that shows what engines are started with: render, of an engine or as a compose file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, ProfileName, Target, app, session_of
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session

DOCKER = "docker"


@app.command()
def render(
    what: Annotated[str, typer.Argument(help="An engine, such as ollama; or compose, for a compose file.")],
    engine: Annotated[str | None, typer.Argument(help="For compose: the engine; default: the deployed one.")] = None,
    profile: ProfileName = None,
    target: Target = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the files into DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what `up` would start an engine with: its files; its environment and command, as comments in them.

    `orch render compose` prints it as a compose file instead, with the gateway, for Docker without orch."""
    with session_of(as_json) as session:
        if what == "compose":
            _check_words(target not in (None, DOCKER), "A compose file is for target docker.")
            _render_compose(session, engine, profile, output, as_json)
            return
        _check_words(engine is not None, f"{what} and {engine}: one engine at a time.")
        _render_engine(session, what, profile, target, output)


def _check_words(wrong: bool, problem: str) -> None:
    if wrong:
        raise UsageError(problem, hint="orch render ENGINE, or orch render compose [ENGINE]; --output DIR")


def _render_engine(session: Session, engine: str, profile: str | None, target: str | None, output: Path | None) -> None:
    from orchestrator.app.intent import Serve
    from orchestrator.app.resolution import rendered, write_files

    deployment = rendered(session.orch, Serve(engine, profile, target))
    launch = deployment.launch
    if output is not None:
        for path in write_files(deployment, output):
            session.screen.result({"written": str(path)}, f"Written: {path}")
    else:
        for name, text in deployment.written:
            session.screen.result({"file": name, "text": text}, f"# {name}\n{text}")
    # Where a file is printed, what follows must not spoil it: `orch render ollama > Modelfile` is one.
    comment = "# " if deployment.written and output is None else ""
    env = [f"{key}={value}" for key, value in launch.env]
    session.screen.result(
        {"argv": list(launch.argv), "env": dict(launch.env), "environment": launch.environment},
        "\n".join(["# command", *(f"{comment}{line}" for line in (*env, _shell(launch.argv)))]),
    )


def _render_compose(
    session: Session, engine: str | None, profile: str | None, output: Path | None, as_json: bool
) -> None:
    from orchestrator.app.compose import COMPOSE, compose_project, write_project
    from orchestrator.app.intent import Serve

    project = compose_project(session.orch, Serve(engine, profile, DOCKER))
    if output is not None:
        write_project(project, output)
        session.screen.result({"written": str(output / COMPOSE)}, f"Written: {output / COMPOSE}")
        return
    for name, text in project.files.items():
        if as_json or name == COMPOSE:
            session.screen.result({"file": name, "text": text}, text)
    others = "\n".join(f"#   {name}" for name in project.files if name != COMPOSE)
    session.screen.result(
        {"gateway_base": project.gateway_base},
        "# --output DIR writes this file, and what it needs beside it:\n"
        f"{others}\n#   gateway/, what its image is built of, on {project.gateway_base}",
    )


def _shell(argv: tuple[str, ...]) -> str:
    return " ".join(word if re.fullmatch(r"\{\w+\}\S*", word) else shlex.quote(word) for word in argv)
