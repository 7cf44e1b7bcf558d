"""What resolving needs besides what is wanted and the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.artifact import Recipe
from orchestrator.core.builders import Tools
from orchestrator.core.calibration import Calibration
from orchestrator.core.docker import DockerFacts
from orchestrator.core.host import Gpu, Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.memory import MemoryPool, memory_pools
from orchestrator.core.weights import ReadyFacts, WeightsFacts
from orchestrator.engines.base import Pins, Render


@dataclass(frozen=True)
class ResolveContext:
    """Pins, templates, the store's layout and its finished sizes; for containers the daemon and the images that it
    has; the profile's ready-made artifacts; the keys of what an earlier version of orch has built, which serves until
    it is built anew; what its 4-bit activations are calibrated with, where they are; what of weights orch's own GGUF
    builder does not know (empty: nothing, as far as is known), and llama.cpp's own tools; what engines may take of the
    host's memory together, where that is said (ORCH_ENGINE_MEMORY)."""

    pins: Pins
    render: Render
    store_path: Callable[[str], Path]
    finished: Mapping[str, int]
    torch_index: str | None = None
    docker: DockerFacts | None = None
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    ready: Mapping[Recipe, ReadyFacts] = field(default_factory=dict)
    kept: Mapping[Recipe, str] = field(default_factory=dict)
    calibration: Callable[[], Calibration] = field(kw_only=True)
    unknown: Callable[[WeightsFacts], str] = field(kw_only=True)
    tools: Callable[[], Tools] = field(kw_only=True)
    engine_memory: MemoryPool | None = None

    def pools(self, host: Host, gpus: tuple[Gpu, ...]) -> tuple[MemoryPool, ...]:
        """Where an engine would be: on these GPUs, or without any in what engines may take of the host's memory."""
        return (self.engine_memory,) if self.engine_memory is not None and not gpus else memory_pools(host, gpus)
