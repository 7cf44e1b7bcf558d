"""Who builds what, as values: the table, and when llama.cpp's own tools build what orch's builder does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import CPU, context_of, nothing_but, tiny, weights_of

from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.builders import BUILDERS, BuiltBy, Tools, builder_of, by_llama_cpp
from orchestrator.core.builders import weights_of as source_of_weights
from orchestrator.core.prerequisites import BuildArtifact, way_of
from orchestrator.core.weights import WeightsFacts
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.prerequisites import artifact_prerequisites, key_of, remarks_on_builds
from orchestrator.errors import PlanRefused
from orchestrator.planning.prerequisites import plan_prerequisites

HUB = {"repo": "owner/name", "revision": "c" * 40}
HERE, TO_COME = weights_of(tiny()), weights_of(tiny(weights=HUB))
GGUF = Recipe.GGUF_Q6_K
IN_DIR = Tools("in DIR")


def key(weights: WeightsFacts, by: BuiltBy) -> str:
    return artifact_key(GGUF, by_llama_cpp(weights.source) if by is BuiltBy.LLAMA_CPP else weights.source)


def context(unknown: str = "", *finished: str, tools: Tools = IN_DIR) -> ResolveContext:
    found = context_of(tiny(), dict.fromkeys(finished, 1))
    return replace(found, unknown=lambda weights: unknown, tools=lambda: tools)


def built(recipe: Recipe, weights: WeightsFacts, within: ResolveContext) -> BuildArtifact:
    (build,) = (step for step in artifact_prerequisites(recipe, weights, within) if isinstance(step, BuildArtifact))
    assert build.key == key_of(recipe, weights, within)
    return build


def test_every_recipe_that_is_built_has_a_builder() -> None:
    assert BUILDERS.keys() == {*Recipe} - {Recipe.WEIGHTS}
    assert all(recipe.quant for recipe, builders in BUILDERS.items() if BuiltBy.LLAMA_CPP in builders)


@pytest.mark.parametrize(
    ("weights", "unknown", "finished", "by"),
    [
        (HERE, "", [], BuiltBy.ORCH),
        (HERE, "NewForCausalLM", [], BuiltBy.LLAMA_CPP),
        (TO_COME, "", [], BuiltBy.ORCH),
        (TO_COME, "its tokenizer", [], BuiltBy.LLAMA_CPP),
        (TO_COME, "", [key(TO_COME, BuiltBy.LLAMA_CPP)], BuiltBy.LLAMA_CPP),
        (HERE, "", [key(HERE, BuiltBy.LLAMA_CPP)], BuiltBy.LLAMA_CPP),
        (HERE, "NewForCausalLM", [key(HERE, BuiltBy.ORCH)], BuiltBy.ORCH),
        (HERE, "", [key(HERE, BuiltBy.LLAMA_CPP), key(HERE, BuiltBy.ORCH)], BuiltBy.ORCH),
    ],
)
def test_by_whom_a_gguf_is_built(weights: WeightsFacts, unknown: str, finished: list[str], by: BuiltBy) -> None:
    build = built(GGUF, weights, context(unknown, *finished))
    assert (build.by, build.key) == (by, key(weights, by))
    assert build.streamed == (by is BuiltBy.ORCH)
    assert builder_of(build.recipe, build.source) is by
    assert source_of_weights(build.source) == weights.source
    again = way_of(build.key, build.recipe, build.source, weights.path, ready=False)
    assert isinstance(again, BuildArtifact)
    assert again.by is by


def test_what_only_orch_builds_stays_with_orch() -> None:
    for recipe in (Recipe.NVFP4A16, Recipe.FP8):
        assert built(recipe, HERE, context("NewForCausalLM")).by is BuiltBy.ORCH
    assert built(Recipe.NVFP4, HERE, context("NewForCausalLM")).by is BuiltBy.LLM_COMPRESSOR


def test_what_others_build_is_in_no_read_of_orchs() -> None:
    within = context("NewForCausalLM")
    recipes = (Recipe.GGUF_Q6_K, Recipe.GGUF_Q8_0, Recipe.NVFP4A16, Recipe.FP8)
    steps = tuple(built(recipe, HERE, within) for recipe in recipes)
    plan = plan_prerequisites("build", steps, nothing_but(CPU))
    names = [type(action.step).__name__ for action in plan.actions]
    assert names == ["BuildArtifact", "BuildArtifact", "BuildTogether"]


def test_it_is_told_where_it_is_to_be_done_and_refused_where_it_cannot() -> None:
    within = context("NewForCausalLM", tools=Tools("in the image full"))
    wanted = artifact_prerequisites(GGUF, TO_COME, within)
    (remark,) = remarks_on_builds(tiny(), wanted, TO_COME, within)
    assert remark.why == "it does not know NewForCausalLM; llama.cpp's own tools build it, in the image full"
    here = context("NewForCausalLM", key(TO_COME, BuiltBy.LLAMA_CPP), tools=Tools(problem="nobody asks"))
    assert remarks_on_builds(tiny(), artifact_prerequisites(GGUF, TO_COME, here), TO_COME, here) == ()
    without = context("NewForCausalLM", tools=Tools(problem="there is no daemon"))
    with pytest.raises(PlanRefused, match="cannot be used: there is no daemon") as told:
        remarks_on_builds(tiny(), wanted, TO_COME, without)
    assert "ORCH_LLAMA_CPP=DIR" in told.value.hint
