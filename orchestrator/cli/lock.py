"""The verbs for orch.lock: lock, lock check."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, ProfileName, app, session_of
from orchestrator.errors import DRIFT, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.cli.screen import Screen
    from orchestrator.core.lock_file import Difference

lock = typer.Typer(help="Record exactly what a profile is made of, and reproduce it elsewhere.")
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
            raise typer.BadParameter(f"give the options of {context.invoked_subcommand} after it")
        return
    with session_of(as_json) as session:
        from orchestrator.app.lock import lock_of, write_lock
        from orchestrator.app.profiles import named_profile

        if not output.absolute().parent.is_dir():
            raise HostError(f"{output.absolute().parent} is not a directory.", hint="Make it first.")
        orch = session.orch
        observed = orch.observe()
        made = lock_of(orch, named_profile(orch, profile, observed), observed, ask_hub=True)
        write_lock(orch, made, output)
        absent = sorted(key for key, entry in made.entries.items() if not entry.files and key != made.weights)
        summary = f"{output}: {made.source}, {len(made.entries)} store entries."
        if absent:
            summary += f"\nWithout hashes, because not here yet: {', '.join(absent)}."
        session.screen.result({"lock": str(output), "entries": sorted(made.entries), "absent": absent}, summary)


@lock.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="The lock file.", dir_okay=False)] = Path(LOCK_FILE),
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="The profile, if the lock does not say where it is.")
    ] = None,
    no_build: Annotated[bool, typer.Option("--no-build", help="Pull and build nothing: show what is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Get the same bits here: what is here is read and compared, what is missing is made. Exit code 9 if it differs."""
    with session_of(as_json) as session:
        from orchestrator.app.lock import lock_of, locked_profile, plan_missing, read_lock
        from orchestrator.core.lock_file import differences

        orch, screen = session.orch, session.screen
        locked, observed = read_lock(orch, file), orch.observe()
        loaded = locked_profile(orch, locked, profile, observed)
        here = lock_of(orch, loaded, observed)
        found = differences(locked, here)
        if any(one.kind in ("profile", "source", "key") for one in found):
            tell_differences(screen, found)
        damages = [
            damage
            for key in sorted(here.entries)
            if here.entries[key].files
            for damage in orch.store.verify(key, session.progress)
        ]
        if damages:
            rows = [dataclasses.asdict(damage) for damage in damages]
            screen.table("Damage", ("key", "path", "kind", "reason"), rows)
            tip = "orch artifacts verify --repair pulls or builds it again."
            screen.note({"tip": tip}, tip)
            raise typer.Exit(DRIFT)
        if not no_build:
            make_plan = partial(plan_missing, orch, loaded, observed)
            session.plan_and_run(f"lock check {file}", make_plan, only_plan=False, lock=False)
            found = differences(locked, lock_of(orch, loaded, observed))
        tell_differences(screen, found)
        same = sum(bool(entry.files) for entry in locked.entries.values())
        screen.result({"same": same}, f"{same} store entries are as locked, bit for bit.")


def tell_differences(screen: Screen, found: Sequence[Difference]) -> None:
    """Notes as such; differences as a table, and then the end."""
    from orchestrator.core.lock_file import NOTES

    for title, rows in (
        ("Notes", [one for one in found if one.kind in NOTES]),
        ("Differences", [one for one in found if one.kind not in NOTES]),
    ):
        if rows:
            screen.table(title, ("kind", "what", "locked", "here"), [dataclasses.asdict(one) for one in rows])
    if any(one.kind not in NOTES for one in found):
        raise typer.Exit(DRIFT)
