"""What clients are told of a model that is served: a card for the base, and a small one for each adapter. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.meaning import DEFAULT, Meaning, SamplingDefault
from orchestrator.core.memory import artifact_bytes
from orchestrator.core.model_card import ModelCard
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.weights import Shape, WeightsFacts, shape_of


def card_of(
    deployment: Deployment,
    profile: Profile,
    weights: WeightsFacts,
    sampling: tuple[SamplingDefault, ...],
    finished: int | None,
) -> ModelCard | None:
    """The card of what the weights say of themselves, served like this; None as long as they have not been asked.
    `finished` is the size of the artifact, where that is there and is no other name for the weights."""
    meaning, recipe = weights.meaning, deployment.recipe
    if meaning is None:
        return None
    shape = shape_in(meaning) or weights.shape
    parameters = shape.parameters if shape is not None else 0
    size = finished or (artifact_bytes(recipe, weights.size or 2 * parameters, shape) if shape is not None else 0)
    return ModelCard(
        digest=hashlib.sha256(deployment.artifact_key.encode()).hexdigest(),
        key=deployment.artifact_key,
        size=size,
        format="gguf" if recipe.quant else "safetensors",
        quantization=_quantization(recipe, meaning.dtype),
        family=meaning.model_type or meaning.architecture,
        sizes={**meaning.sizes, **({"eos_token_id": meaning.ends[0].id} if meaning.ends else {})},
        parameters=parameters,
        tokenizer=meaning.tokenizer,
        context=profile.serving.context,
        template=meaning.template(DEFAULT),
        takes_tools=meaning.takes_tools,
        thinks=meaning.thinks is not None,
        ends=tuple(dict.fromkeys(end.text for end in meaning.ends if end.text)),
        sampling={one.name: one.value for one in sampling},
        on_gpu=deployment.accelerator is not Accelerator.CPU,
    )


def card_of_route(deployment: Deployment, adapter: Adapter | None) -> ModelCard | None:
    """The card of a public name: the deployment's, or a small one of an adapter of it."""
    if deployment.card is None or adapter is None:
        return deployment.card
    digest = adapter.digest if len(adapter.digest) == _DIGITS else hashlib.sha256(adapter.digest.encode()).hexdigest()
    return ModelCard(digest=digest, key=adapter.key, base=deployment.served_name)


_DIGITS = 64


def shape_in(meaning: Meaning) -> Shape | None:
    """The sizes that the model's own files tell, wherever they were read."""
    found = shape_of({**meaning.sizes, "tie_word_embeddings": meaning.tied})
    family = meaning.model_type or meaning.architecture
    return replace(found, model_type=family) if found is not None else None


def _quantization(recipe: Recipe, dtype: str) -> str:
    """As Ollama writes it, in llama.cpp's words."""
    if recipe is Recipe.WEIGHTS:
        return _DTYPES.get(dtype, "unknown")
    return (recipe.quant or recipe.value).upper()


_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
