"""From a command in words to a Plan, for the tiny profile: what the CLI does between observe and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fakes.materials import store_path
from orchestrator import resources
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Adapter, Desired, Wish
from orchestrator.core.docker import DockerFacts
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Gpu, Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER
from orchestrator.core.observed import Observed
from orchestrator.core.pins import Accelerator, EnginePin, ImagePin, LocalPin
from orchestrator.core.plan import Door, Limits, plan_deploy, plan_down, plan_down_all
from orchestrator.core.profile import Profile
from orchestrator.core.resolved import Resolved
from orchestrator.core.steps import BuildImage, Plan, PullImage
from orchestrator.core.weights import ReadyFacts, Shape, WeightsFacts
from orchestrator.engines.resolve import Shipped, fitted, resolve

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
    return Profile.model_validate(_merged(document, changes))


def _merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in changes.items():
        merged[key] = _merged(document.get(key, {}), value) if isinstance(value, dict) else value
    if "repo" in changes:
        merged.pop("path", None)
    return merged


def weights_of(profile: Profile) -> WeightsFacts:
    """What is known of the profile's weights: all of a directory's, nothing yet of a hub's."""
    source = profile.weights.hub
    if source is None:
        key = artifact_key(Recipe.WEIGHTS, "dir:tiny")
        return WeightsFacts("dir:tiny", key, str(profile.weights.path), None, WEIGHTS_BYTES, SHAPE)
    key = artifact_key(Recipe.WEIGHTS, str(source))
    return WeightsFacts(str(source), key, str(store_path(key)), source)


def ready_of(profile: Profile) -> dict[Recipe, ReadyFacts]:
    """What is known of its ready-made artifacts, before they are here."""
    found = {}
    for recipe, ready in profile.artifacts.items():
        source = f"{ready.hub}/{ready.file}" if ready.hub is not None else f"file:{ready.path}"
        key = artifact_key(recipe, source)
        found[recipe] = ReadyFacts(source, key, ready.hub, ready.file or "", ready.path or "")
    return found


def _render(name: str, values: Mapping[str, Any]) -> str:
    """The shipped templates, each text made once: thousands of plans are made of a dozen deployments."""
    key = (name, repr(sorted(values.items())))
    if key not in _rendered:
        _rendered[key] = resources.render_template(name, values)
    return _rendered[key]


_rendered: dict[tuple[str, str], str] = {}


def shipped(
    finished: Mapping[str, int] | None = None,
    docker: DockerFacts = DAEMON,
    images: Mapping[str, ImageFacts] | None = None,
    ready: Mapping[Recipe, ReadyFacts] | None = None,
) -> Shipped:
    """The shipped templates, pins of our own, and the fake store."""
    return Shipped(
        PINS,
        _render,
        store_path,
        finished or {},
        docker=docker,
        images=images or {},
        ready=ready or {},
        calibration=lambda: CALIBRATION,
    )


def adapter(text: str, profile: Profile) -> Adapter:
    """An adapter from `NAME`, or `NAME@VERSION` for other bytes of that name, or `NAME/RANK`."""
    text, _, rank = text.partition("/")
    name, _, _ = text.partition("@")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return fitted(name, digest, int(rank or RANK), f"/adapters/{text}", weights_of(profile), shipped())


def resolved(
    desired: Desired,
    host: Host,
    finished: Mapping[str, int] | None = None,
    docker: DockerFacts = DAEMON,
    images: Mapping[str, ImageFacts] | None = None,
) -> Resolved:
    """What is wanted, on this host."""
    wish = desired.wish
    around = shipped(finished, docker, images, ready_of(wish.profile))
    return resolve(wish, desired.adapters, weights_of(wish.profile), host, around)


def wanted(command: str, profile: Profile, observed: Observed) -> Desired:
    """What `up`, `migrate`, `rollback` and `lora` want of the profile; `--target NAME` ends `up` and `migrate`."""
    command, _, asked = command.partition(" --target ")
    present = observed.desired.get(profile.name)
    target = asked or (present.wish.target if present is not None else "local")
    match command.split():
        case ["up"] | ["up", "--fresh"] if present is not None:
            return present.changed_to(present.wish.model_copy(update={"profile": profile}))
        case ["up", engine, *recipe] | ["migrate", engine, *recipe]:
            wish = Wish(profile=profile, engine=engine, target=target, recipe=Recipe(recipe[0]) if recipe else None)
            return present.changed_to(wish) if present is not None else Desired(wish=wish)
        case ["rollback"] if present is not None and present.previous is not None:
            return present.changed_to(present.previous)
        case ["lora", "add", text] if present is not None:
            added = adapter(text, profile)
            others = [a for a in present.adapters if a.name != added.name]
            return present.model_copy(update={"adapters": (*others, added)})
        case ["lora", "rm", name] if present is not None:
            return present.model_copy(update={"adapters": tuple(a for a in present.adapters if a.name != name)})
    raise ValueError(f"no such command here: {command}")


def door(target: str, observed: Observed) -> Door:
    """The gateway for what is wanted on a target."""
    running = observed.gateway.instance
    if target != DOCKER or (running is not None and running.target != DOCKER):
        return Door(LISTEN, target)
    return Door(LISTEN, target, (PullImage(GATEWAY_BASE), BuildImage(GATEWAY_IMAGE, GATEWAY_BASE.reference)))


def plan_of(
    command: str, profile: Profile, observed: Observed, limits: Limits | None = None, docker: DockerFacts = DAEMON
) -> Plan:
    """The Plan of a command."""
    limits = limits or Limits()
    if command == "down":
        return plan_down(profile.name, observed, limits)
    if command == "down --all":
        return plan_down_all(observed, limits)
    desired = wanted(command, profile, observed)
    made = resolved(desired, observed.host, observed.finished, docker, observed.images)
    way_in, fresh = door(desired.wish.target, observed), "--fresh" in command
    return plan_deploy(command.split()[0], made, desired, observed, way_in, limits, fresh=fresh)


def plan_status(profile: Profile, observed: Observed, docker: DockerFacts = DAEMON) -> Plan:
    """What `status` asks: the plan to what is recorded."""
    desired = observed.desired[profile.name]
    made = resolved(desired, observed.host, observed.finished, docker, observed.images)
    return plan_deploy("status", made, desired, observed, door(desired.wish.target, observed), Limits())
