"""Engine pins and GPU profiles: the machine facts that orch ships, each with where it comes from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.part import Must, Part


class Accelerator(StrEnum):
    """What an engine build computes on."""

    CPU = "cpu"
    CUDA = "cuda"
    ROCM = "rocm"


class ImagePin(Part):
    """A container image for these accelerators, by digest.

    `verified` says whether a pull has confirmed it, `source` who stated it. `cuda` is the CUDA that it was built with,
    as its source says; what the image itself requires decides as soon as the image is here. `local`: no registry
    states it (built or loaded here), and `digest` is its image ID.
    """

    image: str
    tag: str
    digest: Annotated[str, Must(pattern=r"^sha256:[0-9a-f]{64}$")]
    accelerators: Annotated[tuple[Accelerator, ...], Must(min_length=1)]
    cuda: Annotated[str, Must(pattern=r"^\d+\.\d+$")] | None = None
    verified: bool
    source: str
    local: bool = False

    @property
    def reference(self) -> str:
        """What names exactly this image: IMAGE@DIGEST, or the image ID."""
        return self.digest if self.local else f"{self.image}@{self.digest}"

    @property
    def name(self) -> str:
        """As people know it: IMAGE:TAG."""
        return f"{self.image}:{self.tag}"


class GatewayBase(ImagePin):
    """A base for the gateway's image: one that has this Python ("3.12")."""

    python: str
    accelerators: tuple[Accelerator, ...] = (Accelerator.CPU,)


class GatewayBases(Part):
    """All of them; an absent Python is one that orch cannot pin a base for."""

    bases: tuple[GatewayBase, ...]


class LocalPin(Part):
    """A build for target local; fields as in EnvironmentSpec."""

    accelerator: Accelerator
    version: str
    requirements: Annotated[tuple[str, ...], Must(min_length=1)]
    indexed: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    checks: tuple[tuple[str, ...], ...] = ()
    resolve: bool = False
    size_gb: float = 0


class EnginePin(Part):
    """What "this engine" means exactly. An absent target is one that orch cannot pin, and refuses.

    `docker` are images, best first; the first that the host can run is taken.
    """

    engine: str
    docker: tuple[ImagePin, ...] = ()
    local: tuple[LocalPin, ...] = ()

    def environment(self, accelerator: Accelerator, indexes: tuple[str, ...] | None = None) -> EnvironmentSpec | None:
        """The environment for an accelerator; `indexes` replaces the pin's own package indexes."""
        for pin in self.local:
            if pin.accelerator is accelerator:
                return EnvironmentSpec(
                    engine=f"{self.engine}-{accelerator.value}",
                    version=pin.version,
                    requirements=pin.requirements,
                    indexed=pin.indexed,
                    indexes=pin.indexes if indexes is None else indexes,
                    metadata=pin.metadata,
                    checks=pin.checks,
                    resolve=pin.resolve,
                    size_gb=pin.size_gb,
                )
        return None


class Nvfp4(StrEnum):
    """How a GPU runs NVFP4: in its tensor cores, unpacked to 16 bit (Marlin), or not at all."""

    NATIVE = "native"
    WEIGHT_ONLY = "weight-only"
    NONE = "none"


class GpuProfile(Part):
    """A GPU model as NVML names it. compute_capability as "12.0"; vram_gib is the nominal size."""

    name: str
    description: str = ""
    match: Annotated[tuple[str, ...], Must(min_length=1)]
    vram_gib: Annotated[float, Must(gt=0)]
    compute_capability: Annotated[str, Must(pattern=r"^\d+\.\d+$")]
    nvfp4: Nvfp4
    source: str
