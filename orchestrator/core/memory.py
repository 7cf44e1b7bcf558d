"""Whether an engine fits: what it asks for, part by part, against what a GPU or the host's memory has. Pure.

Each engine's sheet makes a MemoryRequest; a MemoryPool is a GPU's memory or the host's; a MemoryFit is the one
against the other. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.core.artifact import Recipe
from orchestrator.core.host import Gpu, GpuUser, Host
from orchestrator.core.weights import Shape

if TYPE_CHECKING:
    from orchestrator.core.observed import EngineObserved

GIB = 2**30
MIB = 2**20

# New values by field of MemoryRequest.
Change = Mapping[str, int | float]

# ASSUMPTION: of a GPU, what those that run on it may come to take more while an engine starts beside them.
SHARE_TO_SPARE = 0.01

# Bytes per parameter: (matrices of the layers, embedding and head). Q6_K has 210 bytes for 256 weights; NVFP4 half a
# byte and an FP8 scale per 16 of them, with embedding and head left at 16 bit.
BYTES_OF: Mapping[Recipe, tuple[float, float]] = {
    Recipe.GGUF_Q8_0: (34 / 32, 34 / 32),
    Recipe.GGUF_Q6_K: (210 / 256, 210 / 256),
    # Mixtures: the value and down matrices of half of the layers are Q6_K, and so are the ends.
    Recipe.GGUF_Q5_K_M: (0.71, 210 / 256),
    Recipe.GGUF_Q4_K_M: (0.60, 210 / 256),
    Recipe.GGUF_NVFP4: (0.5 + 1 / 16, 2.0),
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
class MemoryPool:
    """Memory that an engine may use: a GPU by name and UUID, or the host's (then `uuid` is empty).

    `users` are the processes that hold some of it, `lingering` bytes that are held by nobody any more. `limit_file` is
    where the limit stands, where host memory is that of a control group; `declared`: nobody has measured what is free,
    it is what is left of what somebody has said.
    """

    name: str
    total: int
    free: int
    uuid: str = ""
    users: tuple[GpuUser, ...] = ()
    lingering: int = 0
    limit_file: str = ""
    declared: bool = False

    @property
    def held(self) -> int:
        """What others hold: the driver, other processes, and the engine that serves until the switch."""
        return self.total - self.free

    def size_text(self, size: int) -> str:
        """A size of it for people: limits of control groups are small, and are set in MiB."""
        return f"{size / MIB:.0f} MiB" if self.limit_file and size < GIB else _gib(size)


@dataclass(frozen=True)
class MemoryRequest:
    """What an engine is to hold, in the settings that a person can change.

    `weights`, `allowance` (activations, graphs, CUDA context), `engine` (itself) and `slot` (one LoRA slot) are bytes.
    It takes what it needs for `parallel` requests of `context` tokens; or, told so, a share of the GPU
    (`utilisation`) or a KV cache of `kv_cache_mib`, and then that must hold one such request. `ahead` of the
    allowance it holds before it looks at what is free. `spare_slot`: one LoRA slot more than `slots` where there are
    any; at least `least_slots` are in use. It may keep `prompt_cache_mib` of earlier prompts. With several `gpus` all
    of it is what each of them holds.
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
    prompt_cache_mib: int = 0
    gpus: int = 1

    def changed(self, change: Change) -> MemoryRequest:
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
        return self.weights + self.lora + self.allowance + self.prompt_cache_mib * MIB + self.engine

    @property
    def least_kv(self) -> int:
        """The KV cache without which it does not start, or not serve what the profile promises."""
        alone = self.utilisation is not None or self.kv_cache_mib is not None
        return self.kv_token * self.context * (1 if alone else self.parallel)


@dataclass(frozen=True)
class MemoryFit:
    """A MemoryRequest against a MemoryPool. `others` are GPUs like it that are asked for the same: as much is free
    there, or more."""

    request: MemoryRequest
    pool: MemoryPool
    others: tuple[MemoryPool, ...] = ()

    @classmethod
    def of(cls, request: MemoryRequest, pools: tuple[MemoryPool, ...]) -> MemoryFit:
        """The request against each of these pools, of which the one with the least free decides."""
        first, *others = sorted(pools, key=lambda pool: pool.free)
        return cls(request, first, tuple(others))

    @property
    def each(self) -> tuple[MemoryFit, ...]:
        """One for each pool."""
        return tuple(MemoryFit(self.request, pool) for pool in (self.pool, *self.others))

    @property
    def short(self) -> tuple[MemoryPool, ...]:
        """Where it does not fit now."""
        return tuple(one.pool for one in self.each if not one.fits)

    @property
    def where(self) -> str:
        """What the figures are of, for people."""
        count = 1 + len(self.others)
        return f"each of {count} x {self.pool.name}" if self.others else self.pool.name

    @property
    def requested(self) -> int:
        """What it takes at start. vLLM on a GPU: ceil(total x utilisation), whatever the weights need."""
        if self.request.utilisation is not None:
            return math.ceil(self.pool.total * self.request.utilisation)
        if self.request.kv_cache_mib is not None:
            return self.request.fixed + self.request.kv_cache_mib * MIB
        return self.request.fixed + self.request.least_kv

    @property
    def kv(self) -> int:
        """What is left of that for the KV cache; negative when the rest alone is too much."""
        return self.requested - self.request.fixed

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds, of all requests together."""
        return max(0, self.kv) // self.request.kv_token

    @property
    def left(self) -> int:
        """What stays free; negative when it does not fit."""
        return self.pool.free - self.requested

    @property
    def fits(self) -> bool:
        """vLLM fails at its start when less is free than it asks for, or when not one request fits into its share."""
        return self.left >= self.request.ahead and self.kv >= self.request.least_kv

    @property
    def fits_later(self) -> bool:
        """It does once the memory of processes that have ended is given back, wherever too little is free now."""
        later = [replace(pool, free=pool.free + pool.lingering) for pool in self.short]
        return bool(later) and all(MemoryFit(self.request, pool).fits for pool in later)

    @property
    def needed(self) -> int:
        """What must be free before it starts."""
        return self.requested + self.request.ahead

    @property
    def beside(self) -> MemoryFit | None:
        """With the largest share of a GPU that is surely free now; None where it takes no share, or even that is not
        enough for one request."""
        if self.request.utilisation is None:
            return None
        share = largest_share(self.pool.free - self.request.ahead, self.pool.total)
        if share is None or share <= SHARE_TO_SPARE:
            return None
        found = self.with_share(round(min(share - SHARE_TO_SPARE, self.request.utilisation), 2))
        return found if found.fits else None

    def with_share(self, share: float) -> MemoryFit:
        """The same with another share of the GPU."""
        return replace(self, request=self.request.changed({"utilisation": share}))

    @property
    def serves_all(self) -> bool:
        """Whether its KV cache holds as many requests as the profile has served at a time, each as long as may be."""
        return self.kv >= self.request.kv_token * self.request.context * self.request.parallel

    @property
    def lacking(self) -> str:
        """Why it does not fit, with the figures as they are; empty when it does."""
        request, kind = self.request, "GPU memory" if self.pool.uuid else "memory"
        kind += f" on each of {len(self.each)} GPUs" if self.others else ""
        need = request.fixed + request.least_kv
        one = f"one request of {request.context} tokens"
        if request.utilisation is not None and self.kv < request.least_kv:
            return (
                f"{request.name} needs about {_gib(need)} of {kind} for {one}; its share of {self.pool.name} is "
                f"{_gib(self.requested)} ({request.utilisation:g} of {_gib(self.pool.total)})."
            )
        if self.kv < request.least_kv:
            return (
                f"{one[0].upper()}{one[1:]} needs {math.ceil(request.least_kv / MIB)} MiB of KV cache; "
                f"{request.name} is given {request.kv_cache_mib}."
            )
        if self.left < request.ahead:
            share = f" ({request.utilisation:g} of {_gib(self.pool.total)})" if request.utilisation is not None else ""
            verb = "asks for" if share else "needs about"
            which = f"{self.pool.name} ({self.pool.uuid})" if self.others else self.pool.name
            free = f"{self.pool.size_text(self.pool.free)} are free"
            free += f" on {which}" if self.pool.uuid else f" in {which}" if self.pool.limit_file else ""
            less = f", less {_gib(request.ahead)} for its CUDA context" if request.ahead else ""
            return f"{request.name} {verb} {self.pool.size_text(self.requested)} of {kind}{share}; {free}{less}."
        return ""

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """The parts for people: name, bytes, and what it is made of; empty parts are left out."""
        request = self.request
        slots = f"{request.slots} x {request.slot / MIB:.0f} MiB" + (", one more unused" if request.spare_slot else "")
        cache = f"{self.tokens} tokens x {request.kv_token / 1024:g} KiB"
        if self.tokens != request.context * request.parallel:
            cache += f"; up to {request.context} a request"
        parts = [
            ("held by others", self.pool.held, ", ".join(str(user) for user in self.pool.users)),
            ("weights", request.weights, f"1/{request.gpus} of them: assumed" if request.gpus > 1 else ""),
            ("KV cache", max(0, self.kv), cache),
            ("LoRA slots", request.lora, slots),
            ("allowance", request.allowance, "activations, graphs, context: assumed"),
            ("prompt cache", request.prompt_cache_mib * MIB, "of earlier prompts, at most"),
            ("engine", request.engine, "itself"),
        ]
        yield from (part for part in parts if part[1])
        if self.kv < request.least_kv:
            yield "missing", request.least_kv - self.kv, f"for one request of {request.context} tokens"
        elif self.left < request.ahead:
            yield "too much", request.ahead - self.left, f"of {self.pool.size_text(self.pool.total)}"
        else:
            yield "left", self.left, f"of {self.pool.size_text(self.pool.total)}"

    def to_json(self) -> dict[str, Any]:
        """The same for programs: bytes; with several GPUs the figures of the one that decides, and `gpus`: of each."""
        request, pool = self.request, self.pool
        several = {"gpus": [one.to_json() for one in self.each]} if self.others else {}
        return several | {
            "where": pool.name,
            "uuid": pool.uuid,
            "limit_file": pool.limit_file,
            "total": pool.total,
            "held": pool.held,
            "weights": request.weights,
            "kv": max(0, self.kv),
            "kv_token": request.kv_token,
            "kv_tokens": self.tokens,
            "lora": request.lora,
            "allowance": request.allowance,
            "prompt_cache": request.prompt_cache_mib * MIB,
            "engine": request.engine,
            "requested": self.requested,
            "left": self.left,
            "fits": self.fits,
        }


def largest_share(free: int, total: int) -> float | None:
    """The largest share of a GPU, in hundredths, that is free now."""
    return next((n / 100 for n in range(100, 0, -1) if math.ceil(total * (n / 100)) <= free), None)


def memory_pools(host: Host, gpus: tuple[Gpu, ...]) -> tuple[MemoryPool, ...]:
    """Where an engine would be: on these GPUs, or without any in the host's memory."""
    if not gpus:
        memory = host.memory
        return (MemoryPool(memory.name, memory.total, memory.available, limit_file=memory.limit_file),)
    return tuple(
        MemoryPool(gpu.name, gpu.memory_total, gpu.memory_free, gpu.uuid, gpu.users, gpu.lingering) for gpu in gpus
    )


def declared_pool(size: int, engines: Iterable[EngineObserved]) -> MemoryPool:
    """What engines may take of the host's memory together, as somebody has said; what runs has what it was started to
    take."""
    taken = sum(engine.deployment.memory for engine in engines if engine.running and not engine.rests)
    name, said_in = f"what engines may take ({size >> 20} MiB)", "ORCH_ENGINE_MEMORY"
    return MemoryPool(name, size, max(0, size - taken), limit_file=said_in, declared=True)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
