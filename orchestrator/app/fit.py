"""How many fine-tuned models fit, on this machine or on a GPU of a size; and what the article says of its own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator import resources
from orchestrator.app.meaning import meaning_to_be
from orchestrator.app.profiles import named_profile, weights_facts
from orchestrator.core.artifact import Recipe
from orchestrator.core.fit import Fit
from orchestrator.core.host import Gpu, Host
from orchestrator.core.memory import MemoryPool, MemoryRequest, artifact_bytes
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.reference import Reference, ReferenceEngine
from orchestrator.core.weights import Shape, WeightsFacts
from orchestrator.engines import ENGINES, engine_sheet
from orchestrator.engines.base import EngineSheet
from orchestrator.engines.cards import shape_in
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.prerequisites import cannot_be_made, key_of
from orchestrator.errors import HostError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# ASSUMPTION: a GPU of which only the size is told computes with everything that orch builds.
ANY_CAPABILITY = (12, 0)
# How many models the article has figures of.
FIVE = 5


@dataclass(frozen=True)
class LeftOut:
    """What is not counted, and why; `recipe` is empty where it is all of an engine."""

    engine: str
    recipe: str
    why: str

    @property
    def what(self) -> str:
        """Both names, for people."""
        return f"{self.engine} {self.recipe}".strip()


@dataclass(frozen=True)
class OfArticle:
    """The article's figures of one engine, and what the weights of the same are here: `five` models, and the `most`
    that fit into its GPU (None: any number, one at a time)."""

    told: ReferenceEngine
    five: int
    most: int | None

    @property
    def contradicts_itself(self) -> bool:
        """It says that a base takes less with adapters than without."""
        return self.told.five_models == "together" and self.told.five_models_gb < self.told.memory_gb


@dataclass(frozen=True)
class Fits:
    """Of a profile's model in a pool of memory, of which the `total` counts: one Fit for each engine and artifact that
    can be there. `reference` and `of_article` where it is the article's model, else None and empty."""

    profile: Profile
    shape: Shape
    pool: MemoryPool
    each: tuple[Fit, ...]
    left_out: tuple[LeftOut, ...]
    reference: Reference | None
    of_article: tuple[OfArticle, ...]


def fits(orch: Orchestrator, named: str | None, rank: int, gpu_memory: int | None) -> Fits:
    """For the profile that somebody has named, or means, with adapters of a rank. `gpu_memory` (bytes) is that of a
    GPU; None: this machine's, of its largest GPU, or without any of what engines may take of the host's memory.

    PlanRefused where the model's sizes are unknown, or no artifact can be served there; HostError where a GPU is here
    and does not work, or the hub that would tell the sizes does not answer.
    """
    observed = orch.observe()
    other = f"orch fit --gpu-memory 32GB{f' -p {shlex.quote(named)}' if named is not None else ''}"
    host = _host(observed.host, gpu_memory, other)
    profile = named_profile(orch, named, observed)
    profile = profile.model_copy({"lora": profile.lora.model_copy({"max_rank": rank})})
    reference = resources.reference()
    is_articles = profile.weights.hub == reference.weights.hub
    context = orch.resolve_context(observed, profile)
    pool = context.pools(host, host.gpus)[0]
    weights = weights_facts(orch, profile)
    shape = weights.shape or (reference.weights.shape if is_articles else None) or _shape_told(orch, weights)
    if shape is None:
        raise PlanRefused(f"Nothing tells the sizes of {profile.name}'s model.", hint=f"orch pull -p {profile.name}")
    model = _Model(profile, replace(weights, shape=shape, size=weights.size or 2 * shape.parameters), shape)
    found = list(_each(model, host, context))
    each = tuple(one for one in found if isinstance(one, Fit))
    left_out = tuple(one for one in found if isinstance(one, LeftOut))
    if not each:
        raise PlanRefused(
            f"None of {profile.name}'s artifacts can be served on {pool.name}.",
            hint=f"Name another one under engines.ENGINE.recipes in the profile, or a GPU: {other}",
            detail="\n".join(f"{one.what}: {one.why}" for one in left_out),
        )
    of_article = tuple(_of_article(model, reference)) if is_articles else ()
    return Fits(profile, shape, pool, each, left_out, reference if is_articles else None, of_article)


@dataclass(frozen=True)
class _Model:
    """What is counted; size and shape of its weights are known."""

    profile: Profile
    weights: WeightsFacts
    shape: Shape

    def size(self, recipe: Recipe) -> int:
        """The bytes of an artifact of it that is not built yet."""
        return artifact_bytes(recipe, self.weights.size, self.shape)

    def fit(self, sheet: EngineSheet, recipe: Recipe, accelerator: Accelerator, finished: int | None = None) -> Fit:
        """On one engine, as an artifact; `finished` is its size where it is built."""
        size = finished or self.size(recipe)

        def holding(adapters: int) -> MemoryRequest:
            lora = self.profile.lora.model_copy({"max_adapters": adapters})
            roomy = self.profile.model_copy({"lora": lora})
            return sheet.memory_request(roomy, size, self.shape, accelerator, adapters)

        return Fit.of(recipe.value, holding(1), holding(2))


def _host(host: Host, gpu_memory: int | None, other: str) -> Host:
    """The host with the one GPU that is meant, if any; `other` is the command that counts for one that is not here."""
    if gpu_memory is not None:
        return replace(host, gpus=(Gpu("", "a GPU", gpu_memory, gpu_memory, ANY_CAPABILITY),), gpu_problem="")
    if host.gpu_problem and not host.gpus:
        raise HostError(
            f"No GPU can be used: {host.gpu_problem}.",
            hint=f"{other} counts for one of that size; CUDA_VISIBLE_DEVICES= (empty) asks for the CPU instead.",
        )
    return replace(host, gpus=tuple(sorted(host.gpus, key=lambda gpu: gpu.memory_total)[-1:]))


def _shape_told(orch: Orchestrator, weights: WeightsFacts) -> Shape | None:
    """By what is here of the model, or by the small files of its repository."""
    meaning = meaning_to_be(orch, weights)
    return shape_in(meaning) if meaning is not None else None


def _each(model: _Model, host: Host, context: ResolveContext) -> Iterator[Fit | LeftOut]:
    for sheet in ENGINES.values():
        accelerator = sheet.accelerator(host)
        spread = sheet.gpus(model.profile, accelerator)
        why = "it computes on the CPU" if host.gpus and accelerator is Accelerator.CPU else ""
        why = why or (sheet.cannot_split(model.shape, spread) if spread > 1 else "")
        if why:
            yield LeftOut(sheet.name, "", why)
            continue
        for recipe in sheet.settings.of(model.profile, sheet.name).recipes:
            why = sheet.cannot_serve(recipe, accelerator, host) or cannot_be_made(recipe, model.weights, context)
            if why:
                yield LeftOut(sheet.name, recipe.value, why)
                continue
            built = context.finished.get(key_of(recipe, model.weights, context))
            yield model.fit(sheet, recipe, accelerator, built if recipe is not Recipe.WEIGHTS else None)


def _of_article(model: _Model, reference: Reference) -> Iterator[OfArticle]:
    """What it counts is weights, as the sizes of its own artifacts show, on the one GPU that it has."""
    total = int(reference.gpu_memory_gb * 1e9)
    for told in reference.engines:
        bare = model.fit(engine_sheet(told.engine), Recipe(told.recipe), Accelerator.CUDA).bare
        bare = replace(bare, weights=model.size(Recipe(told.recipe)))
        if told.five_models == "together":
            yield OfArticle(told, bare.together(FIVE), bare.most_together(total))
        else:
            yield OfArticle(told, bare.separate(FIVE), bare.most_separate(total))
