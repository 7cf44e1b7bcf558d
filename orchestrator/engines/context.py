"""What resolving needs besides what is wanted and the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.artifact import Recipe
from orchestrator.core.builders import Tools
from orchestrator.core.calibration import Calibration
from orchestrator.core.docker import DockerFacts
from orchestrator.core.images import ImageFacts
from orchestrator.core.weights import ReadyFacts, WeightsFacts
from orchestrator.engines.base import Pins, Render


@dataclass(frozen=True)
class ResolveContext:
    """Pins, templates, the store's layout and its finished sizes; for containers the daemon and the images that it
    has; the profile's ready-made artifacts; the keys of what an earlier version of orch has built, which serves until
    it is built anew; what its 4-bit activations are calibrated with, where they are; what of weights orch's own GGUF
    builder does not know (empty: nothing, as far as is known), and llama.cpp's own tools."""

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
