"""The verbs for orch.lock, lock and lock check, and what others ask of a lock before and after they build."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, ProfileName, app, session_of
from orchestrator.errors import DRIFT, HostError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Adapter
    from orchestrator.core.lock_file import Difference, Kind, Lock, LockedEntry
    from orchestrator.core.observed import Observed
    from orchestrator.core.profile import Profile
    from orchestrator.core.resolved import Supply
    from orchestrator.core.steps import Plan
    from orchestrator.core.weights import WeightsFacts

lock = typer.Typer(help="Write down exactly what a profile is made of, and have it again elsewhere.")
app.add_typer(lock, name="lock")

LOCK_FILE = "orch.lock"


@lock.callback(invoke_without_command=True)
def write(
    context: typer.Context,
    profile: ProfileName = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The lock file to write.", dir_okay=False)] = Path(
        LOCK_FILE
    ),
    as_json: AsJson = False,
) -> None:
    """Write the lock of a profile: commit, files and their hashes, builders' versions, images, environments."""
    if context.invoked_subcommand is not None:
        given = context.get_parameter_source("output") is not None and output != Path(LOCK_FILE)
        if given or profile is not None:
            raise typer.BadParameter(f"give the options of {context.invoked_subcommand} behind it")
        return
    with session_of(as_json) as session:
        if not output.absolute().parent.is_dir():
            raise HostError(f"{output.absolute().parent} is no directory.", hint="Make it first.")
        from orchestrator.cli.wishes import default_profile, load_profile, pinned
        from orchestrator.core.lock_file import lock_text
        from orchestrator.drivers.files import write_atomic

        observed = session.observe()
        loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
        made = lock_of(session, loaded, observed, ask_hub=True)
        write_atomic(output, lock_text(made).encode())
        session.lock_files.remember(output)
        absent = sorted(key for key, entry in made.entries.items() if not entry.files and key != made.weights)
        told = f"{output}: {made.source}, {len(made.entries)} store entries."
        if absent:
            told += f"\nWithout hashes, because not here yet: {', '.join(absent)}."
        session.screen.result({"lock": str(output), "entries": sorted(made.entries), "absent": absent}, told)


@lock.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="The lock file.", dir_okay=False)] = Path(LOCK_FILE),
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="The profile, if its name in the lock does not tell where.")
    ] = None,
    no_build: Annotated[bool, typer.Option("--no-build", help="Pull and build nothing: tell what is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have the same bits here: what is here is read and compared, what is missing is made. 9 if it differs."""
    with session_of(as_json) as session:
        from orchestrator.core.lock_file import differences

        locked = read_lock(session, file)
        loaded, observed = locked_profile(session, locked, profile)
        here = lock_of(session, loaded, observed)
        found = differences(locked, here)
        if any(one.kind in ("profile", "source", "key") for one in found):
            _tell(session, found)
        damages = [
            damage
            for key in sorted(here.entries)
            if here.entries[key].files
            for damage in session.store.verify(key, session.progress)
        ]
        if damages:
            session.screen.table(
                "Damage", ("key", "path", "kind", "reason"), [dataclasses.asdict(damage) for damage in damages]
            )
            tip = "orch artifacts verify --repair pulls or builds it again."
            session.screen.note({"tip": tip}, tip)
            raise typer.Exit(DRIFT)
        if not no_build:
            _make_missing(session, file, loaded, observed)
            found = differences(locked, lock_of(session, loaded, observed))
        _tell(session, found)
        same = sum(bool(entry.files) for entry in locked.entries.values())
        session.screen.result({"same": same}, f"{same} store entries are as locked, bit for bit.")


def read_lock(session: Session, file: Path) -> Lock:
    """The lock in a file, which is remembered: what it names stays in the store. HostError where there is none."""
    from orchestrator.core.lock_file import parse_lock

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{file} cannot be read.", hint="orch lock writes it.", detail=str(error)) from error
    found = parse_lock(text, str(file))
    if file.absolute() not in session.lock_files.known():
        session.lock_files.remember(file)
    return found


def locked_profile(session: Session, locked: Lock, profile: str | None) -> tuple[Profile, Observed]:
    """The profile that was locked (`profile`: where it is), at the commit that is locked; with the world."""
    from orchestrator.cli.wishes import load_profile, pinned
    from orchestrator.core.lock_file import pinned_by

    observed = session.observe()
    loaded = pinned_by(locked, load_profile(profile or locked.profile.name, observed))
    return pinned(session, loaded, observed), observed


def check_locked(session: Session, locked: Lock, profile: Profile, observed: Observed) -> None:
    """PlanRefused if what would be built for the profile is not what is locked, or not by the same versions."""
    _refuse(session, locked, profile, observed, ("profile", "source", "key", "versions"))


def check_served(session: Session, locked: Lock, profile: Profile, observed: Observed, plan: Plan) -> None:
    """PlanRefused if what a plan would serve is not what is locked, bit for bit, or not by the locked engines.

    It has to be in the store by then: what is made on the way is known too late.
    """
    from orchestrator.core.steps import BuildArtifact, BuildTogether, FetchArtifact, FetchWeights, ImportAdapter

    _refuse(session, locked, profile, observed, ("profile", "source", "key", "files", "engine"))
    making = (FetchWeights, FetchArtifact, BuildArtifact, BuildTogether, ImportAdapter)
    missing = [action.step.what for action in plan.actions if isinstance(action.step, making)]
    if missing:
        raise PlanRefused(
            f"Not all that {profile.name} is served with is in the store yet.",
            hint="orch build --locked makes it as it is locked; adapters come with orch lock check.",
            detail="\n".join(missing),
        )


def _refuse(session: Session, locked: Lock, profile: Profile, observed: Observed, decisive: tuple[Kind, ...]) -> None:
    from orchestrator.core.lock_file import differences

    found = [one for one in differences(locked, lock_of(session, profile, observed)) if one.kind in decisive]
    if found:
        raise PlanRefused(
            f"{profile.name} is not as it is locked.",
            hint="orch lock check tells more; orch lock writes the lock anew.",
            detail="\n".join(
                f"{one.what}: {one.locked or 'nothing'} is locked, {one.here or 'nothing'} is here" for one in found
            ),
        )


def check_built(session: Session, locked: Lock, profile: Profile, observed: Observed) -> None:
    """Tells, and leaves with exit code 9, if what was built has other bytes than are locked."""
    from orchestrator.core.lock_file import differences

    found = differences(locked, lock_of(session, profile, observed))
    _tell(session, tuple(one for one in found if one.kind == "files"))


def lock_of(session: Session, profile: Profile, observed: Observed, ask_hub: bool = False) -> Lock:
    """What the lock of a profile (at a commit) would be here and now; files that are not here, if the hub may be asked,
    by its word."""
    from orchestrator import __version__
    from orchestrator.cli.wishes import weights_facts
    from orchestrator.core.artifact import Recipe
    from orchestrator.core.lock_file import (
        FORMAT,
        Lock,
        LockedEntry,
        LockedProfile,
        locked_engine,
        profile_digest,
        stated,
    )

    weights = weights_facts(session, profile)
    entries = {weights.key: LockedEntry(recipe=Recipe.WEIGHTS, source=weights.source)}
    for step in _materials(session, profile, weights, observed):
        key, entry = _locked_entry(session, step)
        entries[key] = entry
    if ask_hub and weights.fetch is not None and not entries[weights.key].files:
        snapshot = session.world.hub.snapshot(weights.fetch, timeout=30.0)
        entries[weights.key] = entries[weights.key].model_copy(update={"files": stated(snapshot.files)})
    return Lock(
        format=FORMAT,
        orch=__version__,
        weights=weights.key,
        profile=LockedProfile(name=profile.name, digest=profile_digest(profile)),
        entries=entries,
        engines={name: locked_engine(pin) for name, pin in session.pins.items() if pin.docker or pin.local},
    )


def _locked_entry(session: Session, step: Supply) -> tuple[str, LockedEntry]:
    from orchestrator.core.artifact import Recipe
    from orchestrator.core.lock_file import LockedEntry, stated
    from orchestrator.core.steps import BuildArtifact, FetchArtifact, FetchWeights, ImportAdapter

    builder: dict[str, str] = {}
    match step:
        case FetchWeights(hub, key):
            recipe, source = Recipe.WEIGHTS, str(hub)
        case FetchArtifact(recipe, key, source):
            pass
        case ImportAdapter():
            recipe, key, source = Recipe.ADAPTER, step.key, f"dir:{step.digest}"
        case BuildArtifact(recipe, key, source):
            builder = session.builder.versions(recipe)
        case _:
            raise AssertionError(step)
    manifest = session.store.get(key)
    if manifest is None:
        return key, LockedEntry(recipe=recipe, source=source, builder=builder)
    files = stated(manifest.files)
    return key, LockedEntry(recipe=recipe, source=source, builder=manifest.builder, files=files)


def _materials(session: Session, profile: Profile, weights: WeightsFacts, observed: Observed) -> tuple[Supply, ...]:
    """What it takes to have all that the profile's engines may serve, with its adapters."""
    from orchestrator.engines.supply import materials

    return materials(profile, weights, _adapters(session, profile, observed), session.shipped(observed, profile))


def _adapters(session: Session, profile: Profile, observed: Observed) -> tuple[Adapter, ...]:
    """Those that the profile lists, and where it is deployed those that were added since."""
    from orchestrator.cli.wishes import with_profile_adapters
    from orchestrator.core.deployment import Desired, Wish

    present = observed.desired.get(profile.name)
    # Which engine and where plays no part: adapters are fitted to weights.
    wish = present.wish if present is not None else Wish(profile=profile, engine="llamacpp", target="local")
    desired = Desired(
        wish=wish.model_copy(update={"profile": profile}), adapters=present.adapters if present is not None else ()
    )
    return with_profile_adapters(session, desired, None, observed).adapters


def _make_missing(session: Session, file: Path, profile: Profile, observed: Observed) -> None:
    from orchestrator.cli.wishes import weights_facts
    from orchestrator.core.supply import plan_supply

    def make_plan() -> Plan:
        supply = _materials(session, profile, weights_facts(session, profile), observed)
        return plan_supply("lock check", supply, observed)

    session.carry_out(f"lock check {file}", make_plan, only_plan=False, alone=False)


def _tell(session: Session, found: tuple[Difference, ...]) -> None:
    """Notes as such; differences as a table, and then the end."""
    from orchestrator.core.lock_file import NOTES

    for title, rows in (
        ("Notes", [one for one in found if one.kind in NOTES]),
        ("Differences", [one for one in found if one.kind not in NOTES]),
    ):
        if rows:
            session.screen.table(title, ("kind", "what", "locked", "here"), [dataclasses.asdict(one) for one in rows])
    if any(one.kind not in NOTES for one in found):
        raise typer.Exit(DRIFT)
