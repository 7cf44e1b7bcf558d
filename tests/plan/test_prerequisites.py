"""orch build: what is to be made of which weights, in how many reads."""

from __future__ import annotations

from fakes.asks import CPU, adapter, context_of, resolved, tiny, weights_of
from situation import shown

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import DeploymentSpec, Desired
from orchestrator.core.observed import GatewayObserved, Observed
from orchestrator.core.prerequisites import BuildArtifact, BuildTogether, FetchArtifact, FetchWeights, ImportAdapter
from orchestrator.engines.prerequisites import artifact_prerequisites
from orchestrator.planning.prerequisites import plan_prerequisites

HUB = tiny(weights={"repo": "owner/name", "revision": "0" * 40})


def world(**finished: int) -> Observed:
    """Nothing but a store with these keys in it."""
    return Observed(
        host=CPU, engines=(), gateway=GatewayObserved(None, None), finished=finished, environments={}, desired={}
    )


def builds(*recipes: Recipe) -> tuple[BuildArtifact, ...]:
    steps = (step for recipe in recipes for step in artifact_prerequisites(recipe, weights_of(HUB), context_of(tiny())))
    return tuple(step for step in steps if isinstance(step, BuildArtifact))


def test_what_is_finished_is_left_out_of_the_read() -> None:
    one, two, three = builds(Recipe.GGUF_Q6_K, Recipe.GGUF_Q8_0, Recipe.NVFP4A16)
    together = (one, two, three)
    plan = plan_prerequisites("build", together, world(**{two.key: 1}))
    assert shown(plan).splitlines()[0] == "= build gguf-q8_0-*: in the store"
    assert [action.step for action in plan.actions] == [BuildTogether((one, three))]
    assert plan_prerequisites("build", together, world(**{two.key: 1, three.key: 1})).actions[0].step == one
    assert plan_prerequisites("build", together, world(**{one.key: 1, two.key: 1, three.key: 1})).actions == ()


def test_weights_are_pulled_only_for_what_is_left_to_build() -> None:
    fetch, one = artifact_prerequisites(Recipe.GGUF_Q6_K, weights_of(HUB), context_of(tiny()))
    assert isinstance(fetch, FetchWeights)
    assert isinstance(one, BuildArtifact)
    two = builds(Recipe.NVFP4A16)[0]
    prerequisites = (fetch, one, two)
    assert plan_prerequisites("build", prerequisites, world(**{one.key: 1, two.key: 1})).actions == ()
    assert [action.step for action in plan_prerequisites("build", prerequisites, world(**{one.key: 1})).actions] == [
        fetch,
        two,
    ]


def test_a_lora_beside_a_ready_made_artifact_needs_the_weights_it_is_converted_for() -> None:
    ready = {"gguf-q6_k": {"repo": "owner/name-GGUF", "revision": "1" * 40, "file": "name-Q6_K.gguf"}}
    profile = tiny(weights={"repo": "owner/name", "revision": "0" * 40}, artifacts=ready)
    spec = DeploymentSpec(profile=profile, engine="llamacpp", target="local")
    plain = resolved(Desired(spec=spec), CPU)
    assert [type(step) for step in plain.prerequisites] == [FetchArtifact]
    adapted = resolved(Desired(spec=spec, adapters=(adapter("a", profile),)), CPU)
    assert [type(step) for step in adapted.prerequisites] == [FetchArtifact, FetchWeights, ImportAdapter, BuildArtifact]
    assert plain.deployment.artifact_key == adapted.deployment.artifact_key == plain.prerequisites[0].key
