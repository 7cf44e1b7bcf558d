"""A recorded Resolution on this host as it is now: the same deployment again, and what it takes to have it. Pure."""

from __future__ import annotations

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment, DeploymentSpec, Resolution
from orchestrator.core.host import Gpu, Host
from orchestrator.core.launch import DOCKER
from orchestrator.core.meaning import sampling_defaults
from orchestrator.core.model_card import ModelCard
from orchestrator.core.pins import Accelerator
from orchestrator.core.prerequisites import Prerequisite
from orchestrator.core.resolved import Resolved
from orchestrator.core.weights import WeightsFacts
from orchestrator.engines import engine_sheet
from orchestrator.engines.base import EngineSheet
from orchestrator.engines.cards import card_of
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.gpus import gpus_for, seen_by
from orchestrator.engines.prerequisites import key_of, prerequisites_of
from orchestrator.engines.resolve import (
    check_adapters,
    check_host,
    computes_on,
    finished_size,
    import_size_of,
    memory_fit_of,
    memory_of,
    routes_of,
    start_estimate,
)


def resolve_recorded(
    spec: DeploymentSpec,
    resolution: Resolution,
    adapters: tuple[Adapter, ...],
    weights: WeightsFacts,
    host: Host,
    context: ResolveContext,
    to_run: bool = True,
) -> Resolved:
    """The spec as it was resolved before, with these adapters. Raises HostError or PlanRefused as `resolve` does; what
    is gone for good is for `what_is_gone` to say."""
    sheet, deployment = engine_sheet(spec.engine), resolution.deployment
    recipe, accelerator = deployment.recipe, deployment.accelerator
    if spec.target == DOCKER and context.docker is not None:
        host = host.having(context.docker.memory)
    if to_run:
        # What stands in the record is started, wherever the caller's PATH leads by now.
        check_host(sheet, spec, host, context, program=not deployment.base_launch.argv[0].startswith("/"))
    check_adapters(sheet, spec, adapters)
    gpus = _same_gpus(deployment, host)
    # Whoever has another environment than what runs may see none.
    if host.gpus and not gpus:
        gpus = gpus_for(sheet, spec.profile, weights.shape, accelerator, host)
    deployment = deployment.model_copy(
        {
            "generation": 0,
            "adapter_loads": 0,
            "public_names": spec.profile.public_names,
            "adapters": adapters,
            "adapter_args": sheet.adapter_args(adapters),
            "adapter_lines": sheet.adapter_lines(adapters),
            **seen_by(spec, gpus, host, context.docker),
        }
    )
    finished = finished_size(deployment, context)
    memory_fit = memory_fit_of(
        sheet,
        spec,
        recipe,
        finished,
        weights,
        accelerator,
        context.pools(host, gpus),
        len(adapters),
        context.ready.get(recipe),
    )
    deployment = deployment.model_copy(memory_of(sheet, spec.profile, accelerator, memory_fit))
    import_size = import_size_of(sheet, finished, memory_fit)
    return Resolved(
        deployment=deployment,
        prerequisites=_prerequisites(sheet, resolution, adapters, weights, context),
        passed_over=(),
        routes=routes_of(sheet, deployment, spec.profile),
        image=resolution.image,
        environment=resolution.environment,
        memory_fit=memory_fit,
        start_s=start_estimate(sheet, memory_fit),
        share_option=sheet.share_option,
        import_size=import_size,
        import_peak=sheet.import_peak(import_size),
    )


def card_of_recorded(
    spec: DeploymentSpec, resolution: Resolution, weights: WeightsFacts, context: ResolveContext
) -> ModelCard | None:
    """The card that earlier versions of orch have not recorded; None where that is not of these weights any more, or
    they are not here."""
    deployment = resolution.deployment
    if not _sources_are_the_same(deployment, weights, context):
        return None
    sampling = sampling_defaults(dict(spec.profile.sampling.said), weights.meaning)
    return card_of(deployment, spec.profile, weights, sampling, finished_size(deployment, context))


def what_is_gone(
    spec: DeploymentSpec, resolution: Resolution, weights: WeightsFacts, host: Host, context: ResolveContext
) -> str:
    """What it was served with and nobody can bring back, in a sentence; empty when all can be had again."""
    deployment, image = resolution.deployment, resolution.image
    accelerator = computes_on(engine_sheet(spec.engine), spec.target, host)
    if accelerator is not deployment.accelerator is not Accelerator.CPU:
        return f"it computed on {deployment.accelerator.value}, and this machine offers {accelerator.value} now"
    if image is not None and image.local and context.images and image.reference not in context.images:
        return f"the image {image.name} ({image.digest[:19]}) was removed, and no registry has it"
    own = str(context.store_path(deployment.artifact_key).parent)
    if deployment.artifact_key not in context.finished and deployment.store not in ("", own):
        return f"{deployment.artifact_key} lay in the store {deployment.store}, and is not there any more"
    if _sources_are_the_same(deployment, weights, context):
        return ""
    # A view has only what describes the weights.
    if deployment.artifact_key in context.finished and deployment.recipe is not Recipe.WEIGHTS:
        return ""
    if deployment.recipe is Recipe.WEIGHTS:
        return f"it served the weights in {deployment.weights_path} as they were, and they have changed since"
    return f"{deployment.artifact_key} is no longer in the store, and what it was made of has changed since"


def _sources_are_the_same(deployment: Deployment, weights: WeightsFacts, context: ResolveContext) -> bool:
    if deployment.recipe is Recipe.WEIGHTS:
        return deployment.weights_source == weights.source
    return key_of(deployment.recipe, weights, context) == deployment.artifact_key


def _same_gpus(deployment: Deployment, host: Host) -> tuple[Gpu, ...]:
    """Those that it was given, if they are all here; none where it was not told which."""
    named = [uuid for uuid in deployment.gpu.split(",") if uuid]
    found = tuple(gpu for gpu in host.gpus if gpu.uuid in named)
    return found if len(found) == len(named) and deployment.accelerator is Accelerator.CUDA else ()


def _prerequisites(
    sheet: EngineSheet,
    resolution: Resolution,
    adapters: tuple[Adapter, ...],
    weights: WeightsFacts,
    context: ResolveContext,
) -> tuple[Prerequisite, ...]:
    """What its artifact takes, as long as that can be made of what there is; else the artifact has to be here."""
    deployment, program = resolution.deployment, resolution.image or resolution.environment
    needed = prerequisites_of(sheet, deployment.recipe, weights, program, adapters, context)
    of_weights = deployment.recipe is Recipe.WEIGHTS
    now = key_of(deployment.recipe, weights, context)
    if deployment.artifact_key == now:
        return needed
    # Versions without views served the directory of the weights itself.
    without = {now} if of_weights and _sources_are_the_same(deployment, weights, context) else {now, weights.key}
    return tuple(step for step in needed if step.key not in without)
