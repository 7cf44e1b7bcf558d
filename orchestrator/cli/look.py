"""The verbs that only look: status, logs, render."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, ProfileName, Target, app, session_of
from orchestrator.errors import DRIFT, OrchError, PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Desired
    from orchestrator.core.observed import EngineObserved, Observed

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


@app.command()
def status(as_json: AsJson = False) -> None:
    """What serves, and what is not as it should be. Exit code 9 then; it is `orch up --plan`, told differently."""
    with session_of(as_json) as session:
        from orchestrator.drivers.records import at_work

        observed = session.observe()
        if observed.host.gpu_problem:
            session.screen.result({"gpu_problem": observed.host.gpu_problem}, observed.host.gpu_problem)
        if busy := at_work(session.settings.data / "lock"):
            session.screen.result({"at_work": busy}, busy)
        stopped = sorted(set(observed.desired) - set(observed.deployed))
        for name in stopped:
            session.screen.result({"stopped": name}, f"{name} is stopped.  orch up -p {name}")
        unreachable = [f"{name}: {error.message} {error.hint}" for name, error in observed.unreachable.items()]
        if not observed.deployed and not observed.engines and observed.gateway.instance is None and not unreachable:
            if not stopped:
                session.screen.result({"deployed": []}, "Nothing is deployed.  orch up llamacpp")
            return
        session.screen.table(
            "Engines",
            ("instance", "state", "answers", "recipe", "restarts", "adapters"),
            [_engine_row(engine) for engine in observed.engines],
        )
        _tell_gateway(session, observed)
        drift = [line for name in observed.deployed for line in _drift(session, observed.desired[name], observed)]
        drift += _left_over(observed)
        drift += [f"{one.name}: {one.problem}; orch down --all" for one in observed.damaged]
        drift += [*observed.unreadable, *(() if observed.deployed else unreachable)]
        for line in drift:
            session.screen.result({"drift": line}, f"DRIFT {line}")
        if drift:
            raise typer.Exit(DRIFT)
        session.screen.result({"in_sync": True}, "All is as it should be.")


@app.command()
def logs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Instances, or gateway; default: what serves, and the gateway."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each.", min=1)] = 50,
) -> None:
    """The logs of engines and the gateway, also of one that is gone. Of several, each line says whose it is."""
    with session_of(False) as session:
        from orchestrator.cli.logs import followed, printed, sources

        chosen = sources(session, names or [])
        width = max(len(source.name) for source in chosen)
        colours = {source.name: COLOURS[index % len(COLOURS)] for index, source in enumerate(chosen)}

        def tell(name: str, line: str) -> None:
            # typer takes the colour away where it is no terminal.
            prefix = "" if len(names or []) == 1 else typer.style(f"{name:<{width}} | ", fg=colours[name])
            typer.echo(f"{prefix}{line}")

        if not follow:
            for source in chosen:
                for line in printed(source, lines):
                    tell(source.name, line)
            return
        for name, line in followed(chosen, lines, session.interrupted):
            tell(name, line)


@app.command()
def render(
    what: Annotated[str, typer.Argument(help="ollama, llamacpp or vllm; or compose, for a compose file.")],
    engine: Annotated[str | None, typer.Argument(help="For compose: the engine; default: the deployed one.")] = None,
    profile: ProfileName = None,
    target: Target = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="For compose: write it into DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what `up` would start an engine with: its files, command line and environment.

    `orch render compose` prints it as a compose file instead, with the gateway, for Docker without orch."""
    with session_of(as_json) as session:
        if what == "compose":
            _check_words(target not in (None, "docker"), "A compose file is for target docker.")
            _render_compose(session, engine, profile, output)
            return
        _check_words(engine is not None, f"{what} and {engine}: one engine at a time.")
        _check_words(output is not None, "--output is for compose.")
        _render_engine(session, what, profile, target)


def _check_words(wrong: bool, problem: str) -> None:
    if wrong:
        raise UsageError(problem, hint="orch render ENGINE, or orch render compose [ENGINE] [--output DIR]")


def _render_engine(session: Session, engine: str, profile: str | None, target: str | None) -> None:
    from orchestrator.cli.wishes import resolve_desired

    desired, observed = _wanted(session, session.observe(), engine, profile, target)
    deployment = resolve_desired(session, desired, observed, to_run=False)[0].deployment
    launch = deployment.launch
    for name, text in deployment.written:
        session.screen.result({"file": name, "text": text}, f"# {name}\n{text}")
    env = [f"{key}={value}" for key, value in launch.env]
    session.screen.result(
        {"argv": list(launch.argv), "env": dict(launch.env), "environment": launch.environment},
        "\n".join(["# command", *env, _shell(launch.argv)]),
    )


def _render_compose(session: Session, engine: str | None, profile: str | None, output: Path | None) -> None:
    from orchestrator.cli.compose import COMPOSE, compose_project, write_project
    from orchestrator.core.launch import DOCKER

    desired, observed = _wanted(session, session.observe(), engine, profile, DOCKER)
    project = compose_project(session, desired, observed)
    if output is not None:
        write_project(project, output)
        session.screen.result({"written": str(output / COMPOSE)}, f"Written: {output / COMPOSE}")
        return
    for name, text in project.files.items():
        session.screen.result({"file": name, "text": text}, f"# {name}\n{text}")
    session.screen.result(
        {"gateway_base": project.gateway_base},
        f"# gateway/\n# What its image is built of, on {project.gateway_base}: --output DIR writes it too.",
    )


def _wanted(
    session: Session, observed: Observed, engine: str | None, profile: str | None, target: str | None
) -> tuple[Desired, Observed]:
    """What `up` would want of an engine (None: of the one on record), with the adapters that are on record."""
    from orchestrator.cli.wishes import chosen_target, default_profile, load_profile, observed_for, pinned
    from orchestrator.core.deployment import Desired, Wish

    loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
    present = observed.desired.get(loaded.name)
    recorded = present.wish.engine if present is not None else None
    if engine is None and recorded is None:
        raise PlanRefused(
            f"{loaded.name} is not deployed, so an engine must be named.", hint="orch render compose vllm"
        )
    recipe = present.wish.recipe if present is not None and engine in (None, recorded) else None
    where = chosen_target(session, engine or recorded, target, present)
    wish = Wish(profile=loaded, engine=engine or recorded or "", target=where, recipe=recipe)
    desired = Desired(wish=wish, adapters=present.adapters if present is not None else ())
    return desired, observed_for(session, desired, observed)


def _shell(argv: tuple[str, ...]) -> str:
    import shlex

    return " ".join(word if re.fullmatch(r"\{\w+\}\S*", word) else shlex.quote(word) for word in argv)


def _engine_row(engine: EngineObserved) -> dict[str, Any]:
    instance, deployment = engine.instance, engine.deployment
    state = instance.state.value if instance.supervised or not engine.running else "unsupervised"
    return {
        "instance": instance.name,
        "profile": deployment.profile,
        "engine": deployment.engine,
        "state": state,
        "answers": "yes" if engine.answers else "no",
        "recipe": deployment.recipe.value,
        "pid": instance.pid or "",
        "port": instance.port or "",
        "since": instance.since or "",
        "restarts": max(0, instance.starts - 1),
        "last_exit": str(instance.last_exit) if instance.last_exit is not None else "",
        "adapters": [adapter.name for adapter in deployment.adapters],
    }


def _tell_gateway(session: Session, observed: Observed) -> None:
    status = observed.gateway.status
    if status is None:
        return
    rows = [
        {
            "public_name": route.name,
            "engine": route.backend,
            "in_flight": status.backends[route.backend].in_flight if route.backend in status.backends else 0,
        }
        for route in status.routes
    ]
    totals = f"requests {status.totals.requests}, errors {status.totals.errors}"
    title = f"Gateway http://{status.listen}/v1  (pid {status.pid}, {totals})"
    session.screen.table(title, ("public_name", "engine", "in_flight"), rows)


def _drift(session: Session, desired: Desired, observed: Observed) -> list[str]:
    """What `up` would do for a profile: all Skips means in sync."""
    from orchestrator.cli.wishes import door, observed_for, resolve_desired
    from orchestrator.core.launch import InstanceState
    from orchestrator.core.plan import Limits, plan_deploy

    profile = desired.wish.profile.name
    troubled = []
    for engine in observed.engines_of(profile):
        if engine.instance.state is InstanceState.BACKOFF:
            troubled.append(f"{engine.instance.name} {engine.instance.last_exit} and waits to be restarted")
        elif engine.running and not engine.instance.supervised:
            troubled.append(f"{engine.instance.name} has no keeper: nothing restarts it after a crash")
        elif engine.instance.drift:
            troubled.append(f"{engine.instance.name} {engine.instance.drift}")
    try:
        observed = observed_for(session, desired, observed)
        resolved, desired = resolve_desired(session, desired, observed)
        way_in = door(session, observed, None, desired.wish.target)
        plan = plan_deploy("up", resolved, desired, observed, way_in, Limits())
    except OrchError as error:
        return [*troubled, f"{profile}: {error.message} {error.hint}".strip()]
    return troubled + [f"{profile}: orch up would {action.step.what}" for action in plan.actions]


def _left_over(observed: Observed) -> list[str]:
    """Engines and routes of profiles that nobody wants: a killed `up` or `down` leaves them."""
    deployed = set(observed.deployed)
    owners = {engine.deployment.profile for engine in observed.engines}
    if observed.gateway.status is not None:
        owners |= {route.owner for route in observed.gateway.status.routes}
    found = [f"{name}: left over; orch up or orch down {name}" for name in sorted(owners - deployed)]
    if observed.gateway.instance is not None and not observed.gateway.well and not deployed:
        found.append("the gateway does not answer or has no keeper; orch down --all")
    return found
