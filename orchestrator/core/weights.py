"""Where weights come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.artifact import Recipe, source_with_template
from orchestrator.core.meaning import Meaning

REPOSITORY = r"[\w.-]+/[\w.-]+"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
# What weights may consist of: safetensors, tokenizer and config; never pickles, never code. Mistral's repositories have
# all weights a second time, in a layout of their own. Which of it counts: `files_that_count`.
WANTED = re.compile(
    r"(?!consolidated[.-])[\w-][\w.-]*\.safetensors|model\.safetensors\.index\.json|(generation_|tokenizer_|adapter_)?config\.json"
    r"|tokenizer\.(json|model)|vocab\.json|merges\.txt|chat_template\.jinja|additional_chat_templates/[\w-][\w.-]*\.jinja"
    r"|(special_tokens_map|added_tokens|hf_quant_config)\.json",
    re.ASCII,
)
# What tells that somebody has left weights there that are none of these.
_OTHER_WEIGHTS = re.compile(
    r".+\.(safetensors|bin|pt|pth|ckpt|gguf|bak|orig|old)|params\.json|tekken\.json|original|(optimizer|scheduler)\b.*"
    r"|checkpoint-\d+|model\.safetensors\.index\.json"
)
# Families whose graph in llama.cpp (src/models) multiplies by NVFP4's second scale in attention alone.
NO_SECOND_SCALE = ("qwen2",)
NVFP4_BLOCK = 16
COMMIT = re.compile(r"[0-9a-f]{40}")


def files_that_count(names: Iterable[str], shards: Callable[[], Collection[str]]) -> tuple[str, ...]:
    """Which of a directory's files are the model's, by transformers' rule: model.safetensors, else the `shards` that
    the index names; and what describes them. Adapters, backups and shards of another time are not.

    Without either all safetensors count: what is wrong with them is for whoever opens them to say.
    """
    wanted = sorted(name for name in names if WANTED.fullmatch(name))
    weights = {name for name in wanted if name.endswith(".safetensors")} - {"adapter_model.safetensors"}
    small = [name for name in wanted if not name.endswith(".safetensors") and name != "adapter_config.json"]
    if SINGLE in weights:
        return (*(name for name in small if name != INDEX), SINGLE)
    named = weights & set(shards()) if INDEX in small else weights
    return (*small, *sorted(named or weights))


def files_left_out(names: Iterable[str], counted: Collection[str]) -> tuple[str, ...]:
    """What else looks like weights there, and must not be taken for them."""
    return tuple(sorted(name for name in names if name not in counted and _OTHER_WEIGHTS.fullmatch(name)))


@dataclass(frozen=True)
class HubSource:
    """A hub repository (`OWNER/NAME`) at a revision: a branch, a tag, or best a 40-digit commit."""

    repo: str
    revision: str

    @property
    def pinned(self) -> bool:
        """True when the revision is a commit, so that nobody needs to be asked what it means."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.revision}"


def hub_source(text: str) -> tuple[HubSource, str] | None:
    """The commit and the file (or nothing) that a source in words names: `hub:REPO@COMMIT`, `hub:REPO@COMMIT/FILE`."""
    found = re.fullmatch(rf"hub:({REPOSITORY})@([0-9a-f]{{40}})(?:/(.+))?", text, re.ASCII)
    return (HubSource(found[1], found[2]), found[3] or "") if found is not None else None


@dataclass(frozen=True)
class HubFile:
    """A file as the hub states it: size in bytes; sha256 for LFS/xet files, else the git blob id (SHA-1)."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class HubSnapshot:
    """A source resolved to a commit, with the files that orch would fetch: safetensors, tokenizer, config."""

    source: HubSource
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Shape:
    """A dense transformer's sizes, as its config.json names them; `tied`: the head is the embedding, `positions`: the
    longest context that it was made for (0: it does not say), `model_type` its family (empty: only sizes are told)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    positions: int = 0
    model_type: str = field(default="", compare=False)

    @property
    def kv_token_bytes(self) -> int:
        """KV cache per token at 16 bit: keys and values of every layer (vllm/v1/kv_cache_interface.py)."""
        return self.layers * self.kv_heads * 2 * self.head_dim * 2

    @property
    def layer_parameters(self) -> int:
        """Weights of all matrices in the layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def end_parameters(self) -> int:
        """Weights of the embedding, and of the head if it is another matrix."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights; beside the matrices norms, and the biases that its family has."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        more = {"qwen2": queries + 2 * keys, "qwen3": 2 * self.head_dim}.get(self.model_type, 0)
        norms = self.hidden + self.layers * (2 * self.hidden + more)
        return self.layer_parameters + self.end_parameters + norms

    @property
    def lora_of(self) -> Mapping[str, int]:
        """Elements of a LoRA per rank on each matrix of the layers, by PEFT's name of it: A and B, in all layers."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }
        return {name: self.layers * side for name, side in sides.items()}

    @property
    def lora_elements(self) -> int:
        """Elements of a LoRA per rank, if it adapts all that vLLM makes room for, which is what a slot takes.

        That is A and B of every linear slice, the embedding and the head (vllm/lora/layers). A tied head counts too:
        ASSUMPTION.
        """
        return sum(self.lora_of.values()) + 2 * (self.vocab + self.hidden)


def shape_of(config: Any) -> Shape | None:
    """The sizes that the JSON of a config.json tells; None when it does not."""
    try:
        heads = int(config["num_attention_heads"])
        shape = Shape(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings")),
            positions=int(config.get("max_position_embeddings") or 0),
            model_type=str(config.get("model_type") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return None
    sizes = (shape.layers, shape.hidden, heads, shape.kv_heads, shape.head_dim, shape.intermediate, shape.vocab)
    return shape if min(sizes) > 0 else None


def cannot_become(recipe: Recipe, shape: Shape | None) -> str:
    """Why weights of this shape cannot be served as the recipe says; empty where they can, or it is not known."""
    if recipe is not Recipe.GGUF_NVFP4 or shape is None:
        return ""
    if shape.model_type in NO_SECOND_SCALE:
        return f"llama.cpp leaves out the second scale of NVFP4 in {shape.model_type}: answers would be wrong"
    columns = (shape.hidden, shape.intermediate, shape.heads * shape.head_dim)
    odd = next((size for size in columns if size % NVFP4_BLOCK), 0)
    return f"NVFP4 needs columns divisible by {NVFP4_BLOCK}, and there are {odd}" if odd else ""


@dataclass(frozen=True)
class ReadyFacts:
    """A ready-made artifact as this machine knows it before any work: `source` names its content, `key` its entry in
    the store; it is `file` of `hub` or all that is wanted of it, or what lies at `path`. `shape` is None until it is
    in the store."""

    source: str
    key: str
    hub: HubSource | None = None
    file: str = ""
    path: str = ""
    shape: Shape | None = None


@dataclass(frozen=True)
class WeightsFacts:
    """Weights as this machine knows them before any work.

    `source` names their content (`hub:REPO@COMMIT` or `dir:SHA256`), `key` their entry in the store (for a local
    directory: none is made), `path` where they are or will be, `fetch` what to download for it (None: a local
    directory). `size` in bytes is 0 and `shape` None until the files are there; `shape` also when config.json does not
    tell it. `linked` are the directories that its files are links into, as in the hub client's cache. `template` is the
    profile's own chat template. `meaning` is that of what is served of them, with `deviations` from theirs where others
    have built it; None as long as nobody has looked.
    """

    source: str
    key: str
    path: str
    fetch: HubSource | None = None
    size: int = 0
    shape: Shape | None = None
    linked: tuple[str, ...] = ()
    template: str = ""
    meaning: Meaning | None = None
    deviations: tuple[str, ...] = ()

    @property
    def made_source(self) -> str:
        """The source of what is made of them."""
        return source_with_template(self.source, self.template)
