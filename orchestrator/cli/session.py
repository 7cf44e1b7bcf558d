"""One run of the CLI: settings, screen, signals, lock, journal, and the World with its concrete drivers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.errors import HostError, Interrupted, PlanRefused
from orchestrator.render import Human, JsonLines, Screen
from orchestrator.settings import Settings, read_settings

if TYPE_CHECKING:
    from orchestrator.artifacts.builder import Builder
    from orchestrator.artifacts.store import Store
    from orchestrator.core.calibration import Calibration
    from orchestrator.core.docker import DockerFacts
    from orchestrator.core.environment import EnvironmentSpec
    from orchestrator.core.events import Event
    from orchestrator.core.host import Host
    from orchestrator.core.launch import Launch
    from orchestrator.core.observed import Observed
    from orchestrator.core.pins import ImagePin
    from orchestrator.core.profile import CalibrationTexts, Profile
    from orchestrator.core.steps import Plan
    from orchestrator.drivers.base import World
    from orchestrator.drivers.docker.containers import DockerTarget
    from orchestrator.drivers.docker.daemon import Daemon
    from orchestrator.drivers.docker.images import DockerImages
    from orchestrator.drivers.local.environments import Environments
    from orchestrator.drivers.local.llmcompressor import LlmCompressor
    from orchestrator.drivers.local.processes import LocalTarget
    from orchestrator.drivers.records import LockFiles
    from orchestrator.drivers.weights import WeightsCatalog
    from orchestrator.engines.base import Pins
    from orchestrator.engines.resolve import Shipped

# A gateway that is restarted (by its keeper, by the Docker daemon) is back by then.
GATEWAY_PATIENCE_S = 15.0


class Session:
    """What a verb works with. Drivers are made when they are first asked for: a verb pays only for what it uses."""

    def __init__(self, as_json: bool) -> None:
        self.settings: Settings = read_settings(os.environ)
        if self.settings.data.exists() and not self.settings.data.is_dir():
            raise HostError(f"{self.settings.data} is no directory.", hint="ORCH_HOME names orch's data directory.")
        self.screen: Screen = JsonLines() if as_json else Human()
        self._interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True

    def interrupted(self) -> bool:
        """Whether the user asked to stop."""
        return self._interrupted

    def ask(self, question: str) -> bool:
        """Yes or no, from the terminal; no where there is none. Ctrl-C is Interrupted."""
        if not sys.stdin.isatty():
            return False
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            sys.stderr.write(f"{question} [y/N] ")
            sys.stderr.flush()
            return sys.stdin.readline().strip().lower() in {"y", "yes"}
        except KeyboardInterrupt as error:
            raise Interrupted() from error
        finally:
            signal.signal(signal.SIGINT, before)

    def progress(self, what: str, done: int, total: int) -> None:
        """The Progress of work outside of a plan."""
        if self._interrupted:
            raise Interrupted()
        self.screen.progress(what, done, total)

    @cached_property
    def store(self) -> Store:
        from orchestrator.artifacts.store import Store

        for place in self.settings.shared_stores:
            if not place.is_dir():
                raise HostError(
                    f"The shared store {place} is not there.", hint="Mount it, or take it out of ORCH_STORES."
                )
        return Store(self.settings.store, self.settings.shared_stores, self.settings.store_limit)

    @cached_property
    def builder(self) -> Builder:
        from orchestrator.artifacts.builder import Builder

        return Builder(quantizer_library(), self.llmcompressor.quantize)

    @cached_property
    def llmcompressor(self) -> LlmCompressor:
        from orchestrator.drivers.host import read_host
        from orchestrator.drivers.local.llmcompressor import LlmCompressor

        return LlmCompressor(self.environments.bin, read_host)

    @cached_property
    def environments(self) -> Environments:
        from orchestrator.drivers.local.environments import Environments

        return Environments(self.settings.environments)

    @cached_property
    def local(self) -> LocalTarget:
        from orchestrator.drivers.local.processes import LocalTarget

        return LocalTarget(self.settings.processes, self.settings.logs, self.environments.bin, sys.executable)

    @cached_property
    def daemon(self) -> Daemon:
        from orchestrator.drivers.docker.daemon import SOCKET, Daemon

        return Daemon(self.settings.docker_host or SOCKET)

    @cached_property
    def images(self) -> DockerImages:
        from orchestrator.drivers.docker.images import DockerImages

        return DockerImages(self.daemon, self.settings.loaded_images, lambda: self.docker.in_use)

    @cached_property
    def docker(self) -> DockerTarget:
        from orchestrator.drivers.docker.containers import DockerTarget

        kept = self.settings
        return DockerTarget(self.daemon, self.images, kept.data, kept.containers, kept.container_cache, kept.logs)

    @cached_property
    def docker_facts(self) -> DockerFacts:
        """What the daemon is; asked once."""
        return self.daemon.facts()

    @cached_property
    def pins(self) -> Pins:
        """The engine pins: shipped, and before them the images that the user has pinned."""
        from orchestrator import resources

        return resources.engine_pins(self.settings.pins)

    @cached_property
    def host(self) -> Host:
        """The machine, read once."""
        from orchestrator.drivers.host import read_host

        return read_host()

    @cached_property
    def catalog(self) -> WeightsCatalog:
        from orchestrator.drivers.weights import WeightsCatalog

        return WeightsCatalog(self.store, self.settings.hash_cache, self.builder.gguf_shape)

    @cached_property
    def world(self) -> World:
        from orchestrator.drivers.base import World
        from orchestrator.drivers.clock import SystemClock
        from orchestrator.drivers.engine_http import EngineHttp
        from orchestrator.drivers.gateway_admin import GatewayAdmin
        from orchestrator.drivers.host import read_host
        from orchestrator.drivers.hub import Hub
        from orchestrator.drivers.records import Records

        return World(
            host=read_host,
            hub=Hub(
                offline=self.settings.offline,
                token_file=self.settings.hf_token_file,
                parallel=self.settings.pull_parallel,
            ),
            store=self.store,
            builder=self.builder,
            environments=self.environments,
            targets={self.local.name: self.local, self.docker.name: self.docker},
            images=self.images,
            gateway=GatewayAdmin(self.settings.admin_socket, patience_s=GATEWAY_PATIENCE_S),
            gateway_launch=self._gateway_launch,
            http=EngineHttp(),
            front=EngineHttp(self.api_key),
            records=Records(self.settings.records),
            clock=SystemClock(),
        )

    @cached_property
    def lock_files(self) -> LockFiles:
        from orchestrator.drivers.records import LockFiles

        return LockFiles(self.settings.records)

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

    def calibration(self, texts: CalibrationTexts) -> Calibration:
        """What 4-bit activations are calibrated with, and where."""
        from orchestrator import resources
        from orchestrator.core.calibration import Calibration

        path = Path(texts.path) if texts.path is not None else resources.calibration_texts()
        digest = self.catalog.digest(path, self.progress)
        return Calibration(str(path), digest, texts.samples, texts.tokens, self.builder_spec("llmcompressor"))

    def api_key(self) -> str | None:
        """The key that the gateway asks for, if it asks for one."""
        from orchestrator.drivers.keys import first_key

        return first_key(self.settings.keys)

    def gateway_image(self) -> tuple[str, ImagePin | str]:
        """The name of the gateway's image and the base that it is made on: a pinned one, or the ID of one that the
        user has named, which has to be here."""
        from orchestrator import resources
        from orchestrator.drivers.docker import gateway_image

        if self.settings.gateway_base is not None:
            image = self.images.find(self.settings.gateway_base).id
            return gateway_image.reference(image), image
        pin = resources.gateway_bases().get(gateway_image.python())
        if pin is None:
            raise PlanRefused(
                f"No base image for the gateway is pinned that has Python {gateway_image.python()}.",
                hint="Name one that has: ORCH_GATEWAY_BASE=IMAGE:TAG",
            )
        return gateway_image.reference(pin.reference), pin

    def _gateway_launch(self, target: str, listen: str) -> Launch:
        from orchestrator.core.launch import DOCKER, Container, Launch

        admin, keys = self.settings.admin_socket, self.settings.keys
        argv = ["{python}", "-m", "orchestrator.gateway", "--listen", listen]
        argv += ["--admin", str(admin), "--state", "{dir}/routes.json"]
        if keys.exists():
            argv += ["--key-file", str(keys)]
        container = None
        if target == DOCKER:
            # On the host's network: see DESIGN.md, "The gateway's container".
            reads = (str(keys.parent),) if keys.exists() else ()
            image = self.gateway_image()[0]
            container = Container(image, reads=reads, writes=(str(admin.parent),), host_network=True)
        port = int(listen.rpartition(":")[2])
        return Launch(tuple(argv), stop_grace_s=20.0, port=port, container=container)

    def observe(self) -> Observed:
        """The world now."""
        from orchestrator.observe import observe

        return observe(self.world)

    def shipped(self, observed: Observed, profile: Profile) -> Shipped:
        """Pins, templates and the store's layout, for resolving a profile."""
        from orchestrator import resources
        from orchestrator.drivers.weights import ReadyArtifacts
        from orchestrator.engines.resolve import Shipped

        return Shipped(
            pins=self.pins,
            render=resources.render_template,
            store_path=self.store.path,
            finished=observed.finished,
            torch_index=self.settings.torch_index,
            docker=self.docker_facts if self.docker.in_use else None,
            images=observed.images,
            calibration=lambda: self.calibration(profile.calibration),
            ready=ReadyArtifacts(
                profile.artifacts, lambda recipe, ready: self.catalog.of_ready_made(recipe, ready, self.progress)
            ),
        )

    @contextmanager
    def exclusive(self, doing: str) -> Iterator[None]:
        """Hold the lock while the world is changed."""
        from orchestrator.drivers.records import exclusive

        with exclusive(self.settings.data / "lock", doing):
            yield

    def run(self, plan: Plan) -> None:
        """Run a plan under the screen's eyes and the journal's."""
        from orchestrator.core.events import EventKind
        from orchestrator.core.supply import builds_of
        from orchestrator.drivers.records import Journal
        from orchestrator.run import run

        for text in dict.fromkeys(build.recipe.loss for build in builds_of(plan) if build.recipe.loss):
            self.screen.note({"loss": text}, text)
        journal: Journal | None = Journal(self.settings.data / "journal.jsonl")

        def emit(event: Event) -> None:
            nonlocal journal
            try:
                self.screen.event(event)
            except OSError:
                # Nobody reads on (a closed pipe, a full disk): stop, and take back in silence.
                self._interrupted, self.screen = True, Screen()
            if journal is None or event.kind is EventKind.PROGRESS:
                return
            try:
                journal.append(event.to_json())
            except HostError as error:
                # The journal is for people; what is being done does not depend on it.
                journal = None
                self.screen.error(error)

        run(plan, self.world, emit, self.interrupted)

    def carry_out(self, doing: str, make_plan: Callable[[], Plan], only_plan: bool, alone: bool = True) -> Plan:
        """Make a plan and run it; with `only_plan` print it, and stop. `alone`: under the lock. What only adds to the
        store needs none: there each entry has its own."""
        if only_plan:
            plan = make_plan()
            self.screen.plan(plan)
            return plan
        with self.exclusive(doing) if alone else nullcontext():
            plan = make_plan()
            self.run(plan)
        return plan


def quantizer_library() -> Path:
    """The shared library of the xllamacpp wheel, which exports ggml's quantizer. Found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    found = sorted(folder.glob("xllamacpp*.so")) if folder is not None else []
    if not found:
        raise HostError(
            "The xllamacpp package is not installed.", hint="Reinstall orch: it is one of its dependencies."
        )
    return found[0]
