"""Profile --resolve--> Deployment: the first recipe that engine and host can serve, and all that it needs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Adapter, Deployment, Wish
from orchestrator.core.docker import DockerFacts
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Host
from orchestrator.core.images import ImageFacts, driver_cannot
from orchestrator.core.launch import DOCKER, Container
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.profile import Profile
from orchestrator.core.resolved import Resolved, Supply
from orchestrator.core.routes import Route
from orchestrator.core.steps import (
    BuildArtifact,
    EnsureEnvironment,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    PullImage,
    Skip,
)
from orchestrator.core.vram import Budget, Place, artifact_bytes, places_of
from orchestrator.core.weights import ReadyFacts, WeightsFacts
from orchestrator.engines import ENGINES
from orchestrator.engines.base import Asked, EngineSheet, Launched, Pins, Render
from orchestrator.engines.gpus import gpus_for, gpus_left_out, seen_by
from orchestrator.errors import HostError, PlanRefused

AMD_NODES = ("/dev/kfd", "/dev/dri")


@dataclass(frozen=True)
class Shipped:
    """What resolving needs besides wish and host: pins, templates, the store's layout and its finished sizes; for
    containers the daemon and the images that it has; the profile's ready-made artifacts; what its 4-bit activations
    are calibrated with, where they are."""

    pins: Pins
    render: Render
    store_path: Callable[[str], Path]
    finished: Mapping[str, int]
    torch_index: str | None = None
    docker: DockerFacts | None = None
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    ready: Mapping[Recipe, ReadyFacts] = field(default_factory=dict)
    calibration: Callable[[], Calibration] = field(kw_only=True)


def engine_sheet(name: str) -> EngineSheet:
    """The fact sheet of an engine; PlanRefused with the known names otherwise."""
    sheet = ENGINES.get(name)
    if sheet is None:
        raise PlanRefused(f"orch does not know the engine {name}.", hint=f"Known engines: {', '.join(ENGINES)}")
    return sheet


def resolve(
    wish: Wish, adapters: tuple[Adapter, ...], weights: WeightsFacts, host: Host, shipped: Shipped, to_run: bool = True
) -> Resolved:
    """The wish on this host. Raises HostError (engine absent) or PlanRefused (nothing that it could serve).

    With `to_run` false an absent engine is no error: what it would be given can be rendered all the same.
    """
    sheet, profile = engine_sheet(wish.engine), wish.profile
    if to_run:
        _check_host(sheet, wish, host, shipped)
    accelerator = computes_on(sheet, wish.target, host)
    gpus = gpus_for(sheet, profile, weights.shape, accelerator, host)
    # What it is started with follows from the GPUs that it is to use, not from others.
    on = replace(host, gpus=gpus or host.gpus)
    recipe, passed_over = _choose_recipe(sheet, wish, accelerator, on)
    _check_adapters(sheet, wish, adapters)
    _check_context(wish, weights)
    image, older = _image(sheet, accelerator, host, shipped) if wish.target == DOCKER else (None, ())
    environment = _environment(sheet, accelerator, shipped) if image is None else None
    key, model_path = _model_path(sheet, recipe, weights, shipped)
    launched = sheet.launch(Asked(profile, recipe, model_path, accelerator, on, environment, image), shipped.render)
    if image is not None:
        container = _container(sheet, wish, image, key, model_path, weights.linked, accelerator, shipped)
        launched = replace(launched, launch=replace(launched.launch, container=container))
    deployment = _deployment(wish, sheet, recipe, weights, key, model_path, launched, adapters, accelerator)
    deployment = deployment.model_copy(update=seen_by(wish, gpus, host, shipped.docker))
    return Resolved(
        deployment=deployment,
        supply=supply_of(sheet, recipe, weights, image or environment, adapters, shipped),
        passed_over=(*gpus_left_out(sheet, profile, accelerator, host), *older, *passed_over),
        routes=_routes(sheet, deployment, profile),
        budget=_budget(
            sheet,
            wish,
            recipe,
            shipped.finished.get(key),
            weights,
            accelerator,
            places_of(host, gpus),
            len(adapters),
            shipped.ready.get(recipe),
        ),
    )


def _check_host(sheet: EngineSheet, wish: Wish, host: Host, shipped: Shipped) -> None:
    """What must be there before anything is begun."""
    if sheet.takes_gpu and host.gpu_problem and not host.gpus:
        hint = "nvidia-smi should work first; CUDA_VISIBLE_DEVICES= (empty) asks for the CPU instead."
        raise HostError(f"No GPU can be used: {host.gpu_problem}.", hint=hint)
    if wish.target == DOCKER and not sheet.in_containers:
        raise PlanRefused(f"orch runs {sheet.name} as a process of its own only.", hint="Use --target local.")
    if wish.target == DOCKER:
        if shipped.docker is not None and shipped.docker.problem:
            raise HostError(shipped.docker.problem, hint=shipped.docker.hint)
        return
    lacking, hint = sheet.missing(host)
    if lacking:
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
    sheet: EngineSheet, accelerator: Accelerator, host: Host, shipped: Shipped
) -> tuple[ImagePin, tuple[Skip, ...]]:
    """The first pinned image for the accelerator that the NVIDIA driver can run; with those passed over, and why."""
    pin = shipped.pins.get(sheet.name)
    fit = [image for image in (pin.docker if pin is not None else ()) if accelerator in image.accelerators]
    if not fit:
        raise PlanRefused(
            f"No image of {sheet.name} is pinned for {accelerator.value}.",
            hint=f"orch images pin {sheet.name} IMAGE:TAG --accelerator {accelerator.value}; or use --target local.",
        )
    passed_over: list[Skip] = []
    for image in fit:
        known = shipped.images.get(image.reference)
        reason = driver_cannot(image, known, host) if accelerator is Accelerator.CUDA else ""
        if not reason:
            return image, tuple(passed_over)
        passed_over.append(Skip(f"use {image.name}", reason))
    raise PlanRefused(
        f"The NVIDIA driver here runs none of the pinned images of {sheet.name}.",
        hint=f"Update the driver, or pin an older build: orch images pin {sheet.name} IMAGE:TAG",
        detail="\n".join(f"{skip.what}: {skip.why}" for skip in passed_over),
    )


def _container(
    sheet: EngineSheet,
    wish: Wish,
    image: ImagePin,
    key: str,
    model_path: str,
    linked: tuple[str, ...],
    accelerator: Accelerator,
    shipped: Shipped,
) -> Container:
    # The whole store, not the artifact: adapters come into it while the container runs, and never into a shared one.
    store, entry = shipped.store_path(artifact_key(Recipe.ADAPTER, "")).parent, shipped.store_path(key)
    reads = {str(store)}
    if Path(model_path).is_relative_to(entry):
        reads |= {str(entry)} if entry.parent != store else set()
    else:
        reads |= {model_path, *linked}
    return Container(
        image=image.reference,
        reads=tuple(sorted(reads)),
        devices=AMD_NODES if accelerator is Accelerator.ROCM else (),
        shm_mib=sheet.shm_mib(sheet.gpus(wish.profile, accelerator)),
        memory_mib=wish.profile.serving.memory_mib,
    )


def _budget(
    sheet: EngineSheet,
    wish: Wish,
    recipe: Recipe,
    finished: int | None,
    weights: WeightsFacts,
    accelerator: Accelerator,
    places: tuple[Place, ...],
    adapters: int,
    ready: ReadyFacts | None,
) -> Budget | None:
    """None as long as nothing is known of the weights."""
    shape = weights.shape or (ready.shape if ready is not None else None)
    if shape is None or not (weights.size or finished):
        return None
    if accelerator is Accelerator.ROCM:
        return None  # NVML does not know its memory
    size = finished or artifact_bytes(recipe, weights.size, shape)
    ask = sheet.ask(wish.profile, size, shape, accelerator, adapters)
    return Budget.of(ask, places)


def adapter_source(digest: str, weights: WeightsFacts) -> str:
    """The `source` of an adapter's GGUF: the adapter and the weights that it was converted for."""
    return f"dir:{digest} on {weights.source}"


def fitted(name: str, digest: str, rank: int, origin: str, weights: WeightsFacts, shipped: Shipped) -> Adapter:
    """An Adapter with its places in the store, for these weights."""
    key = artifact_key(Recipe.ADAPTER, f"dir:{digest}")
    gguf_key = artifact_key(Recipe.LORA_GGUF, adapter_source(digest, weights))
    return Adapter(
        name=name,
        digest=digest,
        rank=rank,
        origin=origin,
        key=key,
        path=str(shipped.store_path(key)),
        gguf_key=gguf_key,
        gguf=str(shipped.store_path(gguf_key) / "adapter.gguf"),
    )


def _choose_recipe(
    sheet: EngineSheet, wish: Wish, accelerator: Accelerator, host: Host
) -> tuple[Recipe, tuple[Skip, ...]]:
    settings = getattr(wish.profile.engines, sheet.name)
    candidates = (wish.recipe,) if wish.recipe is not None else settings.recipes
    passed_over: list[Skip] = []
    for recipe in candidates:
        reason = sheet.cannot_serve(recipe, accelerator, host)
        if not reason:
            return recipe, tuple(passed_over)
        passed_over.append(Skip(f"leave out {recipe.value}", reason))
    raise PlanRefused(
        f"{sheet.name} can serve none of: {', '.join(recipe.value for recipe in candidates)}.",
        hint=f"Name another recipe under engines.{sheet.name}.recipes, or use another engine.",
        detail="\n".join(f"{skip.what}: {skip.why}" for skip in passed_over),
    )


def _check_adapters(sheet: EngineSheet, wish: Wish, adapters: tuple[Adapter, ...]) -> None:
    lora = wish.profile.lora
    reason = sheet.cannot_adapt(wish.profile, adapters)
    if reason:
        names = ", ".join(adapter.name for adapter in adapters)
        raise PlanRefused(f"{reason} ({names}).", hint="orch lora rm NAME, or use llamacpp or vllm.")
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


def _check_context(wish: Wish, weights: WeightsFacts) -> None:
    """vLLM would refuse it after a start, llama.cpp would serve it silently."""
    positions = weights.shape.positions if weights.shape is not None else 0
    if positions and wish.profile.serving.context > positions:
        raise PlanRefused(
            f"A context of {wish.profile.serving.context} tokens is more than the model's {positions} positions.",
            hint=f"Set serving.context to at most {positions} in the profile.",
        )


def _environment(sheet: EngineSheet, accelerator: Accelerator, shipped: Shipped) -> EnvironmentSpec | None:
    if not sheet.needs_environment():
        return None
    pin = shipped.pins.get(sheet.name)
    indexes = (shipped.torch_index,) if shipped.torch_index is not None else None
    spec = pin.environment(accelerator, indexes) if pin is not None else None
    if spec is None:
        raise PlanRefused(f"No build of {sheet.name} is pinned for {accelerator.value} on target local.")
    return spec


def _model_path(sheet: EngineSheet, recipe: Recipe, weights: WeightsFacts, shipped: Shipped) -> tuple[str, str]:
    if recipe is Recipe.WEIGHTS:
        return weights.key, weights.path
    key = key_of(recipe, weights, shipped)
    path = shipped.store_path(key)
    return key, str(path / sheet.model_file(recipe)) if sheet.model_file(recipe) else str(path)


def _deployment(
    wish: Wish,
    sheet: EngineSheet,
    recipe: Recipe,
    weights: WeightsFacts,
    key: str,
    model_path: str,
    launched: Launched,
    adapters: tuple[Adapter, ...],
    accelerator: Accelerator,
) -> Deployment:
    return Deployment(
        profile=wish.profile.name,
        engine=sheet.name,
        target=wish.target,
        served_name=wish.profile.served_name,
        public_names=wish.profile.public_names,
        recipe=recipe,
        weights_source=weights.source,
        weights_path=weights.path,
        artifact_key=key,
        model_path=model_path,
        base_launch=launched.launch,
        files=launched.files,
        own_store=sheet.own_store,
        accelerator=accelerator,
        adapters=adapters,
        adapter_args=sheet.adapter_args(adapters),
        adapter_lines=sheet.adapter_lines(adapters),
        adapter_slots=sheet.adapter_slots(wish.profile, accelerator),
        hot_adapters=sheet.hot_adapters,
    )


def key_of(recipe: Recipe, weights: WeightsFacts, shipped: Shipped) -> str:
    """Where the artifact lies in the store."""
    if (ready := shipped.ready.get(recipe)) is not None:
        return ready.key
    calibrated = recipe is Recipe.NVFP4
    return artifact_key(recipe, shipped.calibration().source(weights.source) if calibrated else weights.source)


def artifact_supply(recipe: Recipe, weights: WeightsFacts, shipped: Shipped) -> tuple[Supply, ...]:
    """What it takes to have an artifact: it is ready-made, or built from the weights, or the weights are it."""
    if (ready := shipped.ready.get(recipe)) is not None:
        return (FetchArtifact(recipe, ready.key, ready.source, ready.hub, ready.file, ready.path),)
    fetch: tuple[Supply, ...] = (FetchWeights(weights.fetch, weights.key),) if weights.fetch is not None else ()
    if recipe is Recipe.WEIGHTS:
        return fetch
    key = key_of(recipe, weights, shipped)
    if recipe is not Recipe.NVFP4:
        return (*fetch, BuildArtifact(recipe, key, weights.source, weights.path))
    how = shipped.calibration()
    build = BuildArtifact(recipe, key, how.source(weights.source), weights.path, calibration=how)
    return (*fetch, EnsureEnvironment(how.environment), build)


def supply_of(
    sheet: EngineSheet,
    recipe: Recipe,
    weights: WeightsFacts,
    program: EnvironmentSpec | ImagePin | None,
    adapters: tuple[Adapter, ...],
    shipped: Shipped,
) -> tuple[Supply, ...]:
    """What it takes to serve a recipe with these adapters, its program included."""
    steps = list(artifact_supply(recipe, weights, shipped))
    if adapters and sheet.model_file(recipe) and weights.fetch is not None and recipe in shipped.ready:
        # A LoRA is converted for the weights that it belongs to, whoever has built the artifact.
        steps.append(FetchWeights(weights.fetch, weights.key))
    for adapter in adapters:
        steps.append(ImportAdapter(adapter.name, adapter.origin, adapter.key, adapter.digest))
        if sheet.model_file(recipe):
            source = adapter_source(adapter.digest, weights)
            steps.append(BuildArtifact(Recipe.LORA_GGUF, adapter.gguf_key, source, adapter.path, weights.path))
    if isinstance(program, ImagePin):
        steps.append(PullImage(program))
    elif program is not None:
        steps.append(EnsureEnvironment(program))
    return tuple(steps)


def _routes(sheet: EngineSheet, deployment: Deployment, profile: Profile) -> tuple[Route, ...]:
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
                backend="",
                url="",
                upstream=upstream if upstream != name else None,
                patch=sheet.patch(deployment, adapter),
                defaults=sheet.defaults(profile),
            )
        )
    return tuple(routes)
