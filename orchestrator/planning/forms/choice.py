"""Which form a change takes: as asked, or by what fits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.form import Form
from orchestrator.core.launch import InstanceState
from orchestrator.core.memory import GIB, MemoryFit, MemoryPool
from orchestrator.core.observed import EngineObserved
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark
from orchestrator.core.resolved import Resolved
from orchestrator.planning.preconditions import refuse_no_room

_INSTEAD = "Or have what serves now end first, while requests wait: --form handover"


def chosen_form(
    asked: Form | None, resolved: Resolved, match: EngineObserved | None, others: Sequence[EngineObserved], serving: str
) -> tuple[Form, Remark | None]:
    """The form in which the resolved deployment, which does not run, takes the place of these others; with why, where
    one of them is `serving`. `match` is the stopped generation that is started again (None: it is a new one).

    Raises PlanRefused where it fits in none. What served and is only started again is not asked whether it fits; and
    where none of the others runs, there is nothing to hand over.
    """
    fit = resolved.memory_fit
    leaving = [engine for engine in others if engine.instance.state is not InstanceState.STOPPED]
    serves = any(engine.deployment.instance == serving for engine in leaving)
    heals = match is not None and not serves
    fits = fit is None or fit.fits or fit.fits_later
    fits_after = _fits_after(fit, leaving)
    if leaving and (asked is Form.HANDOVER or (asked is None and fits_after and not fits)):
        return Form.HANDOVER, _why_handover(fit, fits, leaving)
    if not heals:
        known = all(engine.deployment.memory for engine in leaving)
        refuse_no_room(resolved, _INSTEAD if leaving and (fits_after or not known) else "")
    return Form.OVERLAP, _why_overlap(fit, asked) if serves else None


def _fits_after(fit: MemoryFit | None, leaving: Sequence[EngineObserved]) -> bool:
    """Whether it does once these have ended."""
    return fit is None or all(one.fits for one in (_with(part, leaving) for part in fit.each))


def _with(fit: MemoryFit, leaving: Sequence[EngineObserved]) -> MemoryFit:
    """With what these hold of the same memory free again: what they were started to take, as far as that is known."""
    pool = fit.pool
    freed = sum(one.deployment.memory for one in leaving if _is_in(pool, one))
    return replace(fit, pool=replace(pool, free=min(pool.total, pool.free + pool.lingering + freed)))


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


def _why_handover(fit: MemoryFit | None, fits: bool, leaving: Sequence[EngineObserved]) -> Remark:
    names = ", ".join(engine.instance.name for engine in leaving)
    waits = f"new requests wait from the end of {names} until the new engine has answered"
    if fits or fit is None:
        return Remark("form handover", f"it was asked for; {waits}")
    return Remark(
        "form handover",
        f"they do not fit together: {_gib(fit.needed)} are needed, {_gib(fit.pool.free)} free; {waits}",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
