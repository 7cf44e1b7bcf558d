"""Weights and artifacts as values: recipes, keys, manifests.

Weights are the upstream source; an Artifact is a servable set of files that a Recipe makes of them. Both
lie in one content-addressed store under a key that is known before any work is done, so that planning
never reads the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import field
from enum import StrEnum

from orchestrator.core.part import Part

# Part of the key of what is built: raised when a builder's output changes for the same input. What is brought is what
# it was. Since 2 template, ends and tokens are transformers', and a head is compared with the embedding.
BUILDER_FORMAT = 2
_BROUGHT_FORMAT = 1
# What an entry that is one GGUF calls it.
GGUF_FILE = "model.gguf"


class Recipe(StrEnum):
    """What to make of the weights. WEIGHTS serves them as they are, by a VIEW: a directory that has nothing but what
    counts of theirs. ADAPTER and LORA_GGUF are a LoRA, as it came and as llama.cpp reads it. NVFP4A16 leaves
    activations at 16 bit, NVFP4 does not (W4A4), nor does FP8."""

    GGUF_BF16 = "gguf-bf16"
    GGUF_F16 = "gguf-f16"
    GGUF_Q8_0 = "gguf-q8_0"
    GGUF_Q6_K = "gguf-q6_k"
    GGUF_Q5_K_M = "gguf-q5_k_m"
    GGUF_Q4_K_M = "gguf-q4_k_m"
    GGUF_NVFP4 = "gguf-nvfp4"
    NVFP4A16 = "nvfp4a16"
    NVFP4 = "nvfp4"
    FP8 = "fp8"
    WEIGHTS = "weights"
    VIEW = "view"
    ADAPTER = "adapter"
    LORA_GGUF = "lora-gguf"

    @property
    def quant(self) -> str:
        """Of a GGUF of weights its type, such as q6_k; of all others nothing."""
        return self.value.removeprefix("gguf-") if self.value.startswith("gguf-") else ""

    @property
    def loss(self) -> str:
        """What is known of its cost in accuracy, where that is more than noise; published measurements of others."""
        if self in _NVFP4:
            return "NVFP4 is not lossless: 8B models lose 2 to 3 points on average, up to 5 on GSM8K."
        return ""

    def same_weights(self, other: Recipe) -> bool:
        """Whether both hold the very same numbers for the weights, each in its engine's own layout: whoever goes from
        one to the other may expect the same answers, but for rounding, and 4-bit activations where one has them."""
        return self is other or any({self, other} <= these for these in (_NVFP4, _AS_THEY_ARE))

    @property
    def served(self) -> bool:
        """Whether engines serve it; a LoRA they serve only beside it, and a view is how they serve weights."""
        return self not in (Recipe.ADAPTER, Recipe.LORA_GGUF, Recipe.VIEW)

    @property
    def portable(self) -> bool:
        """Whether it means the same in another store, or on another machine; a view has links to where weights lie."""
        return self is not Recipe.VIEW

    @property
    def _format(self) -> int:
        built = self.streamed or self in (Recipe.NVFP4, Recipe.VIEW)
        return BUILDER_FORMAT if built else _BROUGHT_FORMAT

    @property
    def streamed(self) -> bool:
        """Whether it is made in one read of the weights, together with others of its kind."""
        return self.served and self not in (Recipe.WEIGHTS, Recipe.NVFP4)


# Of one quantization: GGUF_NVFP4 has NVFP4A16's blocks, and NVFP4's weights do not depend on how it was calibrated.
_NVFP4 = frozenset({Recipe.GGUF_NVFP4, Recipe.NVFP4A16, Recipe.NVFP4})
# F16 has not the range of BF16; weights that are F32 are rounded in a GGUF of BF16.
_AS_THEY_ARE = frozenset({Recipe.WEIGHTS, Recipe.GGUF_BF16})


class FileEntry(Part):
    """One file of a manifest: path relative to the artifact, size in bytes, lowercase hex SHA-256."""

    path: str
    size: int
    sha256: str


class Manifest(Part):
    """`manifest.json` of a finished artifact; its presence under the final name is what "finished" means.

    `source` is `hub:OWNER/NAME@COMMIT`, `dir:SHA256` or, for built artifacts, the source of the weights;
    `builder` holds the versions that made the bytes, `created` is UTC, ISO 8601. `links` are files of others, by the
    names that they have in it.
    """

    key: str
    recipe: Recipe
    source: str
    builder: dict[str, str]
    files: tuple[FileEntry, ...]
    created: str
    links: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all its own files together."""
        return sum(file.size for file in self.files)


def artifact_key(recipe: Recipe, source: str, *, brought: bool = False) -> str:
    """`RECIPE-` and 16 hex digits over source, recipe and builder format; `brought`: others have built it.

    Output hashes are not part of the key (they stand in the manifest), so a key is known before the build.
    """
    return _key(recipe, source, _BROUGHT_FORMAT if brought else recipe._format)


def earlier_keys(recipe: Recipe, source: str) -> tuple[str, ...]:
    """The keys of what earlier versions of orch built of the same."""
    return tuple(_key(recipe, source, earlier) for earlier in range(1, recipe._format))


def _key(recipe: Recipe, source: str, builder_format: int) -> str:
    text = json.dumps([recipe.value, source, builder_format])
    return f"{recipe.value}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


_WITH_TEMPLATE = " with template "


def source_with_template(source: str, template: str) -> str:
    """The source of what is made of weights with another chat template than theirs."""
    return f"{source}{_WITH_TEMPLATE}{hashlib.sha256(template.encode()).hexdigest()}" if template else source


def has_template(source: str) -> bool:
    """Whether it is such a source."""
    return _WITH_TEMPLATE in source


def source_of_files(files: dict[str, str]) -> str:
    """The `source` of a local directory: `dir:` and a SHA-256 over its files' names and SHA-256 (hex)."""
    text = json.dumps(sorted(files.items()))
    return f"dir:{hashlib.sha256(text.encode()).hexdigest()}"
