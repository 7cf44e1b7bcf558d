"""How many fine-tuned models fit into memory: each by itself, or as adapters of one base. Pure; sizes are bytes.

By the same figures as a start is planned with (core/memory.py): weights, KV cache, LoRA slots, what the engine itself
holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.memory import MemoryRequest

# More of them than this nobody has: so many fit.
MOST = 9999


@dataclass(frozen=True)
class Fit:
    """One engine with one artifact. `alone` is what it holds for one model without adapters; `adapter` is what one more
    adapter takes in memory, `at_once` how many of the `wanted` it has in memory at a time; `grows`: it could have more
    of them."""

    engine: str
    recipe: str
    wanted: int
    weights: int
    alone: int
    adapter: int
    at_once: int
    spare_slot: bool
    grows: bool

    @classmethod
    def of(cls, recipe: str, wanted: int, request: MemoryRequest, more: MemoryRequest) -> Fit:
        """By what an engine asks for with the `wanted` adapters, and with one `more`. One that would take a share of a
        GPU, or a KV cache of a size, is counted with what the requests that it is to serve need."""
        alone = request.fixed - request.lora + request.kv_token * request.context * request.parallel
        at_once, spare = min(wanted, request.slots), request.spare_slot and wanted > 0
        grows = more.slots > request.slots
        return cls(request.name, recipe, wanted, request.weights, alone, request.slot, at_once, spare, grows)

    @property
    def separate(self) -> int:
        """The wanted number of models, each with weights, KV cache and engine of its own."""
        return self.wanted * self.alone

    @property
    def separate_weights(self) -> int:
        """Their weights alone, as the article counts them."""
        return self.wanted * self.weights

    @property
    def together(self) -> int:
        """One base, with as many adapters as are in memory at a time."""
        return self.alone + self.adapter * (self.at_once + self.spare_slot)

    @property
    def together_weights(self) -> int:
        """The weights of that alone."""
        return self.weights + self.adapter * self.at_once

    def most_separate(self, total: int) -> int:
        """How many models of their own fit into so much memory that holds nothing else."""
        return min(MOST, total // self.alone)

    def most_together(self, total: int) -> int | None:
        """How many adapters of one base do; None where it has one at a time, however many there are."""
        if not self.grows:
            return None
        left = total - self.alone - self.adapter * self.spare_slot
        return max(0, min(MOST, left // self.adapter)) if self.adapter else MOST
