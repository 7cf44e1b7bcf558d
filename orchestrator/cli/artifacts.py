"""The verbs for the store of weights and artifacts: ls, verify, rm, gc."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, app, session_of
from orchestrator.errors import DRIFT

if TYPE_CHECKING:
    from orchestrator.app.gc import Verdict

artifacts = typer.Typer(help="The store of weights and artifacts.", no_args_is_help=True)
app.add_typer(artifacts, name="artifacts")


@artifacts.command("ls")
def artifacts_ls(as_json: AsJson = False) -> None:
    """Finished entries, newest last."""
    with session_of(as_json) as session:
        from orchestrator.app.artifacts import entry_rows

        place = ("place",) if session.orch.store.shared else ()
        session.screen.table("Artifacts", ("key", "size", "created", *place, "source"), entry_rows(session.orch))


@artifacts.command("verify")
def artifacts_verify(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys; default: all.")] = None,
    with_repair: Annotated[bool, typer.Option("--repair", help="Pull or build again what is damaged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte and compare it with the manifest. Exit code 9 on damage that stays."""
    with session_of(as_json) as session:
        from orchestrator.app.artifacts import known_keys, verify
        from orchestrator.app.repair import repair
        from orchestrator.app.runs import alone

        orch, screen = session.orch, session.screen
        with alone(orch, "artifacts verify") if with_repair else nullcontext():
            chosen = known_keys(orch, keys or [])
            damages = verify(orch, chosen)
            if with_repair and damages:
                done, damages = repair(orch, damages, session)
                screen.table("Repaired", ("key", "path", "how"), done)
        if damages:
            rows = [dataclasses.asdict(damage) for damage in damages]
            screen.table("Damage", ("key", "path", "kind", "reason"), rows)
            raise typer.Exit(DRIFT)
        screen.result({"verified": chosen}, f"{len(chosen)} verified, no damage.")


@artifacts.command("rm")
def artifacts_rm(
    keys: Annotated[list[str], typer.Argument(help="Keys, as `orch artifacts ls` shows them.")], as_json: AsJson = False
) -> None:
    """Remove entries that no deployment uses."""
    with session_of(as_json) as session:
        from orchestrator.app.artifacts import known_keys, remove
        from orchestrator.app.runs import alone

        with alone(session.orch, "artifacts rm"):
            for key in remove(session.orch, known_keys(session.orch, keys)):
                session.screen.result({"removed": key}, f"Removed {key}.")


@artifacts.command("gc")
def artifacts_gc(
    weights: Annotated[
        bool, typer.Option("--weights", help="Weights too, where all that is made from them is here.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="All unfinished downloads and builds too; they then start over.")
    ] = False,
    age: Annotated[float, typer.Option(help="Keep what is younger than this many hours.", min=0)] = 24.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no engine, no recorded profile, no rollback and no lock file needs."""
    with session_of(as_json) as session:
        from orchestrator.app.gc import collect, verdicts
        from orchestrator.app.runs import alone

        orch, screen = session.orch, session.screen
        with nullcontext() if plan else alone(orch, "artifacts gc"):
            found = verdicts(orch, timedelta(hours=age), weights, partial)
            removable = [verdict for verdict in found if not verdict.stays]
            screen.table("Stays", ("key", "size", "why"), [_row(verdict) for verdict in found if verdict.stays])
            screen.table("Goes", ("key", "size", "why"), [_row(verdict) for verdict in removable])
            if plan:
                size = sum(verdict.stored.size for verdict in removable)
                screen.result({"would_free": size}, f"It would free {size / 1e6:.1f} MB.")
                return
            removed = collect(orch, removable)
        for stored in (verdict.stored for verdict in removable if verdict.stored not in removed):
            why = "it is being worked on right now"
            screen.result({"key": stored.key, "do": "stay", "why": why}, f"{stored.key} stays: {why}.")
        freed = sum(stored.size for stored in removed)
        screen.result({"freed": freed}, f"{freed / 1e6:.1f} MB freed.")


def _row(verdict: Verdict) -> dict[str, object]:
    stored, do = verdict.stored, "stay" if verdict.stays else "go"
    return {"key": stored.key, "size": stored.size, "do": do, "why": verdict.why, "unfinished": stored.unfinished}
