"""From a command in words to a Plan, for the tiny profile: orch itself decides, over facts that are made up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fakes.storage import store_path
from orchestrator import resources
from orchestrator.app.deploy import Options, Waiting, plan_for, plan_taking_down, plan_to
from orchestrator.app.intent import AddAdapter, GoBack, Intent, MoveTo, RemoveAdapter, Serve
from orchestrator.app.orchestrator import Orchestrator
from orchestrator.app.resolution import resolve_desired
from orchestrator.core.artifact import FileEntry, Recipe, artifact_key
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Adapter, Desired
from orchestrator.core.docker import DockerFacts
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.form import Form
from orchestrator.core.gateway_status import Listener
from orchestrator.core.host import Gpu, Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER, LOCAL, Container, Launch
from orchestrator.core.meaning import ChatTemplate, Meaning
from orchestrator.core.observed import GatewayObserved, Observed
from orchestrator.core.pins import Accelerator, EnginePin, ImagePin, LocalPin
from orchestrator.core.plan import Plan
from orchestrator.core.profile import CalibrationTexts, Profile, ReadyMade, Weights
from orchestrator.core.progress import Progress, silent
from orchestrator.core.resolved import Resolved
from orchestrator.core.weights import HubSnapshot, HubSource, ReadyFacts, Shape, WeightsFacts
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.prerequisites import fitted
from orchestrator.engines.settings import read_settings
from orchestrator.settings import Settings

LISTEN = "127.0.0.1:8484"
GATEWAY_IMAGE = "orch-gateway:1"
GIB = 2**30
WEIGHTS_BYTES = 2 * GIB
# 1 KiB of KV cache per token.
SHAPE = Shape(layers=4, hidden=256, heads=4, kv_heads=1, head_dim=64, intermediate=768, vocab=4096, tied=True)
RANK = 8


def image(name: str, tag: str, *accelerators: Accelerator, cuda: str | None = None) -> ImagePin:
    """A pinned image; its digest follows from its name."""
    digest = f"sha256:{hashlib.sha256(f'{name}:{tag}'.encode()).hexdigest()}"
    return ImagePin(
        image=name, tag=tag, digest=digest, accelerators=accelerators, cuda=cuda, verified=False, source="a test"
    )


PINS = {
    "vllm": EnginePin(
        engine="vllm",
        docker=(
            image("vllm/vllm-openai", "v1", Accelerator.CUDA, cuda="13.0"),
            image("vllm/vllm-openai", "v1-cu129", Accelerator.CUDA, cuda="12.9"),
        ),
        local=(
            LocalPin(accelerator=Accelerator.CPU, version="1.0", requirements=("vllm==1.0+cpu",)),
            LocalPin(accelerator=Accelerator.CUDA, version="1.0", requirements=("vllm==1.0",)),
        ),
    ),
    "ollama": EnginePin(
        engine="ollama",
        docker=(
            image("ollama/ollama", "1", Accelerator.CUDA, Accelerator.CPU),
            image("ollama/ollama", "1-rocm", Accelerator.ROCM),
        ),
    ),
}
CALIBRATION = Calibration("/texts.jsonl", "c0ffee", 8, 64, EnvironmentSpec("llmcompressor-cpu", "1.0", ("it==1",)))
GATEWAY_BASE = image("python", "3-slim", Accelerator.CPU)
# A daemon with the NVIDIA toolkit's hook, under systemd.
DAEMON = DockerFacts(
    version="28.0",
    runtimes=("nvidia", "runc"),
    hook=True,
    nodes=("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"),
    cgroup_driver="systemd",
)
CPU = Host(
    cpus=4,
    memory_total=64 * GIB,
    memory_available=48 * GIB,
    cpu_flags=frozenset({"avx2", "fma", "f16c", "bmi2", "avx512f"}),
)


def gpu(name: str, capability: tuple[int, int], gib: int) -> Gpu:
    """An idle GPU."""
    return Gpu(f"GPU-{name}", f"NVIDIA {name}", gib * GIB, gib * GIB - GIB // 2, capability, minor=0)


def tiny(**changes: Any) -> Profile:
    """The tiny profile; `changes` are merged into its tables."""
    document: dict[str, Any] = {
        "name": "tiny",
        "public_names": ["tiny", "tiny:latest"],
        "weights": {"path": "/weights/tiny"},
        "serving": {"context": 512, "parallel": 2},
        "lora": {"max_adapters": 2, "max_rank": 16},
        "engines": {"vllm": {"kv_cache_mib": 64}},
    }
    return profile_of(_merged(document, changes))


def profile_of(document: Mapping[str, Any]) -> Profile:
    """A profile as its file would give it."""
    return Profile.model_validate({**document, "engines": read_settings(document.get("engines", {}), "forbid")})


def _merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in changes.items():
        merged[key] = _merged(document.get(key, {}), value) if isinstance(value, dict) else value
    if "repo" in changes:
        merged.pop("path", None)
    return merged


def _render(name: str, values: Mapping[str, Any]) -> str:
    """The shipped templates, each text made once: thousands of plans are made of a dozen deployments."""
    key = (name, repr(sorted(values.items())))
    if key not in _rendered:
        _rendered[key] = resources.render_template(name, values)
    return _rendered[key]


_rendered: dict[tuple[str, str], str] = {}


CHATS = Meaning(templates=(ChatTemplate(name="default", text="{{ messages }}"),))


class MadeUpCatalog:
    """Weights of which all is known where they are a directory's, and nothing yet where they are a hub's."""

    def of_hub(self, source: HubSource) -> WeightsFacts:
        key = artifact_key(Recipe.WEIGHTS, str(source))
        return WeightsFacts(str(source), key, str(store_path(key)), source)

    def of_directory(self, weights: Weights, progress: Progress) -> WeightsFacts:
        key = artifact_key(Recipe.WEIGHTS, "dir:tiny")
        return WeightsFacts("dir:tiny", key, str(weights.path), None, WEIGHTS_BYTES, SHAPE)

    def meaning(self, path: Path) -> Meaning:
        return CHATS

    def of_ready_made(self, recipe: Recipe, ready: ReadyMade, progress: Progress) -> ReadyFacts:
        source = f"{ready.hub}/{ready.file}" if ready.hub is not None else f"file:{ready.path}"
        return ReadyFacts(
            source, artifact_key(recipe, source, brought=True), ready.hub, ready.file or "", ready.path or ""
        )


@dataclass(frozen=True)
class MadeUpAdapter:
    """What a PEFT directory says of itself; see `adapter`."""

    rank: int
    source: str


class MadeUpHub:
    """A hub whose repositories have no small files, of which MadeUpReader makes what it makes of all."""

    def snapshot(
        self, source: HubSource, timeout: float, names: Sequence[str] | None = None, progress: Progress = silent
    ) -> HubSnapshot:
        return HubSnapshot(source, ())

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        return ()


class MadeUpReader:
    """Adapters by the name of their directory; every model has a chat template, and says nothing else."""

    def meaning(self, path: Path) -> Meaning:
        return CHATS

    def adapter(self, directory: Path, base: Path | None) -> MadeUpAdapter:
        text, _, rank = directory.relative_to("/adapters").as_posix().partition("/")
        return MadeUpAdapter(int(rank or RANK), f"dir:{hashlib.sha256(text.encode()).hexdigest()}")


class MadeUpStore:
    """A store that has only places."""

    def path(self, key: str) -> Path:
        return store_path(key)


def gateway_launch(
    target: str,
    instance: str,
    listeners: tuple[Listener, ...],
    origins: tuple[str, ...],
    limits: tuple[str, ...],
    take_over: bool,
) -> Launch:
    """How the fake gateway is started."""
    listen = listeners[0].address
    argv = ("{python}", "-m", "orchestrator.gateway", "--listen", listen, *(("--take-over",) if take_over else ()))
    argv += tuple(f"--origin={origin}" for origin in origins)
    container = Container(GATEWAY_IMAGE, host_network=True) if target == DOCKER else None
    port = None if take_over else int(listen.rpartition(":")[2])
    return Launch(argv, stop_grace_s=20.0, port=port, container=container)


class MadeUpOrchestrator(Orchestrator):
    """orch on a machine that is made up: its weights, pins, daemon and images. What it decides is orch's own."""

    def __init__(self, host: Host = CPU, docker: DockerFacts = DAEMON) -> None:
        settings = Settings(Path("/nowhere"), LISTEN, listen_given=False, torch_index=None, offline=True, target=LOCAL)
        super().__init__(settings, silent, lambda value, text: None)
        self.host = host
        self.docker_facts = docker
        self.pins = PINS
        self.catalog = MadeUpCatalog()  # type: ignore[assignment]
        self.store = MadeUpStore()  # type: ignore[assignment]
        self.builder = MadeUpReader()  # type: ignore[assignment]
        self.hub = MadeUpHub()
        self.targets = dict.fromkeys((LOCAL, DOCKER))  # type: ignore[assignment]

    @property
    def attends_docker(self) -> bool:
        return True

    def calibration(self, texts: CalibrationTexts) -> Calibration:
        return CALIBRATION

    def gateway_image(self) -> tuple[str, ImagePin | str]:
        return GATEWAY_IMAGE, GATEWAY_BASE

    def gateway_launch(
        self,
        target: str,
        instance: str,
        listeners: tuple[Listener, ...],
        origins: tuple[str, ...],
        limits: tuple[str, ...],
        take_over: bool,
    ) -> Launch:
        return gateway_launch(target, instance, listeners, origins, limits, take_over)

    def resolve_context(self, observed: Observed, profile: Profile) -> ResolveContext:
        return replace(super().resolve_context(observed, profile), render=_render)


def nothing_but(
    host: Host, finished: Mapping[str, int] | None = None, images: Mapping[str, ImageFacts] | None = None
) -> Observed:
    """A world with these things in it, where nothing runs."""
    return Observed(
        host=host,
        engines=(),
        gateway=GatewayObserved(None, None),
        finished=finished or {},
        environments={},
        desired={},
        images=images or {},
    )


def weights_of(profile: Profile) -> WeightsFacts:
    """What is known of the profile's weights."""
    source = profile.weights.hub
    return MadeUpCatalog().of_hub(source) if source else MadeUpCatalog().of_directory(profile.weights, silent)


def context_of(
    profile: Profile, finished: Mapping[str, int] | None = None, docker: DockerFacts = DAEMON
) -> ResolveContext:
    """What resolving the profile needs."""
    return MadeUpOrchestrator(docker=docker).resolve_context(nothing_but(CPU, finished), profile)


def adapter(text: str, profile: Profile) -> Adapter:
    """An adapter from `NAME`, or `NAME@VERSION` for other bytes of that name, or `NAME/RANK`."""
    facts = MadeUpReader().adapter(Path("/adapters", text), None)
    name, _, _ = text.partition("/")[0].partition("@")
    digest = facts.source.removeprefix("dir:")
    return fitted(name, digest, facts.rank, f"/adapters/{text}", weights_of(profile), context_of(profile))


def resolved(
    desired: Desired,
    host: Host,
    finished: Mapping[str, int] | None = None,
    docker: DockerFacts = DAEMON,
    images: Mapping[str, ImageFacts] | None = None,
) -> Resolved:
    """What is wanted, on this host."""
    return resolve_desired(MadeUpOrchestrator(host, docker), desired, nothing_but(host, finished, images))[0]


def intent_of(command: str, profile: Profile) -> Intent:
    """What `up`, `migrate`, `rollback` and `lora` ask of the profile; `--target NAME` ends `up` and `migrate`, or
    `--origin URL`, `--form NAME` or `--keep-old` do, which are no part of it."""
    command = command.partition(" --origin ")[0].partition(" --form ")[0].removesuffix(" --keep-old")
    command, _, asked = command.partition(" --target ")
    target = asked or None
    match command.split():
        case ["up"] | ["up", "--fresh" | "--gateway"]:
            return Serve(profile=profile)
        case ["up", engine, *recipe]:
            return Serve(engine, profile, target, Recipe(recipe[0]) if recipe else None)
        case ["migrate", engine, *recipe]:
            return MoveTo(engine, profile.name, target, Recipe(recipe[0]) if recipe else None)
        case ["rollback"]:
            return GoBack(profile.name)
        case ["lora", "add", text]:
            return AddAdapter(text.partition("/")[0].partition("@")[0], Path("/adapters", text), profile.name)
        case ["lora", "rm", name]:
            return RemoveAdapter(name, profile.name)
        case _:
            raise ValueError(f"no such command here: {command}")


def plan_of(
    command: str,
    profile: Profile,
    observed: Observed,
    options: Options | None = None,
    docker: DockerFacts = DAEMON,
    origins: tuple[str, ...] | None = None,
    engine_memory: int | None = None,
) -> Plan:
    """The Plan of a command, where ORCH_ORIGINS and ORCH_ENGINE_MEMORY say these."""
    words = command.split()
    more = tuple(word for before, word in pairwise(words) if before == "--origin")
    forms = [Form(word) for before, word in pairwise(words) if before == "--form"]
    waiting = Waiting(form=forms[0] if forms else None, keep_old="--keep-old" in words)
    fresh, renew = "--fresh" in words, "--gateway" in words
    options = options or Options(waiting=waiting, fresh=fresh, renew_gateway=renew, more_origins=more)
    if command.startswith("down"):
        return plan_taking_down(None, command == "down --all", observed, options.waiting.drain_s, forget=False)
    orch = MadeUpOrchestrator(observed.host, docker)
    orch.settings = replace(orch.settings, origins=origins, engine_memory=engine_memory)
    return plan_for(orch, words[0], intent_of(command, profile), observed, options)


def plan_status(profile: Profile, observed: Observed, docker: DockerFacts = DAEMON) -> Plan:
    """What `status` asks: the plan to what is recorded."""
    orch = MadeUpOrchestrator(observed.host, docker)
    return plan_to(orch, "status", observed.desired[profile.name], observed, Options(), learn=False)
