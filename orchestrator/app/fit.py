"""How many fine-tuned models fit, on this machine or on a GPU of a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.app.meaning import meaning_to_be
from orchestrator.app.profiles import default_profile, load_profile, pinned, weights_facts
from orchestrator.core.fit import Fit
from orchestrator.core.memory import MemoryRequest, artifact_bytes
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.weights import Shape
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineSheet
from orchestrator.engines.cards import shape_in
from orchestrator.errors import PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class Fits:
    """Of a profile, in memory of `total` bytes at `place` that holds nothing else: one for each engine that computes
    there."""

    profile: Profile
    place: str
    total: int
    each: tuple[Fit, ...]


def fits(orch: Orchestrator, named: str | None, adapters: int, rank: int, gpu_memory: int | None) -> Fits:
    """For the profile that somebody has named, or means, with so many adapters of a rank. `gpu_memory` (bytes) is that
    of a GPU; None: this machine's, of its first GPU if it has one. PlanRefused where the model's sizes are unknown."""
    observed = orch.observe()
    profile = load_profile(named if named is not None else default_profile(observed), observed)
    profile = pinned(orch, profile, observed)
    profile = profile.model_copy({"lora": profile.lora.model_copy({"max_rank": rank})})
    weights = weights_facts(orch, profile)
    meaning = None if weights.shape is not None else meaning_to_be(orch, weights)
    shape = weights.shape or (shape_in(meaning) if meaning is not None else None)
    if shape is None:
        raise PlanRefused(f"Nothing tells the sizes of {profile.name}'s model.", hint=f"orch pull -p {profile.name}")
    size = weights.size or 2 * shape.parameters
    gpus = observed.host.gpus
    if gpu_memory is not None:
        place, total, accelerator = "a GPU", gpu_memory, Accelerator.CUDA
    elif gpus:
        place, total, accelerator = gpus[0].name, gpus[0].memory_total, Accelerator.CUDA
    else:
        place, total, accelerator = "this machine", observed.host.memory_total, Accelerator.CPU
    sheets = [sheet for sheet in ENGINES.values() if accelerator is Accelerator.CPU or sheet.takes_gpu]
    each = tuple(_fit(sheet, profile, size, shape, accelerator, adapters, orch) for sheet in sheets)
    return Fits(profile, place, total, each)


def _fit(
    sheet: EngineSheet,
    profile: Profile,
    size: int,
    shape: Shape,
    accelerator: Accelerator,
    adapters: int,
    orch: Orchestrator,
) -> Fit:
    """With the first of the profile's artifacts that it can serve there; on a GPU that is not here, with the first."""
    recipes = sheet.settings.of(profile, sheet.name).recipes
    here = accelerator is sheet.accelerator(orch.host)
    can = [one for one in recipes if not here or not sheet.cannot_serve(one, accelerator, orch.host)]
    recipe = (can or recipes)[0]

    def with_adapters(number: int) -> MemoryRequest:
        roomy = profile.model_copy({"lora": profile.lora.model_copy({"max_adapters": number})})
        return sheet.memory_request(roomy, artifact_bytes(recipe, size, shape), shape, accelerator, number)

    return Fit.of(recipe.value, adapters, with_adapters(adapters), with_adapters(adapters + 1))
