"""Profile --resolve--> Deployment: the first recipe that engine and host can serve, and all that it needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import Adapter, Asleep, Deployment, DeploymentSpec
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Host
from orchestrator.core.launch import DOCKER, LOCAL, Container
from orchestrator.core.meaning import DEFAULT, sampling_defaults
from orchestrator.core.memory import MemoryFit, MemoryPool, artifact_bytes
from orchestrator.core.pins import Accelerator, EnginePin, ImagePin
from orchestrator.core.plan import Remark, Skip
from orchestrator.core.profile import Profile
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import Backend, Route
from orchestrator.core.weights import ReadyFacts, WeightsFacts
from orchestrator.engines import engine_sheet
from orchestrator.engines.base import EngineSheet, LaunchRequest, LaunchSpec, Pins
from orchestrator.engines.cards import card_of, card_of_route
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.driver_support import driver_cannot
from orchestrator.engines.gpus import gpus_for, gpus_left_out, seen_by
from orchestrator.engines.prerequisites import (
    cannot_be_made,
    key_of,
    prerequisites_of,
    recipes_of,
    remarks_on_builds,
)
from orchestrator.errors import HostError, PlanRefused

AMD_NODES = ("/dev/kfd", "/dev/dri")
# What of a model is read in a second, from a disk as servers have them.
READ_BYTES_S = 10**9


def resolve(
    spec: DeploymentSpec,
    adapters: tuple[Adapter, ...],
    weights: WeightsFacts,
    host: Host,
    context: ResolveContext,
    to_run: bool = True,
) -> Resolved:
    """The spec resolved on this host. Raises HostError (engine absent) or PlanRefused (nothing that it could serve).

    With `to_run` false an absent engine is no error: what it would be given can be rendered all the same.
    """
    sheet, profile = engine_sheet(spec.engine), spec.profile
    if spec.target == DOCKER and context.docker is not None:
        # The daemon makes its control groups beside that of orch, whose limits say nothing of them.
        host = host.having(context.docker.memory)
    if to_run:
        check_host(sheet, spec, host, context)
    accelerator = computes_on(sheet, spec.target, host)
    gpus = gpus_for(sheet, profile, weights.shape, accelerator, host)
    # What it is started with follows from the GPUs that it is to use, not from others.
    on = replace(host, gpus=gpus or host.gpus)
    recipe, passed_over = _choose_recipe(sheet, spec, accelerator, on, weights, context)
    check_adapters(sheet, spec, adapters)
    _check_context(spec, weights)
    image, older = _image(sheet, accelerator, host, context) if spec.target == DOCKER else (None, ())
    environment = _environment(sheet, accelerator, context) if image is None else None
    key, model_path = _model_path(sheet, recipe, weights, context)
    ready = context.ready.get(recipe)
    sampling = sampling_defaults(dict(profile.sampling.said), weights.meaning)
    chats = weights.meaning is None or weights.meaning.chats
    thinks = weights.meaning.thinks if weights.meaning is not None else None
    template = weights.meaning.template(DEFAULT) if weights.meaning is not None else ""
    launch_spec = sheet.launch(
        LaunchRequest(
            profile,
            recipe,
            model_path,
            accelerator,
            on,
            environment,
            image,
            sampling,
            chats=chats,
            thinks=thinks,
            template=template,
        ),
        context.render,
    )
    if image is not None:
        container = _container(sheet, spec, image, recipe, model_path, weights, accelerator, context)
        launch_spec = replace(launch_spec, launch=replace(launch_spec.launch, container=container))
    deployment = _deployment(spec, sheet, recipe, weights, key, model_path, launch_spec, adapters, accelerator)
    deployment = deployment.model_copy(
        update={
            **seen_by(spec, gpus, host, context.docker),
            "chats": chats,
            "defaults": sheet.defaults({one.name: one.value for one in sampling}),
        }
    )
    finished = finished_size(deployment, context)
    deployment = deployment.model_copy({"card": card_of(deployment, profile, weights, sampling, finished)})
    memory_fit = memory_fit_of(
        sheet, spec, recipe, finished, weights, accelerator, context.pools(host, gpus), len(adapters), ready
    )
    deployment = deployment.model_copy(memory_of(sheet, spec.profile, accelerator, memory_fit))
    import_size = import_size_of(sheet, finished, memory_fit)
    prerequisites = prerequisites_of(sheet, recipe, weights, image or environment, adapters, context)
    builds = remarks_on_builds(profile, prerequisites, weights, context) if to_run else ()
    return Resolved(
        deployment=deployment,
        prerequisites=prerequisites,
        passed_over=(
            *gpus_left_out(sheet, profile, accelerator, host),
            *_sleepless(sheet, profile, accelerator),
            *older,
            *passed_over,
            *told(weights),
            *builds,
        ),
        routes=routes_of(sheet, deployment, profile),
        sampling=sampling,
        image=image,
        environment=environment,
        memory_fit=memory_fit,
        start_s=start_estimate(sheet, memory_fit),
        share_option=sheet.share_option,
        import_size=import_size,
        import_peak=sheet.import_peak(import_size),
    )


def _sleepless(sheet: EngineSheet, profile: Profile, accelerator: Accelerator) -> Iterator[Skip]:
    if sheet.sleeps(profile, Accelerator.CUDA) and not sheet.sleeps(profile, accelerator):
        yield Remark("sleep as a standby", f"{sheet.name} can only do so on a GPU: it is ended, and not removed")


def told(weights: WeightsFacts) -> Iterator[Skip]:
    """What somebody who serves this model should know beforehand."""
    for text in weights.meaning.remarks if weights.meaning is not None else ():
        yield Remark("note", text)
    for text in weights.deviations:
        yield Remark("note", f"the artifact, which others have built, differs: {text}")


def finished_size(deployment: Deployment, context: ResolveContext) -> int | None:
    """The bytes of what it loads, where that is an entry of its own."""
    return context.finished.get(deployment.artifact_key) if deployment.recipe is not Recipe.WEIGHTS else None


def check_host(
    sheet: EngineSheet, spec: DeploymentSpec, host: Host, context: ResolveContext, program: bool = True
) -> None:
    """What must be there before anything is begun; its program too, unless it is known where that is."""
    if sheet.takes_gpu and host.gpu_problem and not host.gpus:
        hint = "nvidia-smi should work first; CUDA_VISIBLE_DEVICES= (empty) asks for the CPU instead."
        raise HostError(f"No GPU can be used: {host.gpu_problem}.", hint=hint)
    if spec.target == DOCKER and not sheet.in_containers:
        raise PlanRefused(f"orch runs {sheet.name} only as a local process.", hint="Use --target local.")
    if spec.target == DOCKER:
        if context.docker is not None and context.docker.problem:
            raise HostError(context.docker.problem, hint=context.docker.hint)
        return
    lacking, hint = sheet.missing(host)
    if lacking and program:
        raise HostError(lacking, hint=hint)


def computes_on(sheet: EngineSheet, target: str, host: Host) -> Accelerator:
    """What an engine computes on. An AMD GPU is used in containers only, whose images bring ROCm along."""
    accelerator = sheet.accelerator(host)
    amd = target == DOCKER and sheet.takes_gpu and host.amd
    return Accelerator.ROCM if amd and accelerator is Accelerator.CPU else accelerator


def pinned_image(engine: str, host: Host, pins: Pins) -> bool:
    """Whether an image is pinned for what an engine would compute on in a container here."""
    sheet, pin = engine_sheet(engine), pins.get(engine)
    accelerator = computes_on(sheet, DOCKER, host)
    return sheet.in_containers and pin is not None and any(accelerator in image.accelerators for image in pin.docker)


def _image(
    sheet: EngineSheet, accelerator: Accelerator, host: Host, context: ResolveContext
) -> tuple[ImagePin, tuple[Skip, ...]]:
    """The first pinned image for the accelerator that the NVIDIA driver can run; with those passed over, and why."""
    pin = context.pins.get(sheet.name)
    fit = [image for image in (pin.docker if pin is not None else ()) if accelerator in image.accelerators]
    if not fit:
        pin_one = f"orch images pin {sheet.name} IMAGE:TAG --accelerator {accelerator.value}"
        raise PlanRefused(
            f"No image of {sheet.name} is pinned for {accelerator.value}.",
            hint=f"{pin_one}; or use --target local." if _runs_local(sheet, host, pin) else pin_one,
        )
    passed_over: list[Skip] = []
    for image in fit:
        known = context.images.get(image.reference)
        reason = driver_cannot(image, known, host) if accelerator is Accelerator.CUDA else ""
        if not reason:
            return image, tuple(passed_over)
        passed_over.append(Remark(f"use {image.name}", reason))
    raise PlanRefused(
        f"The NVIDIA driver here runs none of the pinned images of {sheet.name}.",
        hint=f"Update the driver, or pin an older build: orch images pin {sheet.name} IMAGE:TAG",
        detail="\n".join(f"{skip.what}: {skip.why}" for skip in passed_over),
    )


def _runs_local(sheet: EngineSheet, host: Host, pin: EnginePin | None) -> bool:
    """Whether there is what the engine needs to be a process on this machine."""
    built = pin is not None and pin.environment(computes_on(sheet, LOCAL, host)) is not None
    return not sheet.missing(host)[0] and (built or not sheet.needs_environment())


def _container(
    sheet: EngineSheet,
    spec: DeploymentSpec,
    image: ImagePin,
    recipe: Recipe,
    model_path: str,
    weights: WeightsFacts,
    accelerator: Accelerator,
    context: ResolveContext,
) -> Container:
    # The whole store, not the artifact: adapters come into it while the container runs, and never into a shared one.
    store = context.store_path(artifact_key(Recipe.ADAPTER, "")).parent
    # A view leads to where the weights are; what lies beside them there is not in it.
    places = {weights.path, *weights.linked} if recipe is Recipe.WEIGHTS else {model_path}
    reads = {str(store)} | {place for place in places if not Path(place).is_relative_to(store)}
    return Container(
        image=image.reference,
        reads=tuple(sorted(reads)),
        devices=AMD_NODES if accelerator is Accelerator.ROCM else (),
        shm_mib=sheet.shm_mib(sheet.gpus(spec.profile, accelerator)),
        memory_mib=spec.profile.serving.memory_mib,
    )


def memory_fit_of(
    sheet: EngineSheet,
    spec: DeploymentSpec,
    recipe: Recipe,
    finished: int | None,
    weights: WeightsFacts,
    accelerator: Accelerator,
    pools: tuple[MemoryPool, ...],
    adapters: int,
    ready: ReadyFacts | None,
) -> MemoryFit | None:
    """The memory that it takes beside what there is; None as long as nothing is known of the weights."""
    shape = weights.shape or (ready.shape if ready is not None else None)
    if shape is None or not (weights.size or finished):
        return None
    if accelerator is Accelerator.ROCM:
        return None  # NVML does not know its memory
    size = finished or artifact_bytes(recipe, weights.size, shape)
    request = sheet.memory_request(spec.profile, size, shape, accelerator, adapters)
    return MemoryFit.of(request, pools)


def memory_of(
    sheet: EngineSheet, profile: Profile, accelerator: Accelerator, memory_fit: MemoryFit | None
) -> dict[str, Any]:
    """The Deployment's fields for what it takes of memory, awake and asleep; nothing where that is not known."""
    if memory_fit is None:
        return {"memory": 0, "asleep": None}
    request = memory_fit.request
    # ASSUMPTION: CUDA's context and graphs stay.
    asleep = Asleep(host=request.weights * request.gpus, gpu=request.allowance)
    return {"memory": memory_fit.requested, "asleep": asleep if sheet.sleeps(profile, accelerator) else None}


def start_estimate(sheet: EngineSheet, memory_fit: MemoryFit | None) -> float:
    """Seconds until it answers, where nobody has seen it start: ASSUMPTION."""
    return sheet.starts_in_s + (memory_fit.request.weights / READ_BYTES_S if memory_fit is not None else 0.0)


def import_size_of(sheet: EngineSheet, finished: int | None, memory_fit: MemoryFit | None) -> int:
    """The bytes that the artifact takes in the engine's own store; 0 where it has none, or they are not known."""
    if not sheet.own_store:
        return 0
    return finished or (memory_fit.request.weights if memory_fit is not None else 0)


def _choose_recipe(
    sheet: EngineSheet,
    spec: DeploymentSpec,
    accelerator: Accelerator,
    host: Host,
    weights: WeightsFacts,
    context: ResolveContext,
) -> tuple[Recipe, tuple[Skip, ...]]:
    candidates = recipes_of(sheet, spec)
    passed_over: list[Skip] = []
    for recipe in candidates:
        reason = sheet.cannot_serve(recipe, accelerator, host) or cannot_be_made(recipe, weights, context)
        if not reason:
            return recipe, tuple(passed_over)
        passed_over.append(Remark(f"leave out {recipe.value}", reason))
    raise PlanRefused(
        f"{sheet.name} can serve none of: {', '.join(recipe.value for recipe in candidates)}.",
        hint=f"Name another recipe under engines.{sheet.name}.recipes, or use another engine.",
        detail="\n".join(f"{skip.what}: {skip.why}" for skip in passed_over),
    )


def check_adapters(sheet: EngineSheet, spec: DeploymentSpec, adapters: tuple[Adapter, ...]) -> None:
    """PlanRefused where the engine, or the profile's room, does not take them."""
    lora = spec.profile.lora
    reason = sheet.cannot_adapt(spec.profile, adapters)
    if reason:
        names = ", ".join(adapter.name for adapter in adapters)
        raise PlanRefused(f"{reason} ({names}).", hint="orch lora rm NAME, or use another engine.")
    if len(adapters) > lora.max_adapters:
        raise PlanRefused(
            f"{len(adapters)} adapters are wanted, and the profile has room for {lora.max_adapters}.",
            hint="Raise lora.max_adapters in the profile, or remove one: orch lora rm NAME",
        )
    for adapter in adapters:
        if adapter.rank > lora.max_rank:
            raise PlanRefused(
                f"Adapter {adapter.name} has rank {adapter.rank}; the profile allows {lora.max_rank}.",
                hint=f"Set lora.max_rank = {adapter.rank} in the profile and run orch up again.",
            )


def _check_context(spec: DeploymentSpec, weights: WeightsFacts) -> None:
    """vLLM would refuse it after a start, llama.cpp would serve it silently."""
    positions = weights.shape.positions if weights.shape is not None else 0
    if positions and spec.profile.serving.context > positions:
        raise PlanRefused(
            f"A context of {spec.profile.serving.context} tokens is more than the model's {positions} positions.",
            hint=f"Set serving.context to at most {positions} in the profile.",
        )


def _environment(sheet: EngineSheet, accelerator: Accelerator, context: ResolveContext) -> EnvironmentSpec | None:
    if not sheet.needs_environment():
        return None
    pin = context.pins.get(sheet.name)
    indexes = (context.torch_index,) if context.torch_index is not None else None
    spec = pin.environment(accelerator, indexes) if pin is not None else None
    if spec is None:
        raise PlanRefused(f"No build of {sheet.name} is pinned for {accelerator.value} on target local.")
    return spec


def _model_path(sheet: EngineSheet, recipe: Recipe, weights: WeightsFacts, context: ResolveContext) -> tuple[str, str]:
    key = key_of(recipe, weights, context)
    path = context.store_path(key)
    return key, str(path / sheet.model_file(recipe)) if sheet.model_file(recipe) else str(path)


def _deployment(
    spec: DeploymentSpec,
    sheet: EngineSheet,
    recipe: Recipe,
    weights: WeightsFacts,
    key: str,
    model_path: str,
    launch_spec: LaunchSpec,
    adapters: tuple[Adapter, ...],
    accelerator: Accelerator,
) -> Deployment:
    return Deployment(
        profile=spec.profile.name,
        engine=sheet.name,
        target=spec.target,
        served_name=spec.profile.served_name,
        public_names=spec.profile.public_names,
        recipe=recipe,
        weights_source=weights.source,
        weights_path=weights.path,
        artifact_key=key,
        model_path=model_path,
        base_launch=launch_spec.launch,
        files=launch_spec.files,
        own_store=sheet.own_store,
        accelerator=accelerator,
        adapters=adapters,
        adapter_args=sheet.adapter_args(adapters),
        adapter_lines=sheet.adapter_lines(adapters),
        adapter_slots=sheet.adapter_slots(spec.profile, accelerator),
        hot_adapters=sheet.hot_adapters,
    )


def _defaults(sheet: EngineSheet, deployment: Deployment, profile: Profile) -> dict[str, Any]:
    """As they are recorded, else as earlier versions had them: the profile's alone."""
    recorded = deployment.defaults
    return recorded if recorded is not None else sheet.defaults(dict(profile.sampling.said))


def routes_of(sheet: EngineSheet, deployment: Deployment, profile: Profile) -> tuple[Route, ...]:
    """One Route per public name; where it leads is filled in when the engine runs."""
    named: list[tuple[str, Adapter | None]] = [(name, None) for name in deployment.public_names]
    named += [(adapter.name, adapter) for adapter in deployment.adapters]
    routes = []
    for name, adapter in named:
        upstream = sheet.upstream(deployment, adapter)
        routes.append(
            Route(
                name=name,
                owner=deployment.profile,
                backends=(Backend("", "", deployment.target),),
                speaks=sheet.speaks,
                upstream=upstream if upstream != name else None,
                patch=sheet.patch(deployment, adapter),
                defaults=_defaults(sheet, deployment, profile),
                chats=deployment.chats,
                patch_paths=sheet.patch_paths,
                card=card_of_route(deployment, adapter),
                at_once=profile.serving.parallel,
            )
        )
    return tuple(routes)
