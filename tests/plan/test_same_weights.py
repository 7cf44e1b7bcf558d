"""gguf-nvfp4: what it is made of, so that all engines serve the same weights, and what it cannot be made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import CPU, adapter, context_of, resolved, tiny, weights_of
from qwen3_8b import NVFP4_BYTES, QWEN3_8B, QWEN3_8B_BYTES
from test_prerequisites import world

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import DeploymentSpec, Desired
from orchestrator.core.memory import artifact_bytes
from orchestrator.core.prerequisites import BuildArtifact, BuildTogether, FetchArtifact, FetchWeights, ImportAdapter
from orchestrator.core.profile import Profile
from orchestrator.core.weights import Shape, cannot_become
from orchestrator.engines.prerequisites import artifact_prerequisites, key_of, needed
from orchestrator.engines.resolve import resolve
from orchestrator.errors import PlanRefused
from orchestrator.planning.prerequisites import plan_prerequisites

HUB = {"repo": "owner/name", "revision": "0" * 40}
PACKED = {"repo": "owner/name-NVFP4", "revision": "1" * 40}


def of(profile: Profile, recipe: Recipe = Recipe.GGUF_NVFP4) -> tuple[object, ...]:
    return artifact_prerequisites(recipe, weights_of(profile), context_of(profile))


def test_it_is_built_from_the_weights_together_with_the_checkpoint_that_vllm_reads() -> None:
    profile = tiny(weights=HUB)
    wanted = tuple(dict.fromkeys((*of(profile), *of(profile, Recipe.NVFP4A16))))
    plan = plan_prerequisites("build", wanted, world())
    assert [type(action.step) for action in plan.actions] == [FetchWeights, BuildTogether]


@pytest.mark.parametrize("recipe", ["nvfp4a16", "nvfp4"])
def test_where_the_checkpoint_is_ready_made_it_is_repacked_from_that(recipe: str) -> None:
    profile = tiny(weights=HUB, artifacts={recipe: PACKED})
    fetch, build = of(profile)
    assert isinstance(fetch, FetchArtifact)
    assert isinstance(build, BuildArtifact)
    assert fetch.recipe.value == recipe
    assert build.source == fetch.source
    assert build.key == key_of(Recipe.GGUF_NVFP4, weights_of(profile), context_of(profile))
    assert build.key == artifact_key(Recipe.GGUF_NVFP4, fetch.source)
    assert build.key != key_of(Recipe.GGUF_NVFP4, weights_of(profile), context_of(tiny(weights=HUB)))
    assert build.source_path.endswith(fetch.key)
    assert build.made_from == (fetch.key,)


def test_it_is_not_read_in_one_go_with_what_is_built_from_the_weights() -> None:
    profile = tiny(weights=HUB, artifacts={"nvfp4a16": PACKED})
    q6_k, q8_0 = of(profile, Recipe.GGUF_Q6_K), of(profile, Recipe.GGUF_Q8_0)
    plan = plan_prerequisites("build", tuple(dict.fromkeys((*of(profile), *q6_k, *q8_0))), world())
    steps = [action.step for action in plan.actions]
    assert [type(step) for step in steps] == [FetchArtifact, BuildArtifact, FetchWeights, BuildTogether]
    assert steps[-1] == BuildTogether((q6_k[-1], q8_0[-1]))


def test_the_checkpoint_is_pulled_for_what_is_left_to_repack_or_where_it_is_wanted_itself() -> None:
    profile = tiny(weights=HUB, artifacts={"nvfp4a16": PACKED})
    fetch, build = of(profile)
    there = world(**{build.key: 1})
    assert plan_prerequisites("build", (fetch, build), there).actions == ()
    wanted = plan_prerequisites("build", (fetch, build), there, results=(fetch.key, build.key))
    assert [action.step for action in wanted.actions] == [fetch]


def test_a_ready_made_gguf_comes_before_a_ready_made_checkpoint() -> None:
    gguf = {"repo": "owner/name-GGUF", "revision": "2" * 40, "file": "name-NVFP4.gguf"}
    (fetch,) = of(tiny(weights=HUB, artifacts={"nvfp4a16": PACKED, "gguf-nvfp4": gguf}))
    assert isinstance(fetch, FetchArtifact)
    assert fetch.file == "name-NVFP4.gguf"


@pytest.mark.parametrize("recipe", [Recipe.GGUF_Q6_K, Recipe.NVFP4A16])
def test_the_profiles_template_cannot_be_put_into_what_is_ready_made(recipe: Recipe) -> None:
    file = {"file": "name.gguf"} if recipe is Recipe.GGUF_Q6_K else {}
    profile = tiny(weights=HUB, artifacts={recipe.value: PACKED | file})
    weights = replace(weights_of(profile), template="{{ messages }}")
    with pytest.raises(PlanRefused, match="chat template of its own"):
        artifact_prerequisites(recipe, weights, context_of(profile))
    built = artifact_prerequisites(recipe, weights, context_of(tiny(weights=HUB)))
    assert [step.template for step in built if isinstance(step, BuildArtifact)] == ["{{ messages }}"]
    repacked = artifact_prerequisites(Recipe.GGUF_NVFP4, weights, context_of(profile))
    assert [step.template for step in repacked if isinstance(step, BuildArtifact)] == ["{{ messages }}"]


def test_a_lora_beside_it_needs_the_weights_that_it_is_converted_for() -> None:
    profile = tiny(weights=HUB, artifacts={"nvfp4a16": PACKED})
    spec = DeploymentSpec(profile=profile, engine="llamacpp", target="local", recipe=Recipe.GGUF_NVFP4)
    plain = resolved(Desired(spec=spec), CPU)
    assert [type(step) for step in plain.prerequisites] == [FetchArtifact, BuildArtifact]
    adapted = resolved(Desired(spec=spec, adapters=(adapter("a", profile),)), CPU)
    assert [type(step) for step in adapted.prerequisites] == [
        *(FetchArtifact, BuildArtifact, FetchWeights, ImportAdapter, BuildArtifact)
    ]


SHAPE = Shape(2, 256, 4, 2, 64, 768, 512, tied=True, model_type="qwen3")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"intermediate": 608}, ""),
        ({"model_type": ""}, ""),
        ({"model_type": "qwen2"}, "leaves out the second scale of NVFP4 in qwen2"),
        ({"intermediate": 600}, "columns divisible by 16, and there are 600"),
        ({"head_dim": 6}, "columns divisible by 16, and there are 24"),
    ],
)
def test_of_which_weights_it_cannot_be_made(changes: dict[str, object], why: str) -> None:
    shape = replace(SHAPE, **changes)
    found = cannot_become(Recipe.GGUF_NVFP4, shape)
    assert (why in found) and bool(why) == bool(found)
    assert cannot_become(Recipe.GGUF_Q6_K, shape) == ""
    assert cannot_become(Recipe.GGUF_NVFP4, None) == ""


def test_what_cannot_be_made_is_refused_where_it_is_asked_for_and_needed_nowhere() -> None:
    profile = tiny()
    weights = replace(weights_of(profile), shape=replace(SHAPE, model_type="qwen2"))
    spec = DeploymentSpec(profile=profile, engine="llamacpp", target="local")
    keys = {step.key.rpartition("-")[0] for step in needed(spec, weights, (), context_of(profile))}
    assert keys == {"gguf-q6_k"}
    asked = spec.model_copy(update={"recipe": Recipe.GGUF_NVFP4})
    with pytest.raises(PlanRefused) as refused:
        resolve(asked, (), weights, CPU, context_of(profile))
    assert "answers would be wrong" in refused.value.detail


def test_its_size_is_known_before_it_is_built() -> None:
    assert artifact_bytes(Recipe.GGUF_NVFP4, QWEN3_8B_BYTES, QWEN3_8B) == pytest.approx(NVFP4_BYTES, rel=0.001)
