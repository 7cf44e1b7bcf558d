"""The verbs that look at what serves: status, logs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.core.progress_view import amount, duration
from orchestrator.errors import DRIFT, LockHeld

if TYPE_CHECKING:
    from orchestrator.app.status import EngineStatus, GatewayStatus, HoldStatus, Status
    from orchestrator.cli.screen import Screen

GATEWAY_TELLS = " What is told of them is what the gateway has, and what answers there."
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


@app.command()
def status(
    during_change_ok: Annotated[
        bool, typer.Option("--during-change-ok", help="Exit code 0, not 8, while another orch is at work.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what serves, and what is not as it should be: exit code 9 then, 8 while another orch changes it. Where a
    target cannot be asked (9 too), what the gateway has in its table is told, and which engines answer at their
    addresses."""
    with session_of(as_json, one_document=True) as session:
        from orchestrator.app.status import status as current_status

        found = current_status(session.orch)
        if as_json:
            session.screen.result(found.to_json(), "")
        else:
            _tell(session.screen, found)
        if found.at_work:
            # What is in the making is nothing to be woken up for.
            raise typer.Exit(0 if during_change_ok else LockHeld.exit_code)
        if found.drift:
            raise typer.Exit(DRIFT)


def _tell(screen: Screen, found: Status) -> None:
    if found.gpu_problem:
        screen.say(found.gpu_problem)
    if found.at_work:
        screen.say(found.at_work)
    for name in found.stopped:
        screen.say(f"{name} is stopped.  orch up -p {name}")
    if found.empty:
        if not found.stopped:
            screen.say("Nothing is deployed.  orch up ENGINE -p PROFILE")
        return
    for name in found.unseen:
        screen.say(f"Engines on {name}: unknown.{GATEWAY_TELLS if found.gateway is not None else ''}")
    if not found.engines and not found.unseen:
        screen.say("Engines: none.")
    for engine in found.engines:
        screen.facts(engine.instance, _engine_facts(engine))
    for line in found.out_of_memory:
        screen.say(line)
    if found.gateway is not None:
        screen.facts("Gateway", _gateway_facts(found.gateway, at_work=bool(found.at_work)))
        rows = [{**asdict(name), "in_flight": "" if name.in_flight is None else name.in_flight} for name in found.names]
        screen.table("Names", ("public_name", "instance", "in_flight", "waiting"), rows)
        for other in found.gateway.leaving:
            screen.say(f"{other.instance} was replaced; it answers {other.in_flight} requests.")
    for line in found.upgrades:
        screen.say(line)
    # While somebody changes it, what is not as it should be is what is being done.
    for line in found.drift if not found.at_work else ():
        screen.say(f"DRIFT {line}")
    if found.in_sync:
        screen.say("All is as it should be.")


def _engine_facts(engine: EngineStatus) -> dict[str, str]:
    """What there is to tell of it, a line each; what is empty is left out by the screen."""
    answers = "answers" if engine.answers else "does not answer"
    state = ["stands by"] if engine.state == "standby" else [engine.state, answers]
    if engine.uptime_s is not None:
        state.append(f"up {duration(engine.uptime_s)}")
    restarts = f"{engine.restarts} (the last one {engine.last_exit})" if engine.last_exit else f"{engine.restarts}"
    what = filter(None, (engine.engine, engine.target and f"on {engine.target}"))
    held = [f"{amount(engine.memory)}"] if engine.memory is not None else []
    held += [f"GPU {amount(engine.gpu_memory)}"] if engine.gpu_memory is not None else []
    return {
        "state": ", ".join(state),
        "engine": " ".join(what) + (f", generation {engine.generation}" if engine.generation is not None else ""),
        "recipe": engine.recipe or "",
        "image": engine.image or "",
        "environment": engine.environment or "",
        "GPU": ", ".join(engine.gpus),
        "probes": engine.proofs or "",
        "memory": ", ".join(held),
        "requests": f"{engine.requests}, in flight {engine.in_flight}" if engine.requests is not None else "",
        "restarts": restarts if engine.restarts else "",
        "adapters": ", ".join(engine.adapters),
        "address": (engine.address or "") if engine.state == "unknown" else "",
    }


def _gateway_facts(gateway: GatewayStatus, *, at_work: bool) -> dict[str, str]:
    pid = f"pid {gateway.pid}, " if gateway.pid is not None else ""
    keys = "API key" if gateway.keys else "no API key"
    if gateway.open_until is not None:
        keys = f"API key from {gateway.open_until} on"
    return {
        "address": gateway.url,
        "program": f"orch {gateway.version}, {pid}{keys}",
        "state": f"answers, up {duration(gateway.uptime_s)}",
        "requests": f"{gateway.requests}, errors {gateway.errors}, in flight {gateway.in_flight}",
        "held": "; ".join(_held(hold, at_work=at_work) for hold in gateway.holds),
        "origins": ", ".join(gateway.origins),
        "limits": ", ".join(gateway.limits),
    }


def _held(hold: HoldStatus, *, at_work: bool) -> str:
    longest = f", the longest for {hold.longest_s:.0f} s" if hold.requests else ""
    held = f"{hold.requests} requests to {hold.profile}{longest}, until what serves it is changed"
    if at_work:
        return held
    go_on = f"else they go on in {hold.expires_s:.0f} s"
    return f"{held}. Whoever began that is gone: the same command again, or orch up; {go_on}"


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
