"""orch over one data directory: its settings, and the concrete drivers put together; the only place that knows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.progress import Progress
from orchestrator.drivers.files import require_readable
from orchestrator.errors import HostError, PlanRefused
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.app.llama_cpp_tools import LlamaCppTools
    from orchestrator.artifacts.builder import Builder
    from orchestrator.artifacts.store import Store
    from orchestrator.core.calibration import Calibration
    from orchestrator.core.docker import DockerFacts
    from orchestrator.core.environment import EnvironmentSpec
    from orchestrator.core.gateway_status import Listener
    from orchestrator.core.host import GpuSample, Host
    from orchestrator.core.launch import Launch
    from orchestrator.core.observed import Observed
    from orchestrator.core.pins import ImagePin
    from orchestrator.core.profile import CalibrationTexts, Profile
    from orchestrator.drivers.base import EngineHttp, Gateway, Hub, Records, Target
    from orchestrator.drivers.clock import SystemClock
    from orchestrator.drivers.docker.containers import DockerTarget
    from orchestrator.drivers.docker.daemon import Daemon
    from orchestrator.drivers.docker.images import DockerImages
    from orchestrator.drivers.keys import KeyFile
    from orchestrator.drivers.local.command import Finished
    from orchestrator.drivers.local.environments import Environments
    from orchestrator.drivers.local.llmcompressor import LlmCompressor
    from orchestrator.drivers.local.processes import LocalTarget
    from orchestrator.drivers.records import LockFiles
    from orchestrator.drivers.secrets import EngineSecrets
    from orchestrator.drivers.weights import UnknownWeights, WeightsCatalog
    from orchestrator.engines.base import Pins
    from orchestrator.engines.context import ResolveContext

# A remark: for programs, and in words.
Note = Callable[[Mapping[str, Any], str], None]
# A gateway that is restarted (by its keeper, by the Docker daemon) is back by then.
GATEWAY_PATIENCE_S = 15.0


class Orchestrator:
    """The World (drivers/base.py) of one data directory, and what deciding needs besides.

    Drivers are made, and imported, when they are first asked for: a look at processes pays for no hub and no builder.
    `progress` is told of work outside of plans, such as hashing; what it raises ends that work. `note` is told what is
    worth knowing on the way.
    """

    def __init__(self, settings: Settings, progress: Progress, note: Note) -> None:
        self.settings = settings
        self.progress = progress
        self.note = note
        require_readable(settings.data)
        if settings.origins:
            from orchestrator.app.gateway import check_each_origin

            check_each_origin(settings.origins, "ORCH_ORIGINS", "Separate them with commas")
        if settings.limits:
            from orchestrator.app.gateway import check_each_limit

            check_each_limit(settings.limits)

    def run_module(
        self, module: str, args: list[str], tick: Callable[[], None], line: Callable[[str], None]
    ) -> Finished:
        """Run a module of orch in a process of its own; `line` is told what it says. What `tick` raises ends it."""
        from orchestrator.drivers.local.command import allowed_environ, run_command

        return run_command([sys.executable, "-P", "-m", module, *args], allowed_environ(), tick=tick, on_line=line)

    # --- the World

    def read_host(self) -> Host:
        """The machine at this moment."""
        from orchestrator.drivers.host import disk_free, read_host
        from orchestrator.engines import ENGINES

        host = read_host(name for sheet in ENGINES.values() for name in sheet.programs)
        return replace(host, disk_free=disk_free(self.settings.data))

    @cached_property
    def hub(self) -> Hub:
        from orchestrator.drivers.hub import Hub

        settings = self.settings
        return Hub(offline=settings.offline, token_file=settings.hf_token_file, parallel=settings.pull_parallel)

    @cached_property
    def store(self) -> Store:
        from orchestrator.artifacts.store import Store

        for place in self.settings.shared_stores:
            if not place.is_dir():
                raise HostError(
                    f"The shared store {place} is not there.", hint="Mount it, or take it out of ORCH_STORES."
                )
        # What is served from another store stays there, whether the caller's environment names that or not.
        recorded = {place for desired in self.records.desired().values() for place in desired.stores}
        more = sorted(place for place in map(Path, recorded) if place != self.settings.store and place.is_dir())
        places = dict.fromkeys((*self.settings.shared_stores, *more))
        return Store(self.settings.store, tuple(places), self.settings.store_limit)

    @cached_property
    def builder(self) -> Builder:
        from orchestrator.artifacts.builder import Builder

        return Builder(quantizer_library(), self.llmcompressor.quantize, self.llama_cpp_tools)

    @cached_property
    def environments(self) -> Environments:
        from orchestrator.drivers.local.environments import Environments

        return Environments(self.settings.environments)

    @cached_property
    def targets(self) -> Mapping[str, Target]:
        return {self.local.name: self.local, self.docker.name: self.docker}

    @cached_property
    def images(self) -> DockerImages:
        from orchestrator.drivers.docker.images import DockerImages

        return DockerImages(self.daemon, self.settings.loaded_images, lambda: self.docker.in_use)

    @cached_property
    def gateway(self) -> Gateway:
        from orchestrator.drivers.gateway_admin import Gateways

        return Gateways(self.settings.admin, patience_s=GATEWAY_PATIENCE_S)

    def gateway_launch(
        self,
        target: str,
        instance: str,
        listeners: tuple[Listener, ...],
        origins: tuple[str, ...],
        limits: tuple[str, ...],
        take_over: bool,
    ) -> Launch:
        """How a gateway is started on a target, at its addresses; with `take_over` to wait for those of another."""
        from orchestrator.core.launch import DOCKER, Container, Launch
        from orchestrator.core.listen import split_address
        from orchestrator.drivers.gateway_admin import admin_socket, handover_socket

        admin, keys, secrets = self.settings.admin, self.settings.keys, self.settings.secrets
        argv = ["{python}", "-m", "orchestrator.gateway"]
        argv += [word for one in listeners for word in ("--listen", one.address)]
        argv += ["--admin", str(admin_socket(admin, instance)), "--state", "{dir}/routes.json"]
        if take_over:
            argv += ["--take-over", str(handover_socket(admin, instance))]
        argv += ["--key-file", str(keys), "--secrets", str(secrets)]
        argv += [f"--origin={origin}" for origin in origins]
        argv += [f"--limit={limit}" for limit in limits]
        container = None
        if target == DOCKER:
            # On the host's network: see DESIGN.md, "The gateway's container".
            reads = (str(keys.parent), str(secrets))
            container = Container(self.gateway_image()[0], reads=reads, writes=(str(admin),), host_network=True)
        # The port is the other's until it is handed over.
        port = None if take_over else split_address(listeners[0].address)[1]
        return Launch(tuple(argv), stop_grace_s=20.0, port=port, container=container)

    @cached_property
    def http(self) -> EngineHttp:
        from orchestrator.drivers.engine_http import EngineHttp

        return EngineHttp()

    @cached_property
    def records(self) -> Records:
        from orchestrator.drivers.records import Records
        from orchestrator.engines.settings import read_settings

        return Records(self.settings.records, read_settings)

    def sampling(self, gpus: tuple[str, ...]) -> AbstractContextManager[Callable[[], tuple[GpuSample, ...]]]:
        """What to call for a sample of each of these GPUs (UUIDs), as long as the context lasts."""
        from orchestrator.drivers.nvml_samples import sampling

        return sampling(gpus)

    @cached_property
    def clock(self) -> SystemClock:
        from orchestrator.drivers.clock import SystemClock

        return SystemClock()

    # --- its parts

    @cached_property
    def local(self) -> LocalTarget:
        from orchestrator.drivers.local.processes import LocalTarget

        return LocalTarget(self.settings.processes, self.settings.logs, self.environments.bin, sys.executable)

    @cached_property
    def daemon(self) -> Daemon:
        from orchestrator.drivers.docker.daemon import Daemon
        from orchestrator.drivers.docker.endpoints import meant

        said = self.settings
        return Daemon(meant(said.docker_host, said.docker_context, said.docker_config, said.containers))

    @cached_property
    def docker(self) -> DockerTarget:
        from orchestrator.drivers.docker.containers import DockerTarget

        kept = self.settings
        return DockerTarget(self.daemon, self.images, kept.data, kept.containers, kept.container_cache, kept.logs)

    @cached_property
    def llmcompressor(self) -> LlmCompressor:
        from orchestrator.drivers.local.llmcompressor import LlmCompressor

        return LlmCompressor(self.environments.bin, self.read_host)

    @cached_property
    def llama_cpp_tools(self) -> LlamaCppTools:
        from orchestrator.app.llama_cpp_tools import LlamaCppTools

        return LlamaCppTools(self)

    @cached_property
    def unknown_weights(self) -> UnknownWeights:
        from orchestrator.artifacts.families import unknown_architecture
        from orchestrator.drivers.weights import UnknownWeights

        return UnknownWeights(self.settings.unknown_weights, unknown_architecture)

    @cached_property
    def catalog(self) -> WeightsCatalog:
        from orchestrator.drivers.weights import WeightsCatalog

        return WeightsCatalog(
            self.store,
            self.settings.hash_cache,
            lambda *of: self.builder.gguf_shape(*of),
            lambda path: self.builder.meaning(path),
        )

    @cached_property
    def lock_files(self) -> LockFiles:
        from orchestrator.drivers.records import LockFiles

        return LockFiles(self.settings.records)

    # --- what deciding needs

    def observe(self) -> Observed:
        """The world now."""
        from orchestrator.observe import observe

        return observe(self)

    @cached_property
    def host(self) -> Host:
        """The machine, read once."""
        return self.read_host()

    @cached_property
    def docker_facts(self) -> DockerFacts:
        """What the daemon is; asked once."""
        return self.daemon.facts()

    @property
    def attends_docker(self) -> bool:
        """Whether the daemon is asked at all; see `attend_docker`."""
        return self.docker.in_use

    def attend_docker(self) -> None:
        """From now on the daemon is asked, although nothing of this data directory was ever there."""
        self.docker.attend()

    @cached_property
    def pins(self) -> Pins:
        """What is pinned of each engine: shipped, and before it the images that the user has pinned."""
        from orchestrator import resources
        from orchestrator.engines import ENGINES

        return {name: resources.engine_pin(name, self.settings.pins) for name in ENGINES}

    def builder_spec(self, name: str) -> EnvironmentSpec:
        """The environment of a builder, for what this machine computes on."""
        from orchestrator import resources
        from orchestrator.core.pins import Accelerator

        index = self.settings.torch_index
        accelerator = Accelerator.CUDA if self.host.gpus else Accelerator.CPU
        spec = resources.builder_pins()[name].environment(accelerator, (index,) if index is not None else None)
        if spec is None:
            raise HostError(f"No build of {name} is pinned for {accelerator.value}.")
        return spec

    def instrument_spec(self, name: str) -> EnvironmentSpec:
        """The environment of a program that measures; it needs no GPU, wherever what it asks computes."""
        from orchestrator import resources
        from orchestrator.core.pins import Accelerator

        index = self.settings.torch_index
        pin = resources.instrument_pins()[name]
        spec = pin.environment(Accelerator.CPU, (index,) if index is not None else None)
        assert spec is not None, f"profiles/instruments/{name}.toml has a build for the CPU"
        return spec

    def calibration(self, texts: CalibrationTexts) -> Calibration:
        """What 4-bit activations are calibrated with, and where."""
        from orchestrator import resources
        from orchestrator.core.calibration import Calibration

        path = Path(texts.path) if texts.path is not None else resources.calibration_texts()
        digest = self.catalog.digest(path, self.progress)
        return Calibration(str(path), digest, texts.samples, texts.tokens, self.builder_spec("llmcompressor"))

    @cached_property
    def secrets(self) -> EngineSecrets:
        """What engines ask of whoever asks them, on both targets."""
        from orchestrator.drivers.secrets import EngineSecrets

        return EngineSecrets(self.settings.secrets)

    @cached_property
    def keys(self) -> KeyFile:
        from orchestrator.drivers.keys import KeyFile

        return KeyFile(self.settings.keys, self.settings.old_keys)

    def gateway_image(self) -> tuple[str, ImagePin | str]:
        """The name of the gateway's image and the base that it is made on: a pinned one, or the ID of one that the
        user has named, which has to be here."""
        from orchestrator import resources
        from orchestrator.drivers.docker import gateway_image

        if self.settings.gateway_base is not None:
            found = self.images.details(self.settings.gateway_base)
            if found is None:
                raise self._no_base(self.settings.gateway_base)
            facts = found.facts
            if why := gateway_image.unfit(facts.python):
                raise PlanRefused(
                    f"The gateway cannot run in {self.settings.gateway_base} (ORCH_GATEWAY_BASE): {why}.",
                    hint=f"Name an image that has Python {gateway_image.python()}: ORCH_GATEWAY_BASE=IMAGE:TAG; or "
                    f"install orch with Python {facts.python}.",
                )
            return gateway_image.reference(facts.id), facts.id
        pin = resources.gateway_bases().get(gateway_image.python())
        if pin is None:
            raise PlanRefused(
                f"No base image for the gateway is pinned that has Python {gateway_image.python()}.",
                hint="Name one that has: ORCH_GATEWAY_BASE=IMAGE:TAG",
            )
        return gateway_image.reference(pin.reference), pin

    def _no_base(self, name: str) -> HostError:
        from orchestrator import resources
        from orchestrator.drivers.docker.gateway_image import python

        pin = resources.gateway_bases().get(python())
        instead = f" Without ORCH_GATEWAY_BASE, {pin.name} is taken." if pin is not None else ""
        ways = f"docker pull {name} brings it, where a registry has it; offline: orch images load FILE."
        return HostError(f"The image {name} (ORCH_GATEWAY_BASE) is not here.", hint=f"{ways}{instead}")

    def resolve_context(self, observed: Observed, profile: Profile) -> ResolveContext:
        """Pins, templates and the store's layout, for resolving a profile."""
        from orchestrator import resources
        from orchestrator.core.memory import declared_pool
        from orchestrator.drivers.weights import ReadyArtifacts
        from orchestrator.engines.context import ResolveContext

        declared = self.settings.engine_memory
        return ResolveContext(
            pins=self.pins,
            render=resources.render_template,
            store_path=self.store.path,
            finished=observed.finished,
            torch_index=self.settings.torch_index,
            docker=self.docker_facts if self.attends_docker else None,
            images=observed.images,
            calibration=lambda: self.calibration(profile.calibration),
            unknown=lambda weights: self.unknown_weights.what(weights),
            tools=lambda: self.llama_cpp_tools.here,
            ready=ReadyArtifacts(
                profile.ready_made, lambda recipe, ready: self.catalog.of_ready_made(recipe, ready, self.progress)
            ),
            engine_memory=declared_pool(declared, observed.engines) if declared is not None else None,
        )


def quantizer_library() -> Path:
    """The shared library of the xllamacpp wheel, which exports ggml's quantizer. Found without importing it."""
    spec = find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    found = sorted(folder.glob("xllamacpp*.so")) if folder is not None else []
    if not found:
        raise HostError(
            "The xllamacpp package is not installed.", hint="Reinstall orch: it is one of its dependencies."
        )
    return found[0]
