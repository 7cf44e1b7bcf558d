"""What every form arranges. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.deployment import Deployment
from orchestrator.core.memory import MemoryFit
from orchestrator.core.observed import EngineObserved
from orchestrator.core.plan import Action, Skip

Items = tuple[Action | Skip, ...]


@dataclass(frozen=True)
class Change:
    """A change of what serves a profile, as items in the order in which most forms have them.

    `chosen` is the generation that is to serve, `fit` how it fits beside what runs now (None: that is not known, or it
    runs already), `others` are all other generations of the profile, of which `standby` is to stand by, without its
    model in memory where it `may_rest`. `prepare` is done before anything that serves is touched, `gateway` has it run;
    `files`, `start`, `imports` and `ready` bring the generation up, `loads` gives a running one its adapters; `record`,
    `switch` and `verify` have it serve; `tidy` clears up in it, and `last` all else.
    """

    chosen: Deployment
    fit: MemoryFit | None
    others: tuple[EngineObserved, ...]
    standby: EngineObserved | None
    may_rest: bool
    prepare: Items
    gateway: Items
    files: Items
    start: Items
    gateway_ready: Items
    imports: Items
    ready: Items
    loads: Items
    record: Items
    switch: Items
    verify: Items
    tidy: Items
    last: Items


@dataclass(frozen=True)
class Arranged:
    """The items of a plan until its commit point, and those after it."""

    before: Items
    after: Items
