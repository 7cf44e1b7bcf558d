"""The verbs that change what serves: up, migrate, rollback, down, lora."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    Drain,
    EngineName,
    OnlyPlan,
    ProfileName,
    Target,
    Timeout,
    Yes,
    app,
    engine_names,
    session_of,
)
from orchestrator.errors import PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.artifact import Recipe
    from orchestrator.core.deployment import Desired
    from orchestrator.core.lock_file import Lock
    from orchestrator.core.observed import Observed
    from orchestrator.core.plan import Limits
    from orchestrator.core.steps import Plan

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
    listen: Annotated[str | None, typer.Option(help="The gateway's address, HOST:PORT.")] = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="A new generation, even beside one that runs.")] = False,
    locked: Annotated[
        Path | None, typer.Option(help="A lock file: serve only what is in the store as it says.", dir_okay=False)
    ] = None,
    yes: Yes = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Serve a profile with an engine. Again: heal what is broken, apply a changed profile."""
    with session_of(as_json) as session:

        def make_plan() -> Plan:
            from orchestrator.cli.lock import check_served, read_lock
            from orchestrator.cli.wishes import check_api_key, take_api_key

            lock = read_lock(session, locked) if locked is not None else None
            observed = session.observe()
            desired = _wanted(session, observed, engine, profile, target, recipe, lock)
            present = observed.desired.get(desired.wish.profile.name)
            if present is not None and not present.stopped and present.wish.engine != desired.wish.engine:
                raise PlanRefused(
                    f"{desired.wish.profile.name} is served by {present.wish.engine}.",
                    hint=f"To move it without a failed request: orch migrate --to {desired.wish.engine}",
                )
            check_api_key(session, observed)
            made = _plan("up", session, desired, observed, listen, _limits(timeout, drain), fresh)
            if lock is not None:
                check_served(session, lock, desired.wish.profile, observed, made)
            if not plan:
                take_api_key(session, observed)
            if not plan and profile is None and present is None:
                confirm_download(session, made, yes)
            return made

        _carry_out(session, f"up {engine or ''}".strip(), make_plan, plan)


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="The engine to move to.", metavar="ENGINE", autocompletion=engine_names)],
    profile: ProfileName = None,
    target: Target = None,
    recipe: Annotated[str | None, typer.Option(help="Serve this artifact, not the profile's first choice.")] = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Move to another engine, artifact or target under load. No failed request, no client edit."""

    def change(session: Session, _observed: Observed, present: Desired) -> Desired:
        from orchestrator.cli.wishes import chosen_target

        where = chosen_target(session, to, target, present)
        return present.changed_to(
            present.wish.model_copy(update={"engine": to, "target": where, "recipe": recipe_named(recipe)})
        )

    _change_deployed("migrate", f"--to {to}", change, profile, (timeout, drain), plan, as_json)


@app.command()
def rollback(
    profile: ProfileName = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Go back to what served before. Twice goes forward again; adapters stay."""

    def change(_session: Session, _observed: Observed, present: Desired) -> Desired:
        if present.previous is None:
            name = present.wish.profile.name
            raise PlanRefused(f"{name} was served by nothing else before.", hint="orch migrate --to ENGINE")
        return present.changed_to(present.previous)

    _change_deployed("rollback", "", change, profile, (timeout, drain), plan, as_json)


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

        def make_plan() -> Plan:
            from orchestrator.core.plan import Limits, plan_down, plan_down_all
            from orchestrator.core.steps import Plan, Skip

            observed = session.observe()
            if everything:
                return plan_down_all(observed, Limits(drain_s=drain), forget)
            name = _to_take_down(profile, observed)
            if name is None:
                return Plan("down", (Skip("take anything down", "nothing is deployed"),), commit=0)
            return plan_down(name, observed, Limits(drain_s=drain), forget)

        session.carry_out("down", make_plan, plan)


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
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Serve an adapter beside its base; a known name gets this version instead."""

    def change(session: Session, observed: Observed, present: Desired) -> Desired:
        from orchestrator.cli.wishes import read_adapter, with_adapter

        _check_adapter_name(name)
        return with_adapter(present, read_adapter(session, name, path, present, observed))

    _change_deployed("lora add", name, change, profile, (timeout, drain), plan, as_json)


@lora.command("rm")
def lora_rm(
    name: Annotated[str, typer.Argument(help="The adapter's public name.")],
    profile: ProfileName = None,
    timeout: Timeout = 900.0,
    drain: Drain = 300.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Serve an adapter no longer."""

    def change(_session: Session, _observed: Observed, present: Desired) -> Desired:
        known = [adapter.name for adapter in present.adapters]
        if name not in known:
            raise PlanRefused(f"There is no adapter {name}.", hint=f"There are: {', '.join(known) or 'none'}.")
        adapters = tuple(adapter for adapter in present.adapters if adapter.name != name)
        return present.model_copy(update={"adapters": adapters})

    _change_deployed("lora rm", name, change, profile, (timeout, drain), plan, as_json)


@lora.command("ls")
def lora_ls(as_json: AsJson = False) -> None:
    """The adapters of all deployed profiles."""
    with session_of(as_json) as session:
        rows = [
            {"name": a.name, "profile": name, "rank": a.rank, "sha256": a.digest[:12], "from": a.origin}
            for name, desired in session.world.records.desired().items()
            for a in desired.adapters
        ]
        session.screen.table("Adapters", ("name", "profile", "rank", "sha256", "from"), rows)


def _change_deployed(
    verb: str,
    words: str,
    change: Callable[[Session, Observed, Desired], Desired],
    profile: str | None,
    limits: tuple[float, float],
    only_plan: bool,
    as_json: bool,
) -> None:
    """Run the plan from what is deployed to what `change` makes of it; `words` complete the verb for the lock's note,
    `limits` are the seconds until ready and for draining."""
    with session_of(as_json) as session:

        def make_plan() -> Plan:
            from orchestrator.cli.wishes import deployed

            observed = session.observe()
            desired = change(session, observed, deployed(profile, observed))
            return _plan(verb, session, desired, observed, None, _limits(*limits))

        _carry_out(session, f"{verb} {words}".strip(), make_plan, only_plan)


def _carry_out(session: Session, doing: str, make_plan: Callable[[], Plan], only_plan: bool) -> None:
    session.carry_out(doing, make_plan, only_plan)
    if not only_plan:
        _tell(session)


def _wanted(
    session: Session,
    observed: Observed,
    engine: str | None,
    profile: str | None,
    target: str | None,
    recipe: str | None,
    lock: Lock | None,
) -> Desired:
    """What `up` wants: the recorded wish as far as nothing else is said, of the profile that is named or meant; at the
    commits of a lock."""
    from orchestrator.cli.wishes import chosen_target, default_profile, load_profile, pinned, with_profile_adapters
    from orchestrator.core.deployment import Desired, Wish
    from orchestrator.core.lock_file import pinned_by
    from orchestrator.engines.resolve import engine_sheet

    if engine is not None:
        engine_sheet(engine)
    loaded = load_profile(profile if profile is not None else default_profile(observed), observed)
    present = observed.desired.get(loaded.name)
    if engine is None and present is None:
        raise PlanRefused(f"{loaded.name} is not deployed, so an engine must be named.", hint="orch up llamacpp")
    where = chosen_target(session, engine, target, present)
    loaded = pinned(session, pinned_by(lock, loaded) if lock is not None else loaded, observed)
    if present is None:
        desired = Desired(wish=Wish(profile=loaded, engine=engine or "", target=where, recipe=recipe_named(recipe)))
    else:
        update: dict[str, object] = {"profile": loaded, "target": where}
        if engine is not None and engine != present.wish.engine:
            update |= {"engine": engine, "recipe": None}
        if recipe is not None:
            update["recipe"] = recipe_named(recipe)
        desired = present.changed_to(present.wish.model_copy(update=update))
    if profile is None and present is not None:
        return desired
    return with_profile_adapters(session, desired, present.wish.profile if present is not None else None, observed)


def _plan(
    verb: str,
    session: Session,
    desired: Desired,
    observed: Observed,
    listen: str | None,
    limits: Limits,
    fresh: bool = False,
) -> Plan:
    from orchestrator.cli.wishes import door, observed_for, resolve_desired
    from orchestrator.core.plan import plan_deploy

    observed = observed_for(session, desired, observed)
    resolved, desired = resolve_desired(session, desired, observed)
    way_in = door(session, observed, listen, desired.wish.target)
    return plan_deploy(verb, resolved, desired, observed, way_in, limits, fresh)


def _limits(ready_s: float, drain_s: float) -> Limits:
    from orchestrator.core.plan import Limits

    return Limits(ready_s, drain_s)


def recipe_named(name: str | None) -> Recipe | None:
    from orchestrator.core.artifact import Recipe

    if name is None:
        return None
    try:
        return Recipe(name)
    except ValueError as error:
        known = ", ".join(recipe.value for recipe in Recipe if recipe.served)
        raise PlanRefused(f"orch does not know the recipe {name}.", hint=f"Known: {known}") from error


def confirm_download(session: Session, plan: Plan, yes: bool) -> None:
    """The default profile was taken because none was named: show what that will download, and ask."""
    if yes:
        return
    sizes = download_sizes(session, plan)
    size = sum(sizes.values())
    if size < ASK_ABOVE_BYTES:
        return
    question = f"No profile was named: orch will download {', '.join(sizes)}, {size / 1e9:.1f} GB."
    if not session.ask(f"{question} Go on?"):
        raise UsageError(f"{question} Nobody said yes.", hint="--yes, or name a profile: --profile NAME")


def download_sizes(session: Session, plan: Plan) -> dict[str, int]:
    """Bytes that a plan will download, by repository, as the hub says."""
    from orchestrator.core.steps import FetchArtifact, FetchWeights

    sizes: dict[str, int] = {}
    for action in plan.actions:
        match action.step:
            case FetchWeights(source, _):
                names = None
            case FetchArtifact(hub=source, file=file) if source is not None:
                names = [file] if file else None
            case _:
                continue
        size = session.world.hub.snapshot(source, 30.0, names).size
        sizes[source.repo] = sizes.get(source.repo, 0) + size
    return sizes


def _check_adapter_name(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from orchestrator.core.profile import PublicName

    try:
        TypeAdapter(PublicName).validate_python(name)
    except ValidationError as error:
        raise UsageError(f"{name!r} is no public name.", hint="Letters, digits and . _ : / @ - only.") from error


def _to_take_down(profile: str | None, observed: Observed) -> str | None:
    """The profile to take down: by name, or the only one. A killed `up` or `down` leaves engines without a record."""
    known = sorted({*observed.desired, *(engine.deployment.profile for engine in observed.engines)})
    if profile is not None and observed.damaged_of(profile):
        return profile
    running = sorted({*observed.deployed, *(engine.deployment.profile for engine in observed.engines)})
    if profile is None and len(running) > 1:
        raise PlanRefused(
            f"Several profiles are deployed: {', '.join(running)}.", hint="orch down NAME, or orch down --all"
        )
    if profile is None:
        return next(iter(running or known), None)
    if profile not in known:
        raise PlanRefused(f"{profile} is not deployed.", hint=f"Deployed: {', '.join(running) or 'nothing'}.")
    return profile


def _tell(session: Session) -> None:
    """Where it serves, in a line."""
    observed = session.observe()
    status = observed.gateway.status
    if status is None:
        return
    names = ", ".join(status.routes.names)
    engines = sorted({route.backend for route in status.routes})
    text = f"http://{status.listen}/v1 answers to {names} ({', '.join(engines)})."
    session.screen.result({"listen": status.listen, "names": list(status.routes.names), "engines": engines}, text)
