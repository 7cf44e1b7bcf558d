"""The verbs for the store of weights and artifacts: ls, verify, rm."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import DRIFT, PlanRefused, SourceError

if TYPE_CHECKING:
    from orchestrator.artifacts.shelf import Damage
    from orchestrator.cli.session import Session

artifacts = typer.Typer(help="The store of weights and artifacts.", no_args_is_help=True)
app.add_typer(artifacts, name="artifacts")


@artifacts.command("ls")
def artifacts_ls(as_json: AsJson = False) -> None:
    """Finished entries, newest last."""
    with session_of(as_json) as session:
        rows = [
            {
                "key": m.key,
                "recipe": m.recipe.value,
                "size": m.size,
                "created": m.created,
                "place": str(session.store.shelf(m.key).root),
                "source": m.source,
            }
            for m in sorted(session.store.all(), key=lambda manifest: manifest.created)
        ]
        place = ("place",) if session.store.shared else ()
        session.screen.table("Artifacts", ("key", "size", "created", *place, "source"), rows)


@artifacts.command("verify")
def artifacts_verify(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys; default: all.")] = None,
    mend: Annotated[bool, typer.Option("--repair", help="Pull or build again what is damaged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte and compare it with the manifest. Exit code 9 on damage that stays."""
    with session_of(as_json) as session, session.exclusive("artifacts verify") if mend else nullcontext():
        chosen = [_checked(session, key) for key in keys or ()] or _all_keys(session)
        damages: list[Damage] = []
        for key in chosen:
            _known_key(session, key)
            damages += session.store.verify(key, session.progress)
        if mend and damages:
            from orchestrator.cli.repair import repair

            done, damages = repair(session, damages)
            session.screen.table("Repaired", ("key", "path", "how"), done)
        if damages:
            rows = [dataclasses.asdict(damage) for damage in damages]
            session.screen.table("Damage", ("key", "path", "kind", "reason"), rows)
            raise typer.Exit(DRIFT)
        session.screen.result({"verified": chosen}, f"{len(chosen)} verified, no damage.")


@artifacts.command("rm")
def artifacts_rm(
    keys: Annotated[list[str], typer.Argument(help="Keys, as `orch artifacts ls` shows them.")], as_json: AsJson = False
) -> None:
    """Remove entries that no deployment uses."""
    with session_of(as_json) as session, session.exclusive("artifacts rm"):
        from orchestrator.core.needs import needed_by_engines
        from orchestrator.core.refusals import refuse_unreachable

        observed = session.observe()
        refuse_unreachable(observed)
        used = needed_by_engines(observed)
        for key in [_checked(session, key) for key in keys]:
            if key in used:
                raise PlanRefused(f"{key} cannot be removed: {used[key]}.", hint="orch down first.")
            if not session.store.remove(key, session.progress):
                _known_key(session, key)
                place = session.store.shelf(key).root
                raise PlanRefused(f"{key} lies in the shared store {place}.", hint="It is removed where it belongs.")
            session.screen.result({"removed": key}, f"Removed {key}.")
        session.store.sweep()


def _all_keys(session: Session) -> list[str]:
    """What is finished anywhere, and what of the own entries is broken."""
    return sorted({*session.store.own.names(), *(manifest.key for manifest in session.store.all())})


def _checked(session: Session, key: str) -> str:
    """What was typed, if it can be a key at all: no path."""
    try:
        return session.store.path(key).name
    except ValueError as error:
        raise SourceError(f"{key} is no key of the store.", hint="orch artifacts ls") from error


def _known_key(session: Session, key: str) -> None:
    if session.store.get(key) is None and key not in {damage.key for damage in session.store.broken()}:
        raise SourceError(f"There is no {key} in the store.", hint="orch artifacts ls")
