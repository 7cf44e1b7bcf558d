"""The settings with which an engine would fit: core/memory.py's formulas turned around, computed, not guessed. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

from orchestrator.core.memory import MIB, Change, MemoryFit, MemoryPool, MemoryRequest, largest_share

# Contexts are suggested in steps of this many tokens; it is also the least that a profile may ask for.
CONTEXT_STEP = 128

# Settings by field of MemoryRequest, in the order in which people would rather change them.
KEYS: Mapping[str, str] = {
    "prompt_cache_mib": "engines.{}.prompt_cache_mib",
    "utilisation": "engines.{}.gpu_memory_utilization",
    "kv_cache_mib": "engines.{}.kv_cache_mib",
    "context": "serving.context",
    "parallel": "serving.parallel",
    "slots": "lora.max_adapters",
}


def profile_key(field: str, engine: str) -> str:
    """The profile's name of a field of MemoryRequest."""
    return KEYS[field].format(engine)


def suggest(request: MemoryRequest, pool: MemoryPool) -> tuple[Change, ...]:
    """At most two ways to make it fit, each the new values of few settings; none when no settings do.

    Of a way's settings the last is the largest that fits; the others are at what leaves most room. All are needed.
    """
    # A way is worked out in this order: the room for a KV cache is known once the slots are.
    order = ("prompt_cache_mib", "utilisation", "slots", "parallel", "kv_cache_mib", "context")
    fields = [name for name in order if _matters(request, name)]
    found: list[Change] = []
    for count in range(1, len(fields) + 1):
        ways = [_solve(request, pool, group) for group in combinations(fields, count)]
        found += sorted((way for way in ways if way is not None and _all_needed(request, pool, way)), key=_rank)
        if len(found) >= 2:
            break
    return tuple(found[:2])


def _rank(way: Change) -> tuple[int, ...]:
    order = list(KEYS)
    return tuple(order.index(field) for field in reversed(list(way)))


def _all_needed(request: MemoryRequest, pool: MemoryPool, way: Change) -> bool:
    """Whether the others would not do without each of them."""
    parts = ({name: value for name, value in way.items() if name != field} for field in way)
    return not any(MemoryFit(request.changed(part), pool).fits for part in parts)


def _matters(request: MemoryRequest, field: str) -> bool:
    own = request.utilisation is None and request.kv_cache_mib is None
    return {
        "prompt_cache_mib": request.prompt_cache_mib > 0,
        "utilisation": request.utilisation is not None,
        "kv_cache_mib": request.kv_cache_mib is not None,
        "slots": request.slot > 0 and request.slots > request.least_slots,
        "parallel": own and request.parallel > 1,
        "context": request.context > CONTEXT_STEP,
    }[field]


def _solve(request: MemoryRequest, pool: MemoryPool, fields: tuple[str, ...]) -> Change | None:
    """The settings of these fields with which it fits: all but the last relaxed, the last as near as can be."""
    way: dict[str, int | float] = {}
    for field in fields[:-1]:
        relaxed = _relaxed(request, pool, field)
        if relaxed is None:
            return None
        way[field] = relaxed
        request = request.changed({field: relaxed})
    last = fields[-1]
    value = _nearest(request, pool, last)
    if value is None:
        return None
    return {**way, last: value}


def _relaxed(request: MemoryRequest, pool: MemoryPool, field: str) -> float | None:
    if field == "utilisation":
        return largest_share(pool.free - request.ahead, pool.total)
    if field == "kv_cache_mib":
        room = (pool.free - request.ahead - request.fixed) // MIB
        return room if room >= 16 else None
    if field == "prompt_cache_mib":
        return 0
    return request.least_slots if field == "slots" else 1


def _nearest(request: MemoryRequest, pool: MemoryPool, field: str) -> float | None:
    """The value of one setting nearest to what it is now with which the rest fits."""

    def fits(value: float) -> bool:
        return MemoryFit(request.changed({field: value}), pool).fits

    if field == "utilisation":
        shares = (n / 100 for n in range(1, 101))
        return min((u for u in shares if fits(u)), key=lambda u: abs(u - (request.utilisation or 0)), default=None)
    if field == "kv_cache_mib":
        least, most = max(16, math.ceil(request.least_kv / MIB)), (pool.free - request.ahead - request.fixed) // MIB
        return min(max(request.kv_cache_mib or 0, least), most) if least <= most else None
    if field == "context":
        steps = _largest(lambda n: fits(n * CONTEXT_STEP), 1, (request.context - 1) // CONTEXT_STEP)
        return steps * CONTEXT_STEP if steps is not None else None
    if field == "prompt_cache_mib":
        return _largest(fits, 0, request.prompt_cache_mib - 1)
    if field == "parallel":
        return _largest(fits, 1, request.parallel - 1)
    return _largest(fits, request.least_slots, request.slots - 1)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low..high that fits; what is larger than one that does not fit does not fit either."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
