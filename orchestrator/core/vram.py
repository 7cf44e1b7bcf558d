"""Whether an engine fits: what it asks for, part by part, against what a GPU or the host's memory has. Pure.

Each engine's sheet makes an Ask; a Place is a GPU or host memory; both make a Budget. `suggest` turns the formulas
around: the settings that would fit, computed and not guessed. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from orchestrator.core.artifact import Recipe
from orchestrator.core.host import Gpu, GpuUser, Host
from orchestrator.core.weights import Shape

GIB = 2**30
MIB = 2**20
# Contexts are suggested in steps of this many tokens; it is also the least that a profile may ask for.
CONTEXT_STEP = 128

# New values by field of Ask.
Change = Mapping[str, int | float]

# Bytes per parameter: (matrices of the layers, embedding and head). Q6_K has 210 bytes for 256 weights; NVFP4 half a
# byte and an FP8 scale per 16 of them, with embedding and head left at 16 bit.
BYTES_OF: Mapping[Recipe, tuple[float, float]] = {
    Recipe.GGUF_Q8_0: (34 / 32, 34 / 32),
    Recipe.GGUF_Q6_K: (210 / 256, 210 / 256),
    # Mixtures: the value and down matrices of half of the layers are Q6_K, and so are the ends.
    Recipe.GGUF_Q5_K_M: (0.71, 210 / 256),
    Recipe.GGUF_Q4_K_M: (0.60, 210 / 256),
    Recipe.NVFP4A16: (0.5 + 1 / 16, 2.0),
    Recipe.NVFP4: (0.5 + 1 / 16, 2.0),
    Recipe.FP8: (1.0, 2.0),
}


def artifact_bytes(recipe: Recipe, weights: int, shape: Shape) -> int:
    """The size of an artifact that is not built yet, from 16-bit weights of so many bytes.

    Norms count as the rest does; for Qwen3-8B it is within 0.1 % of the built file's size.
    """
    of_layers, of_ends = BYTES_OF.get(recipe, (2.0, 2.0))
    built = shape.layer_parameters * of_layers + shape.end_parameters * of_ends
    return int(weights * built / (2 * (shape.layer_parameters + shape.end_parameters)))


def batch_bytes(shape: Shape, tokens: int) -> int:
    """Activations of a batch of so many tokens: ASSUMPTION, logits at 4 bytes and one layer's tensors at 2.

    llama.cpp reserves the logits of a whole batch; that is nearly all of its compute buffer.
    """
    return tokens * (4 * shape.vocab + 2 * (4 * shape.hidden + 2 * shape.intermediate))


@dataclass(frozen=True)
class Place:
    """Memory that an engine may use: a GPU by name and UUID, or the host's (then `uuid` is empty).

    `users` are the processes that hold some of it, `lingering` bytes that are held by nobody any more.
    """

    name: str
    total: int
    free: int
    uuid: str = ""
    users: tuple[GpuUser, ...] = ()
    lingering: int = 0

    @property
    def held(self) -> int:
        """What others hold: the driver, other processes, and the engine that serves until the switch."""
        return self.total - self.free


@dataclass(frozen=True)
class Ask:
    """What an engine is to hold, in the settings that a person can change.

    `weights`, `allowance` (activations, graphs, CUDA context), `engine` (itself) and `slot` (one LoRA slot) are bytes.
    It takes what it needs for `parallel` requests of `context` tokens; or, told so, a share of the GPU
    (`utilisation`) or a KV cache of `kv_cache_mib`, and then that must hold one such request. `ahead` of the
    allowance it holds before it looks at what is free. `spare_slot`: one LoRA slot more than `slots` where there are
    any; at least `least_slots` are in use. With several `gpus` all of it is what each of them holds.
    """

    name: str
    weights: int
    kv_token: int
    context: int
    parallel: int
    allowance: int = 0
    ahead: int = 0
    engine: int = 0
    slot: int = 0
    slots: int = 0
    least_slots: int = 0
    spare_slot: bool = False
    utilisation: float | None = None
    kv_cache_mib: int | None = None
    gpus: int = 1

    def changed(self, change: Change) -> Ask:
        """The same with other settings."""
        fields: dict[str, Any] = dict(change)
        return replace(self, **fields)

    @property
    def lora(self) -> int:
        """All LoRA slots, used or not: vLLM allocates every slot at start."""
        return self.slot * (self.slots + (1 if self.slots and self.spare_slot else 0))

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.lora + self.allowance + self.engine

    @property
    def least_kv(self) -> int:
        """The KV cache without which it does not start, or not serve what the profile promises."""
        alone = self.utilisation is not None or self.kv_cache_mib is not None
        return self.kv_token * self.context * (1 if alone else self.parallel)


@dataclass(frozen=True)
class Budget:
    """An Ask at a Place. `others` are GPUs like it that are asked for the same: as much is free there, or more."""

    ask: Ask
    place: Place
    others: tuple[Place, ...] = ()

    @classmethod
    def of(cls, ask: Ask, places: tuple[Place, ...]) -> Budget:
        """The Ask at each of these Places, of which the one with the least free decides."""
        first, *others = sorted(places, key=lambda place: place.free)
        return cls(ask, first, tuple(others))

    @property
    def each(self) -> tuple[Budget, ...]:
        """One for each Place."""
        return tuple(Budget(self.ask, place) for place in (self.place, *self.others))

    @property
    def short(self) -> tuple[Place, ...]:
        """Where it does not fit now."""
        return tuple(one.place for one in self.each if not one.fits)

    @property
    def where(self) -> str:
        """What the figures are of, for people."""
        count = 1 + len(self.others)
        return f"each of {count} x {self.place.name}" if self.others else self.place.name

    @property
    def requested(self) -> int:
        """What it takes at start. vLLM on a GPU: ceil(total x utilisation), whatever the weights need."""
        if self.ask.utilisation is not None:
            return math.ceil(self.place.total * self.ask.utilisation)
        if self.ask.kv_cache_mib is not None:
            return self.ask.fixed + self.ask.kv_cache_mib * MIB
        return self.ask.fixed + self.ask.least_kv

    @property
    def kv(self) -> int:
        """What is left of that for the KV cache; negative when the rest alone is too much."""
        return self.requested - self.ask.fixed

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds, of all requests together."""
        return max(0, self.kv) // self.ask.kv_token

    @property
    def left(self) -> int:
        """What stays free; negative when it does not fit."""
        return self.place.free - self.requested

    @property
    def fits(self) -> bool:
        """vLLM fails at its start when less is free than it asks for, or when not one request fits into its share."""
        return self.left >= self.ask.ahead and self.kv >= self.ask.least_kv

    @property
    def fits_later(self) -> bool:
        """It does once the memory of processes that have ended is given back, wherever too little is free now."""
        later = [replace(place, free=place.free + place.lingering) for place in self.short]
        return bool(later) and all(Budget(self.ask, place).fits for place in later)

    @property
    def needed(self) -> int:
        """What must be free before it starts."""
        return self.requested + self.ask.ahead

    @property
    def lacking(self) -> str:
        """Why it does not fit, with the figures as they are; empty when it does."""
        ask, kind = self.ask, "GPU memory" if self.place.uuid else "memory"
        kind += f" on each of {len(self.each)} GPUs" if self.others else ""
        need = ask.fixed + ask.least_kv
        one = f"one request of {ask.context} tokens"
        if ask.utilisation is not None and self.kv < ask.least_kv:
            return (
                f"{ask.name} needs about {_gib(need)} of {kind} for {one}; its share of {self.place.name} is "
                f"{_gib(self.requested)} ({ask.utilisation:g} of {_gib(self.place.total)})."
            )
        if self.kv < ask.least_kv:
            return (
                f"{one[0].upper()}{one[1:]} needs {math.ceil(ask.least_kv / MIB)} MiB of KV cache; "
                f"{ask.name} is given {ask.kv_cache_mib}."
            )
        if self.left < ask.ahead:
            share = f" ({ask.utilisation:g} of {_gib(self.place.total)})" if ask.utilisation is not None else ""
            verb = "asks for" if share else "needs about"
            which = f"{self.place.name} ({self.place.uuid})" if self.others else self.place.name
            free = f"{_gib(self.place.free)} are free" + (f" on {which}" if self.place.uuid else "")
            less = f", less {_gib(ask.ahead)} for its CUDA context" if ask.ahead else ""
            return f"{ask.name} {verb} {_gib(self.requested)} of {kind}{share}; {free}{less}."
        return ""

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """The parts for people: name, bytes, and what it is made of; empty parts are left out."""
        ask = self.ask
        slots = f"{ask.slots} x {ask.slot / MIB:.0f} MiB" + (", one more unused" if ask.spare_slot else "")
        cache = f"{self.tokens} tokens x {ask.kv_token / 1024:g} KiB"
        if self.tokens != ask.context * ask.parallel:
            cache += f"; up to {ask.context} a request"
        parts = [
            ("held by others", self.place.held, ", ".join(str(user) for user in self.place.users)),
            ("weights", ask.weights, f"1/{ask.gpus} of them: assumed" if ask.gpus > 1 else ""),
            ("KV cache", max(0, self.kv), cache),
            ("LoRA slots", ask.lora, slots),
            ("allowance", ask.allowance, "activations, graphs, context: assumed"),
            ("engine", ask.engine, "itself"),
        ]
        yield from (part for part in parts if part[1])
        if self.kv < ask.least_kv:
            yield "missing", ask.least_kv - self.kv, f"for one request of {ask.context} tokens"
        elif self.left < ask.ahead:
            yield "too much", ask.ahead - self.left, f"of {_gib(self.place.total)}"
        else:
            yield "left", self.left, f"of {_gib(self.place.total)}"

    def to_json(self) -> dict[str, Any]:
        """The same for programs: bytes; with several GPUs the figures of the one that decides, and `gpus`: of each."""
        ask, place = self.ask, self.place
        several = {"gpus": [one.to_json() for one in self.each]} if self.others else {}
        return several | {
            "where": place.name,
            "uuid": place.uuid,
            "total": place.total,
            "held": place.held,
            "weights": ask.weights,
            "kv": max(0, self.kv),
            "kv_token": ask.kv_token,
            "kv_tokens": self.tokens,
            "lora": ask.lora,
            "allowance": ask.allowance,
            "engine": ask.engine,
            "requested": self.requested,
            "left": self.left,
            "fits": self.fits,
        }


def places_of(host: Host, gpus: tuple[Gpu, ...]) -> tuple[Place, ...]:
    """Where an engine would be: on these GPUs, or without any in the host's memory."""
    if not gpus:
        return (Place("this machine", host.memory_total, host.memory_available),)
    return tuple(Place(gpu.name, gpu.memory_total, gpu.memory_free, gpu.uuid, gpu.users, gpu.lingering) for gpu in gpus)


# Settings by field of Ask, in the order in which people would rather change them.
KEYS: Mapping[str, str] = {
    "utilisation": "engines.{}.gpu_memory_utilization",
    "kv_cache_mib": "engines.{}.kv_cache_mib",
    "context": "serving.context",
    "parallel": "serving.parallel",
    "slots": "lora.max_adapters",
}


def profile_key(field: str, engine: str) -> str:
    """The profile's name of a field of Ask."""
    return KEYS[field].format(engine)


def suggest(ask: Ask, place: Place) -> tuple[Change, ...]:
    """At most two ways to make it fit, each the new values of few settings; none when no settings do.

    Of a way's settings the last is the largest that fits; the others are at what leaves most room. All are needed.
    """
    # A way is worked out in this order: the room for a KV cache is known once the slots are.
    fields = [name for name in ("utilisation", "slots", "parallel", "kv_cache_mib", "context") if _matters(ask, name)]
    found: list[Change] = []
    for count in range(1, len(fields) + 1):
        ways = [_solve(ask, place, group) for group in combinations(fields, count)]
        found += sorted((way for way in ways if way is not None and _all_needed(ask, place, way)), key=_rank)
        if len(found) >= 2:
            break
    return tuple(found[:2])


def _rank(way: Change) -> tuple[int, ...]:
    order = list(KEYS)
    return tuple(order.index(field) for field in reversed(list(way)))


def _all_needed(ask: Ask, place: Place, way: Change) -> bool:
    """Whether the others would not do without each of them."""
    parts = ({name: value for name, value in way.items() if name != field} for field in way)
    return not any(Budget(ask.changed(part), place).fits for part in parts)


def _matters(ask: Ask, field: str) -> bool:
    own = ask.utilisation is None and ask.kv_cache_mib is None
    return {
        "utilisation": ask.utilisation is not None,
        "kv_cache_mib": ask.kv_cache_mib is not None,
        "slots": ask.slot > 0 and ask.slots > ask.least_slots,
        "parallel": own and ask.parallel > 1,
        "context": ask.context > CONTEXT_STEP,
    }[field]


def _solve(ask: Ask, place: Place, fields: tuple[str, ...]) -> Change | None:
    """The settings of these fields with which it fits: all but the last relaxed, the last as near as can be."""
    way: dict[str, int | float] = {}
    for field in fields[:-1]:
        relaxed = _relaxed(ask, place, field)
        if relaxed is None:
            return None
        way[field] = relaxed
        ask = ask.changed({field: relaxed})
    last = fields[-1]
    value = _nearest(ask, place, last)
    if value is None:
        return None
    return {**way, last: value}


def _relaxed(ask: Ask, place: Place, field: str) -> float | None:
    if field == "utilisation":
        return _share(place.free - ask.ahead, place.total)
    if field == "kv_cache_mib":
        room = (place.free - ask.ahead - ask.fixed) // MIB
        return room if room >= 16 else None
    return ask.least_slots if field == "slots" else 1


def _share(free: int, total: int) -> float | None:
    """The largest share of a GPU, in hundredths, that is free now."""
    return next((n / 100 for n in range(100, 0, -1) if math.ceil(total * (n / 100)) <= free), None)


def _nearest(ask: Ask, place: Place, field: str) -> float | None:
    """The value of one setting nearest to what it is now with which the rest fits."""

    def fits(value: float) -> bool:
        return Budget(ask.changed({field: value}), place).fits

    if field == "utilisation":
        shares = (n / 100 for n in range(1, 101))
        return min((u for u in shares if fits(u)), key=lambda u: abs(u - (ask.utilisation or 0)), default=None)
    if field == "kv_cache_mib":
        least, most = max(16, math.ceil(ask.least_kv / MIB)), (place.free - ask.ahead - ask.fixed) // MIB
        return min(max(ask.kv_cache_mib or 0, least), most) if least <= most else None
    if field == "context":
        steps = _largest(lambda n: fits(n * CONTEXT_STEP), 1, (ask.context - 1) // CONTEXT_STEP)
        return steps * CONTEXT_STEP if steps is not None else None
    if field == "parallel":
        return _largest(fits, 1, ask.parallel - 1)
    return _largest(fits, ask.least_slots, ask.slots - 1)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low..high that fits; what is larger than one that does not fit does not fit either."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
