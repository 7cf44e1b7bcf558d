"""Qwen3-8B as profiles, figures and requests to serve it, on machines that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.asks import GIB, context_of, gpu, profile_of, tiny
from fakes.world import FakeWorld

from orchestrator import resources
from orchestrator.core.deployment import DeploymentSpec, Desired
from orchestrator.core.gateway import GatewaySpec
from orchestrator.core.gateway_status import Listener
from orchestrator.core.host import Gpu, Host
from orchestrator.core.profile import Profile, parse_profile
from orchestrator.core.weights import Shape, WeightsFacts
from orchestrator.engines.resolve import resolve
from orchestrator.engines.settings import read_settings
from orchestrator.errors import PlanRefused
from orchestrator.planning.deploy import plan_deploy
from orchestrator.planning.parts import Limits

QWEN3_8B = Shape(
    layers=36, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=12288, vocab=151936, tied=False
)
QWEN3_8B_BYTES = 16_381_470_720
NVFP4_BYTES = 6_396_931_056


def qwen3_8b(**changes: Any) -> Profile:
    """The shipped profile; `changes` are `table__key=value`."""
    profile = parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b", read_settings)
    return with_settings(profile, {key.replace("__", "."): value for key, value in changes.items()})


def with_settings(profile: Profile, settings: dict[str, float]) -> Profile:
    """A profile with settings by their path in its file."""
    document = profile.model_dump()
    for path, value in settings.items():
        *tables, key = path.split(".")
        part = document
        for table in tables:
            part = part[table]
        assert key in part
        part[key] = value
    return profile_of(document)


def refusal(profile: Profile, engine: str, on: Host) -> PlanRefused | None:
    """What `orch up ENGINE` is refused with for Qwen3-8B, whose weights are here."""
    source = profile.weights.hub
    weights = WeightsFacts(str(source), "weights-1", "/store/weights-1", source, QWEN3_8B_BYTES, QWEN3_8B)
    desired = Desired(spec=DeploymentSpec(profile=profile, engine=engine, target="local"))
    observed = replace(FakeWorld(on).observe(), finished={"weights-1": QWEN3_8B_BYTES})
    try:
        made = resolve(desired.spec, (), weights, on, context_of(tiny()))
        plan_deploy("up", made, desired, observed, GatewaySpec((Listener("127.0.0.1:8484"),)), Limits(900.0, 300.0))
    except PlanRefused as error:
        return error
    return None


def alike(name: str, capability: tuple[int, int], *free: int) -> tuple[Gpu, ...]:
    """GPUs of 32 GiB with so many free."""
    one = gpu(name, capability, 32)
    return tuple(
        replace(one, uuid=f"GPU-{name}-{i}", index=i, minor=i, memory_free=gib * GIB) for i, gib in enumerate(free)
    )
