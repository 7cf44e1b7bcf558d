"""Which form a change takes: as asked, or by what fits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.form import Form
from orchestrator.core.launch import InstanceState
from orchestrator.core.memory import GIB, MemoryFit, MemoryPool
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark
from orchestrator.core.resolved import Resolved
from orchestrator.planning.preconditions import refuse_no_room

_INSTEAD = "Have what serves now end first, while requests wait: --form handover"


@dataclass(frozen=True)
class Choice:
    """A form and why, where something serves; `fit` is how the new engine fits then (None: that is not known)."""

    form: Form
    fit: MemoryFit | None
    why: Remark | None = None


def chosen_form(
    asked: Form | None, resolved: Resolved, match: EngineObserved | None, others: Sequence[EngineObserved], at: Observed
) -> Choice:
    """The form in which the resolved deployment, which does not run, takes the place of these others. `match` is the
    stopped generation that is started again (None: it is a new one).

    Raises PlanRefused where it fits in none. What served and is only started again is not asked whether it fits; and
    where none of the others runs, there is nothing to hand over.
    """
    fit, serving = resolved.memory_fit, at.serving(resolved.deployment.profile)
    leaving = [engine for engine in others if engine.instance.state is not InstanceState.STOPPED]
    serves = any(engine.deployment.instance == serving for engine in leaving)
    heals = match is not None and not serves
    fits = fit is None or fit.fits or fit.fits_later
    after = fit and MemoryFit.of(fit.request, tuple(_freed(one.pool, leaving) for one in fit.each))
    fits_after = after is None or after.fits
    if leaving and (asked is Form.HANDOVER or (asked is None and fits_after and not fits)):
        return Choice(Form.HANDOVER, after, _why_handover(fit, fits, _expected(resolved, at.starts), leaving))
    if not heals:
        known = all(engine.deployment.memory for engine in leaving)
        refuse_no_room(resolved, _INSTEAD if leaving and (fits_after or not known) else "")
    return Choice(Form.OVERLAP, fit, _why_overlap(fit, asked) if serves else None)


def was_begun(serving: EngineObserved | None, others: Sequence[EngineObserved]) -> bool:
    """Whether a handover that was killed has got so far that an engine is to end, or has ended, before anybody may be
    let go on."""
    ended = serving is not None and serving in others and (not serving.running or serving.rests)
    return ended or any(engine.instance.state is not InstanceState.STOPPED for engine in others)


def begun_before(resolved: Resolved) -> Choice:
    """The handover that somebody began who was killed: what served is ended, and requests are held."""
    return Choice(Form.HANDOVER, resolved.memory_fit, Remark("form handover", "it was begun before: requests are held"))


def _freed(pool: MemoryPool, leaving: Sequence[EngineObserved]) -> MemoryPool:
    """With what these hold of it free again: what they were started to take, as far as that is known."""
    freed = sum(one.deployment.memory for one in leaving if _is_in(pool, one))
    return replace(pool, free=min(pool.total, pool.free + pool.lingering + freed), lingering=0)


def _is_in(pool: MemoryPool, engine: EngineObserved) -> bool:
    """Whether an engine's memory is of this pool. Without a choice of GPUs it is on the only one."""
    deployment = engine.deployment
    if deployment.accelerator is Accelerator.CPU:
        return not pool.uuid
    return pool.uuid in deployment.gpu.split(",") if deployment.gpu else bool(pool.uuid)


def _why_overlap(fit: MemoryFit | None, asked: Form | None) -> Remark:
    if asked is not None:
        return Remark("form overlap", "it was asked for")
    if fit is None:
        return Remark("form overlap", "both run until the switch; how much memory that takes is not known")
    return Remark(
        "form overlap", f"both fit: {_gib(fit.needed)} of {_gib(fit.pool.free)} free are needed; nobody waits"
    )


def _why_handover(fit: MemoryFit | None, fits: bool, expected: str, leaving: Sequence[EngineObserved]) -> Remark:
    names = ", ".join(engine.instance.name for engine in leaving)
    waits = (
        f"new requests wait while {names} answers what it has in flight, and then until the new engine does, {expected}"
    )
    if fits or fit is None:
        return Remark("form handover", f"it was asked for; {waits}")
    sizes = f"{_gib(fit.needed)} are needed, {_gib(fit.pool.free)} free"
    return Remark("form handover", f"they do not fit together: {sizes}; {waits}")


def _expected(resolved: Resolved, starts: Mapping[str, float]) -> str:
    """How long that takes."""
    seen = starts.get(resolved.deployment.start_key)
    if seen is not None:
        return f"about {seen:.0f} s, as the last time here" if seen >= 1 else "a second, as the last time here"
    return f"about {resolved.start_s:.0f} s (an estimate: it has not been started here yet)"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
