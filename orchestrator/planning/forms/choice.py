"""Which form a change takes: as asked, or by what fits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.form import Form
from orchestrator.core.launch import InstanceState
from orchestrator.core.memory import GIB, MemoryFit, MemoryPool
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark, Upgrade
from orchestrator.core.resolved import Resolved
from orchestrator.planning.preconditions import refuse_no_room

_INSTEAD = "Have what serves now end first, while requests wait (--form handover)."


@dataclass(frozen=True)
class Choice:
    """A form and why, where something serves; `fit` is how the new engine fits then (None: that is not known), and
    `share` what it takes of a GPU, where that is less than the profile's."""

    form: Form
    fit: MemoryFit | None
    why: Remark | None = None
    share: float | None = None


def chosen_form(
    asked: Form | None,
    resolved: Resolved,
    match: EngineObserved | None,
    others: Sequence[EngineObserved],
    at: Observed,
    longest_hold_s: float,
) -> Choice:
    """The form in which the resolved deployment, which does not run, takes the place of these others. `match` is the
    stopped generation that is started again (None: it is a new one).

    Raises PlanRefused where it fits in none. What served and is only started again is not asked whether it fits; and
    where none of the others runs, there is nothing to hand over.
    """
    fit, serving = fit_of(resolved, match), at.serving(resolved.deployment.profile)
    leaving = [engine for engine in others if engine.instance.state is not InstanceState.STOPPED]
    serves = any(engine.deployment.instance == serving for engine in leaving)
    heals = match is not None and not serves
    fits = fit is None or fit.fits or fit.fits_later
    after = fit and _after(fit, leaving)
    fits_after = after is None or after.fits
    less = _less(asked, resolved, match, leaving) if serves and not fits else None
    if less is not None:
        return Choice(Form.OVERLAP, less, _why_less(less, resolved), less.request.utilisation)
    known = all(engine.deployment.memory for engine in leaving)
    hands_over = fits_after or not known if asked is Form.HANDOVER else asked is None and fits_after and not fits
    if leaving and hands_over:
        expected = _expected(resolved, at.starts, longest_hold_s)
        return Choice(Form.HANDOVER, after, _why_handover(fit, fits, expected, leaving))
    if not heals:
        refuse_no_room(resolved, _INSTEAD if leaving and (fits_after or not known) else "")
    return Choice(Form.OVERLAP, fit, _why_overlap(fit, asked) if serves else None)


def fit_of(resolved: Resolved, match: EngineObserved | None) -> MemoryFit | None:
    """How the generation that matches fits, or the new one: with the share of a GPU that it has."""
    fit, share = resolved.memory_fit, match.deployment.share if match is not None else None
    return fit if fit is None or share is None else fit.with_share(share)


def share_to_raise(
    verb: str, resolved: Resolved, match: EngineObserved | None, mine: Sequence[EngineObserved]
) -> tuple[bool, Remark | None]:
    """Whether the generation that matches is to be replaced, because it has less of a GPU than the profile says: it
    came beside another engine, and `up` gives it the rest. And what there is to say where it stays."""
    fit, share = resolved.memory_fit, match.deployment.share if match is not None else None
    if match is None or share is None or fit is None or not fit.request.utilisation:
        return False, None
    what = f"raise {match.instance.name} to {fit.request.utilisation:g} of the GPU"
    came = f"it came beside another engine, and has {share:g}"
    if verb != "up":
        return False, Upgrade(what, f"{came}; the next orch up does it, by a handover if need be")
    if not _after(fit, [one for one in mine if one.running]).fits:
        return False, Remark(what, f"{came}; something else has what is left of it")
    return True, None


def was_begun(serving: EngineObserved | None, others: Sequence[EngineObserved]) -> bool:
    """Whether a handover that was killed has got so far that an engine is to end, or has ended, before anybody may be
    let go on."""
    ended = serving is not None and serving in others and (not serving.running or serving.rests)
    return ended or any(engine.instance.state is not InstanceState.STOPPED for engine in others)


def begun_before(resolved: Resolved) -> Choice:
    """The handover that somebody began who was killed: what served is ended, and requests are held."""
    return Choice(Form.HANDOVER, resolved.memory_fit, Remark("form handover", "it was begun before: requests are held"))


def _less(
    asked: Form | None, resolved: Resolved, match: EngineObserved | None, leaving: Sequence[EngineObserved]
) -> MemoryFit | None:
    """With less of a GPU, where that lets a new engine start beside what serves. Who has not asked for that gets all
    the room that the profile promises, on the way to another engine; and nothing is replaced by itself with less."""
    fit, wanted, of = resolved.memory_fit, resolved.deployment, [engine.deployment for engine in leaving]
    if fit is None or match is not None or any(one.fingerprint == wanted.fingerprint for one in of):
        return None
    moves = all(one.engine != wanted.engine for one in of)
    less = fit.beside if asked is Form.OVERLAP or (asked is None and moves) else None
    return less if less is not None and (less.serves_all or asked is Form.OVERLAP) else None


def _after(fit: MemoryFit, leaving: Sequence[EngineObserved]) -> MemoryFit:
    """How it fits once these have ended."""
    return MemoryFit.of(fit.request, tuple(_freed(one.pool, leaving) for one in fit.each))


def _freed(pool: MemoryPool, leaving: Sequence[EngineObserved]) -> MemoryPool:
    """With what these hold of it free again: what they were started to take, as far as that is known, but for what one
    that may sleep keeps."""
    freed = sum(_held(one) for one in leaving if _is_in(pool, one))
    return replace(pool, free=min(pool.total, pool.free + pool.lingering + freed), lingering=0)


def _held(engine: EngineObserved) -> int:
    asleep = engine.deployment.asleep
    return 0 if engine.rests else engine.deployment.memory - (asleep.gpu if asleep is not None else 0)


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


def _why_less(less: MemoryFit, resolved: Resolved) -> Remark:
    engine, whole = resolved.deployment.engine, resolved.memory_fit
    would = whole.request.utilisation if whole is not None else None
    return Remark(
        "form overlap",
        f"both fit, as {engine} takes {less.request.utilisation:g} of the GPU ({_gib(less.requested)} for "
        f"{less.tokens} tokens of KV cache), and not {would:g}; nobody waits. A later orch up raises it to {would:g}",
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


def _expected(resolved: Resolved, starts: Mapping[str, float], longest_hold_s: float) -> str:
    """How long that takes."""
    seen = starts.get(resolved.deployment.start_key)
    takes = resolved.start_s if seen is None else seen
    told = f"about {takes:.0f} s" if takes >= 1 else "a second"
    told += ", as the last time here" if seen is not None else " (an estimate: it has not been started here yet)"
    if takes > longest_hold_s:
        told += f". None may wait for more than {longest_hold_s:.0f} s, so it would be taken back: --max-hold"
    return told


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
