"""From a command in words to a Plan, for the tiny profile: what the CLI does between observe and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fakes.materials import store_path
from orchestrator import resources
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import Adapter, Desired, Wish
from orchestrator.core.host import Gpu, Host
from orchestrator.core.observed import Observed
from orchestrator.core.pins import Accelerator, EnginePin, LocalPin
from orchestrator.core.plan import Limits, Resolved, plan_deploy, plan_down, plan_down_all
from orchestrator.core.profile import Profile
from orchestrator.core.steps import Plan
from orchestrator.core.weights import Shape, WeightsFacts
from orchestrator.engines.resolve import Shipped, fitted, resolve

LISTEN = "127.0.0.1:8484"
GIB = 2**30
WEIGHTS_BYTES = 2 * GIB
# 1 KiB of KV cache per token.
SHAPE = Shape(layers=4, hidden=256, heads=4, kv_heads=1, head_dim=64, intermediate=768, vocab=4096, tied=True)
RANK = 8

PINS = {
    "vllm": EnginePin(
        engine="vllm",
        local=(
            LocalPin(accelerator=Accelerator.CPU, version="1.0", requirements=("vllm==1.0+cpu",)),
            LocalPin(accelerator=Accelerator.CUDA, version="1.0", requirements=("vllm==1.0",)),
        ),
    )
}
CPU = Host(
    cpus=4,
    memory_total=64 * GIB,
    memory_available=48 * GIB,
    cpu_flags=frozenset({"avx2", "fma", "f16c", "bmi2", "avx512f"}),
)


def gpu(name: str, capability: tuple[int, int], gib: int) -> Gpu:
    """An idle GPU."""
    return Gpu(f"GPU-{name}", f"NVIDIA {name}", gib * GIB, gib * GIB - GIB // 2, capability)


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


def _render(name: str, values: Mapping[str, Any]) -> str:
    """The shipped templates, each text made once: thousands of plans are made of a dozen deployments."""
    key = (name, repr(sorted(values.items())))
    if key not in _rendered:
        _rendered[key] = resources.render_template(name, values)
    return _rendered[key]


_rendered: dict[tuple[str, str], str] = {}


def shipped(finished: dict[str, int] | None = None) -> Shipped:
    """The shipped templates, pins of our own, and the fake store."""
    return Shipped(PINS, _render, store_path, finished or {})


def adapter(text: str, profile: Profile) -> Adapter:
    """An adapter from `NAME`, or `NAME@VERSION` for other bytes of that name, or `NAME/RANK`."""
    text, _, rank = text.partition("/")
    name, _, _ = text.partition("@")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return fitted(name, digest, int(rank or RANK), f"/adapters/{text}", weights_of(profile), shipped())


def resolved(desired: Desired, host: Host, finished: dict[str, int] | None = None) -> Resolved:
    """What is wanted, on this host."""
    wish = desired.wish
    return resolve(wish, desired.adapters, weights_of(wish.profile), host, shipped(finished))


def wanted(command: str, profile: Profile, observed: Observed) -> Desired:
    """What `up`, `migrate`, `rollback` and `lora` want of the profile."""
    words = command.split()
    present = observed.desired.get(profile.name)
    match words:
        case ["up"] | ["up", "--fresh"] if present is not None:
            return present.changed_to(present.wish.model_copy(update={"profile": profile}))
        case ["up", engine, *recipe] | ["migrate", engine, *recipe]:
            wish = Wish(profile=profile, engine=engine, target="local", recipe=Recipe(recipe[0]) if recipe else None)
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


def plan_of(command: str, profile: Profile, observed: Observed, limits: Limits | None = None) -> Plan:
    """The Plan of a command."""
    limits = limits or Limits()
    if command == "down":
        return plan_down(profile.name, observed, limits)
    if command == "down --all":
        return plan_down_all(observed, limits)
    desired = wanted(command, profile, observed)
    made = resolved(desired, observed.host, dict(observed.finished))
    return plan_deploy(command.split()[0], made, desired, observed, LISTEN, limits, fresh="--fresh" in command)


def plan_status(profile: Profile, observed: Observed) -> Plan:
    """What `status` asks: the plan to what is recorded."""
    desired = observed.desired[profile.name]
    made = resolved(desired, observed.host, dict(observed.finished))
    return plan_deploy("status", made, desired, observed, LISTEN, Limits())
