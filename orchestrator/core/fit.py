"""How many fine-tuned models fit into memory: each by itself, or as adapters of one base. Pure; sizes are bytes.

By the same figures as a start is planned with (core/memory.py): weights, KV cache, LoRA slots, what the engine itself
holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.core.memory import MemoryRequest

# More of them than this nobody has: so many fit.
MOST = 9999


@dataclass(frozen=True)
class Fit:
    """One engine with one artifact. For one model without adapters it holds its weights, a KV cache (`kv`, `kv_token`
    for each token) and the `rest`: itself, activations, graphs. `adapter` is what one adapter takes in memory; it has
    `several` of them there at a time, or one; with `spare_slot` it makes room for one more than it may have. With
    several `gpus` all of it is what each of them holds."""

    engine: str
    recipe: str
    weights: int
    kv: int
    kv_token: int
    rest: int
    adapter: int
    several: bool
    spare_slot: bool = False
    gpus: int = 1

    @classmethod
    def of(cls, recipe: str, one: MemoryRequest, two: MemoryRequest) -> Fit:
        """By what an engine asks for with one adapter, and with two. One that would take a share of a GPU, or a KV
        cache of a size, is counted with what the requests that it is to serve need."""
        return cls(
            engine=one.name,
            recipe=recipe,
            weights=one.weights,
            kv=one.kv_token * one.context * one.parallel,
            kv_token=one.kv_token,
            rest=one.fixed - one.lora - one.weights,
            adapter=one.slot,
            several=two.slots > one.slots,
            spare_slot=one.spare_slot,
            gpus=one.gpus,
        )

    @property
    def bare(self) -> Fit:
        """Of weights alone, base and adapters: no KV cache, no engine."""
        return replace(self, kv=0, rest=0, spare_slot=False)

    @property
    def alone(self) -> int:
        """One model without adapters."""
        return self.weights + self.kv + self.rest

    def at_once(self, number: int) -> int:
        """How many of so many adapters are in memory at a time."""
        return number if self.several else min(number, 1)

    def separate(self, number: int) -> int:
        """So many models, each with weights, KV cache and engine of its own."""
        return number * self.alone

    def together(self, number: int) -> int:
        """One base, with as many of so many adapters as are in memory at a time."""
        spare = self.spare_slot and number > 0
        return self.alone + self.adapter * (self.at_once(number) + spare)

    def most_separate(self, total: int) -> int:
        """How many models of their own fit into so much memory that holds nothing else."""
        return min(MOST, total // self.alone)

    def most_together(self, total: int) -> int | None:
        """How many adapters of one base fit there; None: any number, of which one at a time is in memory."""
        if self.together(1) > total:
            return 0
        if not self.several:
            return None
        more = (total - self.together(1)) // self.adapter if self.adapter else MOST
        return min(MOST, 1 + more)
