"""Garbage collection of the store, decided: what stays, what goes, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fakes.asks import CPU, adapter, context_of, plan_of, tiny, weights_of
from fakes.world import FakeWorld

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import DeploymentSpec
from orchestrator.core.launch import Instance
from orchestrator.core.lock_file import Lock, LockedEntry, LockedProfile
from orchestrator.core.profile import Profile
from orchestrator.engines.prerequisites import needed, needed_by_any_engine
from orchestrator.errors import PlanRefused
from orchestrator.planning.gc_roots import (
    GcPolicy,
    Stored,
    doubts,
    needed_by_engines,
    needed_by_lock,
    needed_for,
    refuse_unknown,
    sort_out,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DAY = GcPolicy(timedelta(hours=24))
NO_AGE = GcPolicy(timedelta(0))
HUB = {"repo": "owner/name", "revision": "c" * 40}


def stored(key: str, hours: float = 100, source: str = "hub:a/b@c", unfinished: bool = False) -> Stored:
    return Stored(key, 10, NOW - timedelta(hours=hours), source, unfinished)


@pytest.mark.parametrize(
    ("one", "policy", "stays", "why"),
    [
        (stored("a"), DAY, False, "nothing needs it"),
        (stored("needed"), DAY, True, "tiny is served with it"),
        (stored("needed"), GcPolicy(timedelta(0), weights=True, unfinished=True), True, "tiny is served with it"),
        (stored("a", hours=23), DAY, True, "made in the last 24 h"),
        (stored("a", hours=23), NO_AGE, False, "nothing needs it"),
        (stored("a", hours=-1), GcPolicy(timedelta(hours=0.5)), True, "made in the last 0.5 h"),
        (stored("a", unfinished=True), DAY, False, "unfinished, and nothing continues it"),
        (stored("a", hours=1, unfinished=True), DAY, True, "written to in the last 24 h"),
        (stored("needed", unfinished=True), DAY, True, "tiny is served with it"),
        (stored("needed", unfinished=True), GcPolicy(timedelta(0), unfinished=True), False, "unfinished"),
        (stored("a", source="dir:1"), DAY, False, "nothing needs it"),
    ],
)
def test_what_stays_and_why(one: Stored, policy: GcPolicy, stays: bool, why: str) -> None:
    (verdict,) = sort_out([one], {"needed": "tiny is served with it"}, {}, NOW, policy)
    assert (verdict.stays, verdict.why) == (stays, why)


def test_what_is_left_of_a_build_that_another_one_finished_is_not_needed() -> None:
    both = [stored("needed"), stored("needed", unfinished=True)]
    assert [verdict.stays for verdict in sort_out(both, {"needed": "x"}, {}, NOW, DAY)] == [True, False]


def test_what_a_profile_may_need_stays_while_a_directory_that_it_names_cannot_be_read() -> None:
    ready = {"gguf-q6_k": {"path": "/gone/q6.gguf"}}
    unsure = doubts("tiny may need it: gone", tiny(weights=HUB, artifacts=ready))
    sources = {"a": "dir:1", "b": "file:1", "c": f"hub:owner/name@{'c' * 40}", "d": f"hub:owner/name@{'d' * 40}"}
    found = sort_out([stored(key, source=source) for key, source in sources.items()], {}, unsure, NOW, DAY)
    assert [verdict.stays for verdict in found] == [True, True, True, False]
    assert found[0].why == "tiny may need it: gone"


def needs_of(profile: Profile, engine: str, finished: set[str], policy: GcPolicy, recipe: str = "") -> set[str]:
    """The recipes of what a spec needs."""
    spec = DeploymentSpec(profile=profile, engine=engine, target="local", recipe=Recipe(recipe) if recipe else None)
    adapters = (adapter("a", profile),)
    prerequisites = needed(spec, weights_of(profile), adapters, context_of(tiny()))
    return {key.rpartition("-")[0] for key in needed_for("why", prerequisites, adapters, finished, policy)}


def test_a_spec_needs_all_that_its_engine_may_serve() -> None:
    lora = {"adapter", "lora-gguf"}
    assert needs_of(tiny(weights=HUB), "llamacpp", set(), DAY) == {"weights", "gguf-q6_k"} | lora
    assert needs_of(tiny(weights=HUB), "vllm", set(), DAY) == {"weights", "view", "nvfp4a16"} | lora
    assert needs_of(tiny(weights=HUB), "vllm", set(), DAY, "gguf-bf16") == {"weights", "gguf-bf16"} | lora
    # Weights in a directory are no entry of the store.
    assert needs_of(tiny(), "llamacpp", set(), DAY) == {"gguf-q6_k"} | lora


def test_weights_go_only_when_asked_and_when_all_that_is_made_of_them_is_there() -> None:
    profile, policy = tiny(weights=HUB), GcPolicy(timedelta(0), weights=True)
    source = str(profile.weights.hub)
    gguf, a = artifact_key(Recipe.GGUF_Q6_K, source), adapter("a", profile)
    assert "weights" in needs_of(profile, "llamacpp", {gguf}, policy)
    assert "weights" not in needs_of(profile, "llamacpp", {gguf, a.gguf_key}, policy)
    assert "weights" in needs_of(profile, "llamacpp", {gguf, a.gguf_key}, DAY)
    served = tiny(weights=HUB, engines={"vllm": {"recipes": ["weights"]}})
    assert "weights" in needs_of(served, "vllm", {gguf}, policy)


def test_a_profile_may_be_served_with_all_that_any_of_its_engines_takes() -> None:
    profile = tiny(weights=HUB)
    whats = [
        step.what.rpartition("-")[0]
        for step in needed_by_any_engine(profile, weights_of(profile), (), context_of(tiny()))
    ]
    assert sorted(whats) == ["", "build gguf-q6_k", "build nvfp4a16", "build view"]


def test_a_lock_needs_its_entries() -> None:
    entry = LockedEntry(recipe=Recipe.WEIGHTS, source="hub:a/b@" + "c" * 40)
    lock = Lock(
        format=1,
        orch="1",
        weights="w",
        profile=LockedProfile(name="tiny", digest="1"),
        entries={"w": entry, "g": entry},
    )
    spare = GcPolicy(timedelta(0), weights=True)
    assert needed_by_lock("why", lock, {"w", "g"}, DAY) == {"w": "why", "g": "why"}
    assert needed_by_lock("why", lock, {"w"}, spare) == {"w": "why", "g": "why"}
    assert needed_by_lock("why", lock, {"w", "g"}, spare) == {"g": "why"}


def test_engines_need_what_they_were_started_with() -> None:
    world = FakeWorld(CPU)
    world.run(plan_of("up llamacpp", tiny(), world.observe()))
    world.run(plan_of("lora add a", tiny(), world.observe()))
    a = adapter("a", tiny())
    needs = needed_by_engines(world.observe())
    assert needs.keys() == {artifact_key(Recipe.GGUF_Q6_K, "dir:tiny"), a.key, a.gguf_key}
    assert all("tiny-llamacpp-g" in why for why in needs.values())


def test_records_that_cannot_be_read_are_a_refusal() -> None:
    observed = FakeWorld(CPU).observe()
    refuse_unknown(observed, ())
    with pytest.raises(PlanRefused, match="not every record"):
        refuse_unknown(observed, ("x.json cannot be read",))
    world = FakeWorld(CPU)
    world.run(plan_of("up llamacpp", tiny(), world.observe()))
    (process,) = [one for name, one in world.target.processes.items() if name != "gateway"]
    process.label = "?"
    with pytest.raises(PlanRefused) as error:
        refuse_unknown(world.observe(), ())
    assert "tiny-llamacpp-g1" in error.value.detail
    assert all(isinstance(one, Instance) for one in world.observe().damaged)
