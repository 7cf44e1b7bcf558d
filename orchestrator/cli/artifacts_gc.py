"""orch artifacts gc: what of the store nobody needs, and its removal."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.artifacts import artifacts
from orchestrator.cli.options import AsJson, OnlyPlan, session_of
from orchestrator.errors import Interrupted, OrchError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Desired
    from orchestrator.core.needs import Needs, Stored, Thrift, Verdict
    from orchestrator.core.observed import Observed


@artifacts.command("gc")
def artifacts_gc(
    weights: Annotated[
        bool, typer.Option("--weights", help="Weights too, where all that is made of them is here.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="All unfinished downloads and builds, which then start anew.")
    ] = False,
    age: Annotated[float, typer.Option(help="Keep what is younger than so many hours.", min=0)] = 24.0,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no engine, no recorded profile, no rollback and no lock file needs."""
    with session_of(as_json) as session, nullcontext() if plan else session.exclusive("artifacts gc"):
        from orchestrator.core.needs import Thrift

        verdicts = _verdicts(session, Thrift(timedelta(hours=age), weights, partial))
        staying = [verdict for verdict in verdicts if verdict.stays]
        going = [verdict for verdict in verdicts if not verdict.stays]
        session.screen.table("Stays", ("key", "size", "why"), [_row(verdict) for verdict in staying])
        session.screen.table("Goes", ("key", "size", "why"), [_row(verdict) for verdict in going])
        if plan:
            size = sum(verdict.stored.size for verdict in going)
            session.screen.result({"would_free": size}, f"It would free {size / 1e6:.1f} MB.")
            return
        freed = sum(verdict.stored.size for verdict in going if _removed(session, verdict.stored))
        session.store.sweep()
        session.lock_files.forget_gone()
        session.screen.result({"freed": freed}, f"{freed / 1e6:.1f} MB freed.")


def _removed(session: Session, stored: Stored) -> bool:
    done = session.store.remove(stored.key, session.progress, wait=False, entry=not stored.unfinished)
    if not done:
        text = f"{stored.key} stays: it is being worked on right now."
        session.screen.result({"key": stored.key, "do": "stay", "why": "it is being worked on right now"}, text)
    return done


def _row(verdict: Verdict) -> dict[str, object]:
    stored, do = verdict.stored, "stay" if verdict.stays else "go"
    return {"key": stored.key, "size": stored.size, "do": do, "why": verdict.why, "unfinished": stored.unfinished}


def _verdicts(session: Session, thrift: Thrift) -> tuple[Verdict, ...]:
    from orchestrator.cli.wishes import supply_of_wish
    from orchestrator.core.needs import doubts, needed_by_engines, needed_for, refuse_unknown, sort_out
    from orchestrator.core.refusals import refuse_unreachable

    observed = session.observe()
    refuse_unreachable(observed)
    refuse_unknown(observed, session.world.records.unreadable())
    needs = dict(needed_by_engines(observed))
    unsure: dict[str, str] = {}
    for name, desired in sorted(observed.desired.items()):
        for role, wanted in _wishes(name, desired):
            try:
                supply, adapters = supply_of_wish(session, wanted, observed)
            except Interrupted:
                raise
            except OrchError as error:
                unsure |= doubts(f"{name} may need it: {error.message}", wanted.wish.profile)
            else:
                needs = {**needed_for(role, supply, adapters, observed.finished, thrift), **needs}
    needs = {**_needed_by_locks(session, observed, thrift), **needs}
    return sort_out(_stored(session), needs, unsure, datetime.now(UTC), thrift)


def _wishes(name: str, desired: Desired) -> tuple[tuple[str, Desired], ...]:
    """What is recorded of a profile: what it is to be served with, and what rollback would go back to."""
    now = (f"{name} is {'stopped, and comes back' if desired.stopped else 'served'} with it", desired)
    if desired.previous is None:
        return (now,)
    return (now, (f"rollback of {name} goes back to it", desired.model_copy(update={"wish": desired.previous})))


def _needed_by_locks(session: Session, observed: Observed, thrift: Thrift) -> Needs:
    """SourceError if one of the known lock files is none any more: nobody knows what it was to keep."""
    from orchestrator.cli.lock import read_lock
    from orchestrator.core.needs import needed_by_lock

    needs: dict[str, str] = {}
    for path in session.lock_files.known():
        needs = {**needed_by_lock(f"{path} names it", read_lock(session, path), observed.finished, thrift), **needs}
    return needs


def _stored(session: Session) -> list[Stored]:
    """All that the own store has, broken entries included."""
    from orchestrator.core.artifact import Manifest
    from orchestrator.core.needs import Stored

    found = []
    for key in session.store.own.names():
        manifest = session.store.own.manifest(key)
        if isinstance(manifest, Manifest):
            found.append(Stored(key, manifest.size, datetime.fromisoformat(manifest.created), manifest.source))
        else:
            size, touched = session.store.extent(session.store.own.path(key))
            found.append(Stored(key, size, datetime.fromtimestamp(touched, UTC)))
    for key, (size, touched) in session.store.unfinished().items():
        found.append(Stored(key, size, datetime.fromtimestamp(touched, UTC), unfinished=True))
    return found
