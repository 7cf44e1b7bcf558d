"""The verbs that look at what serves: status, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import DRIFT, LockHeld

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.app.status import Status
    from orchestrator.cli.screen import Screen
    from orchestrator.core.gateway_status import BackendLoad
    from orchestrator.core.observed import EngineObserved, GatewayObserved

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
ENGINE_COLUMNS = ("instance", "state", "answers", "recipe", "image", "restarts", "adapters")


@app.command()
def status(
    during_change_ok: Annotated[
        bool, typer.Option("--during-change-ok", help="Exit code 0, not 8, while another orch is at work.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what serves, and what is not as it should be: exit code 9 then, 8 while another orch changes it."""
    with session_of(as_json) as session:
        from orchestrator.app.status import status as current_status

        found = current_status(session.orch)
        _tell(session.screen, found)
        if found.at_work:
            # What is in the making is nothing to be woken up for.
            raise typer.Exit(0 if during_change_ok else LockHeld.exit_code)
        if found.drift:
            raise typer.Exit(DRIFT)


def _tell(screen: Screen, found: Status) -> None:
    if found.gpu_problem:
        screen.result({"gpu_problem": found.gpu_problem}, found.gpu_problem)
    if found.at_work:
        screen.result({"at_work": found.at_work}, found.at_work)
    for name in found.stopped:
        screen.result({"stopped": name}, f"{name} is stopped.  orch up -p {name}")
    if found.empty:
        if not found.stopped:
            screen.result({"deployed": []}, "Nothing is deployed.  orch up ENGINE -p PROFILE")
        return
    if found.engines or not found.unseen:
        rows = [_engine_row(engine, found.images) for engine in found.engines]
        columns = tuple(name for name in ENGINE_COLUMNS if name != "image" or any(row["image"] for row in rows))
        screen.table("Engines", columns, rows)
    for name in found.unseen:
        screen.result({"unseen": name}, f"Engines on {name}: unknown.")
    for line in found.restarted:
        screen.result({"out_of_memory": line}, line)
    _tell_gateway(screen, found.gateway)
    for line in found.upgrades:
        screen.result({"upgrade": line}, line)
    for line in found.drift:
        screen.result({"drift": line}, f"DRIFT {line}")
    if not found.drift and not found.at_work:
        screen.result({"in_sync": True}, "All is as it should be.")


@app.command()
def logs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Instances, or gateway; default: what serves, and the gateway."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow: show lines as they come.")] = False,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each log.", min=1)] = 50,
) -> None:
    """The logs of engines and the gateway, also of one that is gone. Of several, each line says whose it is."""
    with session_of(False) as session:
        from orchestrator.app.logs import followed, printed, sources
        from orchestrator.cli.screen import reader_has_left

        chosen, silent = sources(session.orch, names or [])
        for error in silent:
            session.screen.error(error)
        width = max(len(source.name) for source in chosen)
        colours = {source.name: COLOURS[index % len(COLOURS)] for index, source in enumerate(chosen)}

        def tell(name: str, line: str) -> None:
            prefix = "" if len(names or []) == 1 else typer.style(f"{name:<{width}} | ", fg=colours[name])
            session.screen.result({"log": name, "line": line}, f"{prefix}{line}")

        if not follow:
            for source in chosen:
                for line in printed(source, lines):
                    tell(source.name, line)
            return
        # Nothing need be written for a long time: that nobody reads any more is not seen by writing.
        for name, line in followed(chosen, lines, lambda: session.interrupted() or reader_has_left()):
            tell(name, line)


def _engine_row(engine: EngineObserved, images: Mapping[str, str]) -> dict[str, Any]:
    instance, deployment = engine.instance, engine.deployment
    container = instance.launch.container
    state = instance.state.value if instance.supervised or not engine.running else "unsupervised"
    return {
        "instance": instance.name,
        "profile": deployment.profile,
        "engine": deployment.engine,
        "target": deployment.target,
        "generation": deployment.generation,
        "gpu": deployment.gpu,
        "state": state,
        "answers": "yes" if engine.answers else "no",
        "recipe": deployment.recipe.value,
        "image": images.get(container.image, container.image) if container is not None else "",
        "pid": instance.pid or "",
        "port": instance.port or "",
        "since": instance.since or "",
        "restarts": max(0, instance.starts - 1),
        "last_exit": str(instance.last_exit) if instance.last_exit is not None else "",
        "adapters": [adapter.name for adapter in deployment.adapters],
    }


def _in_flight(load: BackendLoad, name: str) -> int | str:
    """Under this name; empty where a gateway of an earlier version does not tell."""
    if load.in_flight and not load.in_flight_by_route:
        return ""
    return load.in_flight_by_route.get(name, 0)


def _tell_gateway(screen: Screen, gateway: GatewayObserved) -> None:
    status = gateway.status
    if status is None:
        return
    rows = [
        {
            "public_name": route.name,
            "engine": route.backend.instance,
            "in_flight": _in_flight(status.load_of(route.backend.instance), route.name),
        }
        for route in status.routes
    ]
    totals, in_flight = status.traffic.totals, status.traffic.in_flight
    # By its own count a gateway in a container is the first process there.
    pid = gateway.instance.pid if gateway.instance is not None else status.pid
    told = {
        "gateway": f"http://{status.listen}/v1",
        "version": status.version,
        "pid": pid,
        "keys": status.keys,
        "origins": list(status.origins),
        "requests": totals.requests,
        "errors": totals.errors,
        "in_flight": in_flight,
    }
    lines = [
        f"Gateway {told['gateway']}  (orch {status.version}, pid {pid}, {'' if status.keys else 'no '}API key)",
        f"  requests {totals.requests}, errors {totals.errors}, in flight {in_flight}",
        *(f"  origins allowed besides its own: {origin}" for origin in status.origins),
    ]
    screen.result(told, "\n".join(lines))
    screen.table("Names", ("public_name", "engine", "in_flight"), rows)
    for other in gateway.others:
        if other.leaves and other.status is not None:
            name, left = other.instance.name, other.status.traffic.in_flight
            screen.result({"leaves": name, "in_flight": left}, f"{name} was replaced; it answers {left} more requests.")
