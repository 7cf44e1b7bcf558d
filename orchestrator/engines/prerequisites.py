"""What it takes to serve a recipe, and what of the store a deployment or a whole profile may need. Pure."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.artifact import Recipe, artifact_key, earlier_keys, source_with_template
from orchestrator.core.builders import BUILDERS, BuiltBy, by_llama_cpp
from orchestrator.core.deployment import Adapter, DeploymentSpec
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.launch import LOCAL
from orchestrator.core.pins import ImagePin
from orchestrator.core.plan import Remark
from orchestrator.core.prerequisites import (
    BuildArtifact,
    EnsureEnvironment,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    Prerequisite,
    PullImage,
)
from orchestrator.core.profile import READY_MADE, Profile
from orchestrator.core.weights import ReadyFacts, WeightsFacts, cannot_become
from orchestrator.engines import ENGINES, engine_sheet
from orchestrator.engines.base import EngineSheet
from orchestrator.engines.context import ResolveContext
from orchestrator.errors import PlanRefused


def adapter_source(digest: str, weights: WeightsFacts) -> str:
    """The `source` of an adapter's GGUF: the adapter and the weights that it was converted for."""
    return f"dir:{digest} on {weights.source}"


def fitted(name: str, digest: str, rank: int, origin: str, weights: WeightsFacts, context: ResolveContext) -> Adapter:
    """An Adapter with its places in the store, for these weights."""
    key = artifact_key(Recipe.ADAPTER, f"dir:{digest}")
    gguf_key = artifact_key(Recipe.LORA_GGUF, adapter_source(digest, weights))
    return Adapter(
        name=name,
        digest=digest,
        rank=rank,
        origin=origin,
        key=key,
        path=str(context.store_path(key)),
        gguf_key=gguf_key,
        gguf=str(context.store_path(gguf_key) / "adapter.gguf"),
    )


def key_of(recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> str:
    """Where the artifact lies in the store."""
    if (ready := context.ready.get(recipe)) is not None:
        return ready.key
    if (packed := packed_for(recipe, context)) is not None:
        return artifact_key(recipe, source_with_template(packed[1].source, weights.template))
    if (kept := context.kept.get(recipe)) is not None:
        return kept
    # Weights that are served as they are, are served by a view of them.
    made = Recipe.VIEW if recipe is Recipe.WEIGHTS else recipe
    return artifact_key(made, _built_source(made, weights, context))


def is_rebuilt(recipe: Recipe, key: str, weights: WeightsFacts, context: ResolveContext) -> bool:
    """Whether an earlier version of orch built it of the same weights, and what this one makes of them is not here."""
    if recipe not in BUILDERS or key_of(recipe, weights, context) in context.finished:
        return False
    return key in earlier_keys(recipe, _built_source(recipe, weights, context))


def _built_source(recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> str:
    """The `source` of what is built of these weights: by whom, and with what, as far as its bytes depend on it."""
    first, *others = BUILDERS[recipe]
    if first is BuiltBy.LLM_COMPRESSOR:
        return context.calibration().source(weights.made_source)
    if BuiltBy.LLAMA_CPP in others and _is_for_llama_cpp(recipe, weights, context):
        return by_llama_cpp(weights.made_source)
    return weights.made_source


def _is_for_llama_cpp(recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> bool:
    """Whether llama.cpp's own tools build it. What has been built tells, by whichever version of orch, and where the
    weights are not here; weights of which nothing is known are for orch's own builder to see first."""
    own, theirs = artifact_key(recipe, weights.made_source), artifact_key(recipe, by_llama_cpp(weights.made_source))
    return own not in context.finished and (theirs in context.finished or bool(context.unknown(weights)))


def remarks_on_builds(
    profile: Profile, wanted: tuple[Prerequisite, ...], weights: WeightsFacts, context: ResolveContext
) -> tuple[Remark, ...]:
    """What is to be built though ready-made ones are preferred, or by another than orch's own builder, and why.
    PlanRefused where that is not here."""
    remarks = []
    for step in wanted:
        if not isinstance(step, BuildArtifact) or not step.recipe.served or step.key in context.finished:
            continue
        if profile.prefer == READY_MADE:
            remarks.append(Remark(f"take {step.recipe.value} ready-made", "the profile does not know where it is"))
        if step.by is not BuiltBy.LLAMA_CPP:
            continue
        what, tools = context.unknown(weights), context.tools()
        if tools.problem:
            raise PlanRefused(
                f"orch's own builder does not know {what}, and llama.cpp's own tools cannot be used: {tools.problem}.",
                hint="Start Docker, which runs their image (orch images ls), or name a built llama.cpp checkout: "
                f"ORCH_LLAMA_CPP=DIR; or have the profile name a GGUF file of others: "
                f'[artifacts."{step.recipe.value}"].',
            )
        why = f"it does not know {what}; llama.cpp's own tools build it, {tools.place}"
        remarks.append(Remark(f"build {step.recipe.value} with orch's own builder", why))
    return tuple(remarks)


def packed_for(recipe: Recipe, context: ResolveContext) -> tuple[Recipe, ReadyFacts] | None:
    """The ready-made checkpoint that an artifact is repacked from, so that all engines serve the same weights."""
    if recipe is not Recipe.GGUF_NVFP4 or recipe in context.ready:
        return None
    found = (one for one in (Recipe.NVFP4A16, Recipe.NVFP4) if one in context.ready)
    return next(((one, context.ready[one]) for one in found), None)


def artifact_prerequisites(recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> tuple[Prerequisite, ...]:
    """What it takes to have an artifact: it is ready-made, or built from the weights or from what is, or the weights
    are it. PlanRefused where the profile asks of what is ready-made what only a build can put into it."""
    if (ready := context.ready.get(recipe)) is not None:
        if weights.template:
            raise PlanRefused(
                f"The profile has a chat template of its own, and {recipe.value} is ready-made: taken as it is.",
                hint=f'Take [artifacts."{recipe.value}"] out of the profile, or chat.template; where it stands under '
                "[published], --no-ready-made builds it of the weights.",
            )
        return (_fetch(recipe, ready),)
    fetch: tuple[Prerequisite, ...] = (FetchWeights(weights.fetch, weights.key),) if weights.fetch is not None else ()
    if (packed := packed_for(recipe, context)) is not None:
        _, ready = packed
        place, source = str(context.store_path(ready.key)), source_with_template(ready.source, weights.template)
        key, template = key_of(recipe, weights, context), weights.template
        repack = BuildArtifact(recipe, key, source, place, weights_key=ready.key, template=template)
        return (_fetch(*packed), repack)
    if recipe in context.kept:
        return ()  # it is here, or would not be kept
    made = Recipe.VIEW if recipe is Recipe.WEIGHTS else recipe
    source, pulled = _built_source(made, weights, context), _pulled(weights)
    key = artifact_key(made, source)
    build = BuildArtifact(made, key, source, weights.path, weights_key=pulled, template=weights.template)
    if build.by is not BuiltBy.LLM_COMPRESSOR:
        return (*fetch, build)
    how = context.calibration()
    return (*fetch, EnsureEnvironment(how.environment), replace(build, calibration=how))


def _fetch(recipe: Recipe, ready: ReadyFacts) -> FetchArtifact:
    return FetchArtifact(recipe, ready.key, ready.source, ready.hub, ready.file, ready.path)


def _pulled(weights: WeightsFacts) -> str:
    """The key of weights that are pulled; those in a directory of the user's are nobody's to bring."""
    return weights.key if weights.fetch is not None else ""


def prerequisites_of(
    sheet: EngineSheet,
    recipe: Recipe,
    weights: WeightsFacts,
    program: EnvironmentSpec | ImagePin | None,
    adapters: tuple[Adapter, ...],
    context: ResolveContext,
) -> tuple[Prerequisite, ...]:
    """What it takes to serve a recipe with these adapters, its program included."""
    steps = list(artifact_prerequisites(recipe, weights, context))
    ready = recipe in context.ready or packed_for(recipe, context) is not None
    if adapters and sheet.model_file(recipe) and weights.fetch is not None and ready:
        # A LoRA is converted for the weights that it belongs to, whoever has built the artifact.
        steps.append(FetchWeights(weights.fetch, weights.key))
    for adapter in adapters:
        steps.append(ImportAdapter(adapter.name, adapter.origin, adapter.key, adapter.digest, weights.path))
        if sheet.model_file(recipe):
            source = adapter_source(adapter.digest, weights)
            steps.append(
                BuildArtifact(
                    Recipe.LORA_GGUF,
                    adapter.gguf_key,
                    source,
                    adapter.path,
                    base_path=weights.path,
                    weights_key=_pulled(weights),
                )
            )
    if isinstance(program, ImagePin):
        steps.append(PullImage(program))
    elif program is not None:
        steps.append(EnsureEnvironment(program))
    return tuple(steps)


def recipes_of(sheet: EngineSheet, spec: DeploymentSpec) -> tuple[Recipe, ...]:
    """What a spec may be served with, best first."""
    return (spec.recipe,) if spec.recipe is not None else sheet.settings.of(spec.profile, sheet.name).recipes


def cannot_be_made(recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> str:
    """Why the artifact cannot be made of these weights; empty where it can, or is there, or nobody knows yet."""
    if recipe in context.ready:
        return ""
    packed = packed_for(recipe, context)
    if (why := cannot_become(recipe, packed[1].shape if packed is not None else weights.shape)) or packed is not None:
        return why
    alone = recipe.streamed and BUILDERS[recipe] == (BuiltBy.ORCH,)
    what = (
        context.unknown(weights) if alone and artifact_key(recipe, weights.made_source) not in context.finished else ""
    )
    return f"orch's own builder does not know {what}, and no other makes it" if what else ""


def needed(
    spec: DeploymentSpec, weights: WeightsFacts, adapters: tuple[Adapter, ...], context: ResolveContext
) -> tuple[Prerequisite, ...]:
    """What it takes to have all that a spec may be served with, whatever this host would choose of it."""
    sheet = engine_sheet(spec.engine)
    recipes = [recipe for recipe in recipes_of(sheet, spec) if not cannot_be_made(recipe, weights, context)]
    found = (prerequisites_of(sheet, recipe, weights, None, adapters, context) for recipe in recipes)
    return tuple(dict.fromkeys(step for steps in found for step in steps))


def needed_by_any_engine(
    profile: Profile, weights: WeightsFacts, adapters: tuple[Adapter, ...], context: ResolveContext
) -> tuple[Prerequisite, ...]:
    """The same for all engines, which is all that a profile may be served with."""
    specs = (DeploymentSpec(profile=profile, engine=name, target=LOCAL) for name in ENGINES)
    found = (needed(spec, weights, adapters, context) for spec in specs)
    return tuple(dict.fromkeys(step for steps in found for step in steps))
