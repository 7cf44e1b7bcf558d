"""The verbs that only look: status, logs, render."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, ProfileName, Target, app, session_of
from orchestrator.errors import DRIFT, OrchError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Desired
    from orchestrator.core.observed import EngineObserved, Observed

FOLLOW_S = 0.2


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
        if not observed.deployed and not observed.engines and observed.gateway.instance is None:
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
        drift += observed.unreadable
        for line in drift:
            session.screen.result({"drift": line}, f"DRIFT {line}")
        if drift:
            raise typer.Exit(DRIFT)
        session.screen.result({"in_sync": True}, "All is as it should be.")


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="An instance, or gateway; default: what serves.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("-n", help="How many lines.", min=1)] = 50,
) -> None:
    """The log of an engine or the gateway, also of one that is gone."""
    with session_of(False) as session:
        path = session.local.log_path(name or _serving(session))
        if not path.is_file():
            raise PlanRefused(f"There is no log of {path.stem}.", hint=f"Logs: {_log_names(session) or 'none'}")
        with path.open(errors="replace") as file:
            for line in file.readlines()[-lines:]:
                typer.echo(line, nl=False)
            while follow and not session.interrupted():
                line = file.readline()
                if line:
                    typer.echo(line, nl=False)
                elif path.stat().st_size < file.tell():
                    file.seek(0)  # rotated: copied away and truncated
                else:
                    time.sleep(FOLLOW_S)


@app.command()
def render(
    engine: Annotated[str, typer.Argument(help="ollama, llamacpp or vllm.")],
    profile: ProfileName = None,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """Print what `up` would start an engine with. Its files, command line and environment."""
    with session_of(as_json) as session:
        from orchestrator.cli.wishes import (
            chosen_target,
            default_profile,
            load_profile,
            observed_for,
            pinned,
            resolve_desired,
        )
        from orchestrator.core.deployment import Desired, Wish

        observed = session.observe()
        loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
        present = observed.desired.get(loaded.name)
        wish = Wish(profile=loaded, engine=engine, target=chosen_target(session, engine, target, present))
        desired = Desired(wish=wish, adapters=present.adapters if present is not None else ())
        observed = observed_for(session, desired, observed)
        deployment = resolve_desired(session, desired, observed, to_run=False)[0].deployment
        launch = deployment.launch
        for name, text in deployment.written:
            session.screen.result({"file": name, "text": text}, f"# {name}\n{text}")
        env = [f"{key}={value}" for key, value in launch.env]
        session.screen.result(
            {"argv": list(launch.argv), "env": dict(launch.env), "environment": launch.environment},
            "\n".join(["# command", *env, _shell(launch.argv)]),
        )


def _shell(argv: tuple[str, ...]) -> str:
    import shlex

    return " ".join(word if re.fullmatch(r"\{\w+\}\S*", word) else shlex.quote(word) for word in argv)


def _serving(session: Session) -> str:
    status = session.world.gateway.status()
    backends = sorted({route.backend for route in status.routes}) if status is not None else []
    if len(backends) != 1:
        names = _log_names(session)
        if not names:
            raise PlanRefused("There are no logs yet.")
        raise PlanRefused("Say whose log.", hint=f"Logs: {names}")
    return backends[0]


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


def _log_names(session: Session) -> str:
    return ", ".join(sorted(path.stem for path in session.settings.logs.glob("*.log")))
