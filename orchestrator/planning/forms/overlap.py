"""The new generation beside the old one: clients are moved once it has proved itself, and nobody waits. Pure."""

from __future__ import annotations

from orchestrator.planning.forms.base import Arranged, Change
from orchestrator.planning.parts import Limits, release_items, retirement, standing_by


def overlap(change: Change, held: bool, limits: Limits) -> Arranged:
    """`held`: requests are, since a plan that was killed."""
    before = (
        *change.prepare,
        *change.gateway,
        *change.files,
        *change.start,
        *change.gateway_ready,
        *change.imports,
        *change.ready,
        *change.loads,
        *change.record,
        *change.switch,
        *change.verify,
    )
    after = [*(release_items(change.chosen.profile) if held else ()), *change.tidy]
    for engine in change.others:
        # What hangs does not end what is in flight on it.
        drain_s = 0.0 if engine.hangs else limits.drain_s
        after += (
            standing_by(engine, drain_s, change.may_rest) if engine is change.standby else retirement(engine, drain_s)
        )
    return Arranged(before, (*after, *change.last))
