"""The verbs that change what serves: up, migrate, rollback, down, lora."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    Drain,
    EngineName,
    FormOfChange,
    KeepOld,
    LongestHold,
    OnlyPlan,
    ProfileName,
    ReadyMade,
    SkippedProbes,
    Target,
    Timeout,
    Yes,
    app,
    engine_names,
    session_of,
)
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.app.deploy import Waiting
    from orchestrator.app.intent import Intent
    from orchestrator.cli.session import Session
    from orchestrator.core.plan import Plan

lora = typer.Typer(help="Adapters of a deployed profile.", no_args_is_help=True)
app.add_typer(lora, name="lora")

# Below this a download needs no question.
ASK_ABOVE_BYTES = 200_000_000


@app.command()
def up(
    engine: EngineName = None,
    profile: ProfileName = None,
    target: Target = None,
    recipe: Annotated[str | None, typer.Option(help="Serve this artifact, not the profile's first choice.")] = None,
    ready_made: ReadyMade = None,
    listen: Annotated[str | None, typer.Option(help="The gateway's address, HOST:PORT.")] = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    keep_old: KeepOld = False,
    skip_probe: SkippedProbes = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new generation, even beside a running one.")] = False,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway",
            help="Replace a gateway of another version, or for other ORCH_ORIGINS or ORCH_LIMITS; no request fails.",
        ),
    ] = False,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Let pages of this origin use the gateway without an API key, from now on; several times for several.",
        ),
    ] = None,
    locked: Annotated[
        Path | None, typer.Option(help="A lock file: serve only what is in the store as it says.", dir_okay=False)
    ] = None,
    yes: Yes = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Serve a profile with an engine. Run again: heal what is broken, apply a changed profile."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Options, Waiting, plan_up
        from orchestrator.app.intent import Serve, recipe_named
        from orchestrator.app.lock import read_lock

        def make_plan() -> Plan:
            orch = session.orch
            lock = read_lock(orch, locked) if locked is not None else None
            waiting = Waiting(timeout, drain, max_hold, form, keep_old, tuple(skip_probe or ()))
            options = Options(listen, waiting, fresh, gateway, tuple(origin or ()))
            observed = orch.observe()

            def to_serve(ready_made: bool | None) -> Plan:
                intent = Serve(engine, profile, target, recipe_named(recipe), lock, ready_made)
                return plan_up(orch, intent, observed, options)

            made = to_serve(ready_made)
            if not plan and profile is None and not observed.desired:
                confirm_download(session, made, yes, partial(to_serve, True) if ready_made is None else None)
            return made

        session.plan_and_run(f"up {engine or ''}".strip(), make_plan, plan)
        if not plan:
            _tell(session)


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="The engine to move to.", metavar="ENGINE", autocompletion=engine_names)],
    profile: ProfileName = None,
    target: Target = None,
    recipe: Annotated[str | None, typer.Option(help="Serve this artifact, not the profile's first choice.")] = None,
    ready_made: ReadyMade = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    keep_old: KeepOld = False,
    skip_probe: SkippedProbes = None,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Move to another engine, artifact or target under load. No failed request, no client edit."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Waiting
        from orchestrator.app.intent import MoveTo, recipe_named

        intent = MoveTo(to, profile, target, recipe_named(recipe), ready_made)
        waiting = Waiting(timeout, drain, max_hold, form, keep_old, tuple(skip_probe or ()))
        _change_deployed(session, "migrate", f"migrate --to {to}", intent, waiting, plan)


@app.command()
def rollback(
    profile: ProfileName = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    keep_old: KeepOld = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Go back to what served before. Twice goes forward again; adapters stay."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Waiting
        from orchestrator.app.intent import GoBack

        waiting = Waiting(timeout, drain, max_hold, form, keep_old)
        _change_deployed(session, "rollback", "rollback", GoBack(profile), waiting, plan)


@app.command()
def down(
    profile: Annotated[str | None, typer.Argument(help="The profile; default: the only one.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every profile, and the gateway.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Its settings and adapters too.")] = False,
    drain: Drain = 300.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Stop serving. Settings, adapters and artifacts stay for the next `orch up`."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import plan_taking_down

        def make_plan() -> Plan:
            return plan_taking_down(profile, everything, session.orch.observe(), drain, forget)

        session.plan_and_run("down", make_plan, plan)


@lora.command("add")
def lora_add(
    name: Annotated[str, typer.Argument(help="Its public name: what clients ask for.")],
    path: Annotated[
        Path,
        typer.Argument(
            help="A PEFT directory: adapter_config.json, adapter_model.safetensors.", exists=True, file_okay=False
        ),
    ],
    profile: ProfileName = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Serve an adapter beside its base; replaces an adapter of the same name."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Waiting
        from orchestrator.app.intent import AddAdapter

        intent = AddAdapter(name, path, profile)
        waiting = Waiting(timeout, drain, max_hold, form)
        _change_deployed(session, "lora add", f"lora add {name}", intent, waiting, plan)


@lora.command("rm")
def lora_rm(
    name: Annotated[str, typer.Argument(help="The adapter's public name.")],
    profile: ProfileName = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    form: FormOfChange = None,
    max_hold: LongestHold = 240.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Stop serving an adapter."""
    with session_of(as_json) as session:
        from orchestrator.app.deploy import Waiting
        from orchestrator.app.intent import RemoveAdapter

        waiting = Waiting(timeout, drain, max_hold, form)
        _change_deployed(session, "lora rm", f"lora rm {name}", RemoveAdapter(name, profile), waiting, plan)


@lora.command("ls")
def lora_ls(as_json: AsJson = False) -> None:
    """The adapters of all deployed profiles."""
    with session_of(as_json) as session:
        rows = [
            {"name": a.name, "profile": name, "rank": a.rank, "sha256": a.digest[:12], "from": a.origin}
            for name, desired in session.orch.records.desired().items()
            for a in desired.adapters
        ]
        session.screen.table("Adapters", ("name", "profile", "rank", "sha256", "from"), rows)


def _change_deployed(
    session: Session, verb: str, doing: str, intent: Intent, waiting: Waiting, only_plan: bool
) -> None:
    """Run the plan from what is deployed to what was asked."""
    from orchestrator.app.deploy import Options, plan_for

    def make_plan() -> Plan:
        return plan_for(session.orch, verb, intent, session.orch.observe(), Options(waiting=waiting))

    session.plan_and_run(doing, make_plan, only_plan)
    if not only_plan:
        _tell(session)


def confirm_download(session: Session, plan: Plan, yes: bool, ready_made: Callable[[], Plan] | None) -> None:
    """The default profile was taken because none was named: show what that will download, and ask. What would be less
    by the plan `ready_made` is offered."""
    from orchestrator.app.deploy import download_sizes, less_ready_made

    if yes:
        return
    sizes = download_sizes(session.orch, plan)
    size = sum(sizes.values())
    if size < ASK_ABOVE_BYTES:
        return
    less = less_ready_made(session.orch, size, ready_made) if ready_made is not None else {}
    offer = f"; or ready-made {', '.join(less)}, {sum(less.values()) / 1e9:.1f} GB: --ready-made" if less else ""
    question = f"No profile was named: orch will download {', '.join(sizes)}, {size / 1e9:.1f} GB{offer}."
    if not session.ask(f"{question} Go on?"):
        raise UsageError(f"{question} Nobody said yes.", hint="--yes, or name a profile: --profile NAME")


def _tell(session: Session) -> None:
    """Where it serves, in a line."""
    status = session.orch.gateway.status()
    if status is None:
        return
    names = ", ".join(status.routes.names)
    engines = sorted({route.backend.instance for route in status.routes})
    text = f"http://{status.listen}/v1 answers to {names} ({', '.join(engines)})."
    session.screen.result({"listen": status.listen, "names": list(status.routes.names), "engines": engines}, text)
