"""Which engines there are to choose between, for a profile on this machine: what serves, and what could."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.app.deploy import Options, plan_to
from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.profiles import default_profile, load_profile
from orchestrator.core.observed import Observed
from orchestrator.core.profile import Profile
from orchestrator.engines import ENGINES
from orchestrator.errors import Interrupted, OrchError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Choice:
    """A profile by its name, with so many adapters; `serving` serves it now (empty: nothing does). `simple` is the
    engine for few users that is meant here, `many` the one for many; `cannot` says why one of them cannot serve. `gpus`
    are this machine's, by name."""

    profile: str
    adapters: int
    serving: str
    simple: str
    many: str
    cannot: Mapping[str, str]
    gpus: tuple[str, ...]


def choice_here(orch: Orchestrator, named: str | None) -> Choice:
    """For a profile as somebody has named it (None: the one that is meant)."""
    observed = orch.observe()
    profile = load_profile(named if named is not None else default_profile(observed), observed)
    present = observed.desired.get(profile.name)
    serving = present.spec.engine if present is not None and not present.stopped else ""
    adapters = len(present.adapters) if present is not None else len(profile.adapters)
    many = next(name for name, sheet in ENGINES.items() if sheet.for_many)
    for_few = [name for name, sheet in ENGINES.items() if not sheet.for_many]
    cannot = {name: why for name in (*for_few, many) if (why := _why_not(orch, name, profile, observed))}
    # The one that serves; else the first that could.
    could = [name for name in for_few if name not in cannot]
    simple = serving if serving in for_few else (could or for_few)[0]
    meant = {name: why for name, why in cannot.items() if name in (simple, many)}
    gpus = tuple(gpu.name for gpu in observed.host.gpus)
    return Choice(profile.name, adapters, serving, simple, many, meant, gpus)


def _why_not(orch: Orchestrator, engine: str, profile: Profile, observed: Observed) -> str:
    """Why an engine cannot serve it on this machine; empty when it can. Nothing is asked of a hub for it."""
    present = observed.desired.get(profile.name)
    if present is not None and not present.stopped and present.spec.engine == engine:
        return ""
    try:
        desired = desired_for(orch, Serve(engine, profile), observed)
        plan_to(orch, "advise", desired, observed, Options(), learn=False)
    except Interrupted:
        raise
    except OrchError as error:
        return error.message
    return ""
