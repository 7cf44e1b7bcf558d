"""Which engines there are to choose between, for a profile on this machine: what serves, and what could."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.app.deploy import Options, plan_to
from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.profiles import default_profile, load_profile
from orchestrator.core.observed import Observed
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import MOST_ADAPTERS, Profile
from orchestrator.engines import ENGINES
from orchestrator.errors import Interrupted, OrchError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Choice:
    """A profile by its name, with so many adapters, and `room` for so many; it has an engine take `parallel` requests
    at a time, of `context` tokens each. `serving` serves it now (empty: nothing does), an artifact of `recipe`.
    `simple` is the engine for few users that is meant here, `many` the one for many; `cannot` says why one of them
    cannot serve. `gpus` are this machine's, by name, and `on_gpu` the engines that compute on one here. `option` says
    in a command which profile is meant, where that has to be said. `orch` is this version."""

    profile: str
    adapters: int
    room: int
    parallel: int
    context: int
    serving: str
    recipe: str
    simple: str
    many: str
    cannot: Mapping[str, str]
    gpus: tuple[str, ...]
    on_gpu: frozenset[str]
    option: str = ""
    orch: str = __version__


def choice_here(orch: Orchestrator, named: str | None, wanted: int | None = None) -> Choice:
    """For a profile as somebody has named it (None: the one that is meant), with so many adapters (None: those that
    there are)."""
    observed = orch.observe()
    profile = load_profile(named if named is not None else default_profile(observed), observed)
    present = observed.desired.get(profile.name)
    serves = present is not None and not present.stopped
    serving = present.spec.engine if present is not None and serves else ""
    resolution = present.resolution if present is not None and serves else None
    adapters = len(present.adapters) if present is not None else len(profile.adapters)
    adapters = wanted if wanted is not None else adapters
    many = next(name for name, sheet in ENGINES.items() if sheet.for_many)
    for_few = [name for name, sheet in ENGINES.items() if not sheet.for_many]
    cannot = {name: why for name in (*for_few, many) if (why := _why_not(orch, name, profile, observed, adapters))}
    # The one that serves; else the first that could.
    could = [name for name in for_few if name not in cannot]
    simple = serving if serving in for_few else (could or for_few)[0]
    # Without a name a verb means what is recorded; where nothing is, bench wants to be told.
    meant = named if named is not None else None if observed.desired else profile.name
    return Choice(
        profile=profile.name,
        adapters=adapters,
        room=profile.lora.max_adapters,
        parallel=profile.serving.parallel,
        context=profile.serving.context,
        serving=serving,
        recipe=resolution.deployment.recipe.value if resolution is not None else "",
        simple=simple,
        many=many,
        cannot={name: why for name, why in cannot.items() if name in (simple, many)},
        gpus=tuple(gpu.name for gpu in observed.host.gpus),
        on_gpu=frozenset(
            name for name, sheet in ENGINES.items() if sheet.accelerator(observed.host) is not Accelerator.CPU
        ),
        option=f" -p {shlex.quote(meant)}" if meant is not None else "",
    )


def _why_not(orch: Orchestrator, engine: str, profile: Profile, observed: Observed, adapters: int) -> str:
    """Why an engine cannot serve it on this machine with room for so many adapters; empty when it can. Nothing is asked
    of a hub for it."""
    present = observed.desired.get(profile.name)
    more = adapters > profile.lora.max_adapters
    if not more and present is not None and not present.stopped and present.spec.engine == engine:
        return ""
    if adapters > MOST_ADAPTERS:
        return f"it is given at most {MOST_ADAPTERS} adapters, not {adapters}."
    if more:
        profile = profile.model_copy({"lora": profile.lora.model_copy({"max_adapters": adapters})})
    try:
        desired = desired_for(orch, Serve(engine, profile), observed)
        plan_to(orch, "advise", desired, observed, Options(), learn=False)
    except Interrupted:
        raise
    except OrchError as error:
        return error.message if not more else f"with {adapters} adapters: {error.message}"
    return ""
