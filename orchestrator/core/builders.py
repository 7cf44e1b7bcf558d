"""Who builds which artifact, as one table; and what an artifact's source says of its builder. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.artifact import Recipe
from orchestrator.errors import SourceError


class BuiltBy(StrEnum):
    """A way of building: orch itself, llm-compressor in an environment of its own, or llama.cpp's own converter and
    quantizer, in their image or as the user has them."""

    ORCH = "orch"
    LLM_COMPRESSOR = "llm-compressor"
    LLAMA_CPP = "llama.cpp"


_GGUF = (
    *(Recipe.GGUF_BF16, Recipe.GGUF_F16, Recipe.GGUF_Q8_0),
    *(Recipe.GGUF_Q6_K, Recipe.GGUF_Q5_K_M, Recipe.GGUF_Q4_K_M),
)

# By recipe who builds it, and after that who does where the first one does not know the weights.
BUILDERS: Mapping[Recipe, tuple[BuiltBy, ...]] = {
    **dict.fromkeys(_GGUF, (BuiltBy.ORCH, BuiltBy.LLAMA_CPP)),
    Recipe.GGUF_NVFP4: (BuiltBy.ORCH,),
    Recipe.NVFP4A16: (BuiltBy.ORCH,),
    Recipe.FP8: (BuiltBy.ORCH,),
    Recipe.NVFP4: (BuiltBy.LLM_COMPRESSOR,),
    Recipe.VIEW: (BuiltBy.ORCH,),
    Recipe.ADAPTER: (BuiltBy.ORCH,),
    Recipe.LORA_GGUF: (BuiltBy.ORCH,),
}

_BY_LLAMA_CPP = f" by {BuiltBy.LLAMA_CPP}"


def by_llama_cpp(weights: str) -> str:
    """The `source` of what llama.cpp's own tools make of weights: other bytes than orch's, and so another artifact."""
    return f"{weights}{_BY_LLAMA_CPP}"


def weights_of(source: str) -> str:
    """The source of the weights that an artifact of this source was made of: what else its bytes depend on is said
    after that."""
    return source.partition(" ")[0]


def builder_of(recipe: Recipe, source: str) -> BuiltBy:
    """Who builds an artifact of this source."""
    return BuiltBy.LLAMA_CPP if source.endswith(_BY_LLAMA_CPP) else BUILDERS[recipe][0]


class UnknownToBuilder(SourceError):
    """Weights that orch's own builder has no code for, and perhaps nothing is wrong with; `what` names what it does not
    know."""

    def __init__(self, message: str, hint: str, what: str) -> None:
        super().__init__(message, hint)
        self.what = what


@dataclass(frozen=True)
class Tools:
    """llama.cpp's own tools as this machine has them: `place` says where; `problem` why there are none (empty: there
    are)."""

    place: str = ""
    problem: str = ""
