"""Steps that only write down."""

from __future__ import annotations

from orchestrator.core.progress import Progress
from orchestrator.core.steps import RecordDesired
from orchestrator.drivers.base import World
from orchestrator.perform.dispatch import perform


@perform.register
def record_desired(step: RecordDesired, world: World, progress: Progress) -> None:
    world.records.record(step.profile, step.desired)
