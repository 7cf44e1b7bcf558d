"""A served model as Ollama describes those that it has, from the card of its route."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway.dialects.ollama import words

Json = dict[str, object]

LATEST = ":latest"
# What `general.file_type` of a GGUF has for it (llama.h, llama_ftype).
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32, "NVFP4": 39}
# What a model's numbers are called in a GGUF, by their names in config.json.
_SIZES = {
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "rope_theta": "rope.freq_base",
}
# Its word for what is called otherwise everywhere else.
_PARAMETERS = {"max_tokens": "num_predict"}
_UNITS = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))
# keep_alive -1 is as long as a duration can be in Go, in nanoseconds.
_FOR_EVER = 2**63 - 1


def tagged(name: str) -> str:
    """A name as Ollama lists it: with a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{LATEST}"


class Described:
    """A route's model in Ollama's words. Of an adapter nearly all is its base's; where the route has no card (an
    earlier version of orch has set it) there is little to tell. `started` is when the gateway was, in Unix seconds."""

    def __init__(self, route: Route, table: RouteTable, started: int) -> None:
        card = route.card or ModelCard(digest=hashlib.sha256(route.name.encode()).hexdigest())
        below = table.find(card.base) if card.base else None
        self.name = tagged(route.name)
        self._own = card
        self._base = below.card if below is not None and below.card is not None else card
        self._known = route.card is not None
        self._chats = route.chats
        self._started = started * 1_000_000_000

    @property
    def digest(self) -> str:
        """What names its bytes."""
        return self._own.digest

    @property
    def size(self) -> int:
        """The bytes of the weights."""
        return self._base.size

    @property
    def modified(self) -> int:
        """When it was made, else when it was first known here; in nanoseconds."""
        try:
            made = datetime.fromisoformat(self._own.made_at or self._base.made_at)
        except ValueError:
            return self._started
        return int(made.replace(tzinfo=made.tzinfo or UTC).timestamp()) * 1_000_000_000

    def listed(self) -> Json:
        """Its entry in /api/tags."""
        entry: Json = {"name": self.name, "model": self.name, "modified_at": words.timestamp(self.modified)}
        entry |= {"size": self.size, "digest": self.digest}
        if not self._known:
            return {**entry, "details": self._details(self._parent)}
        sizes = self._base.sizes
        lengths = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size"}
        more = {key: int(sizes[name]) for key, name in lengths.items() if name in sizes}
        return {**entry, "details": self._details(self._parent) | more, "capabilities": self._capabilities()}

    def loaded(self) -> Json:
        """Its entry in /api/ps: what is served is loaded, and stays so."""
        entry: Json = {"name": self.name, "model": self.name, "size": self.size, "digest": self.digest}
        entry |= {"details": self._details(""), "expires_at": words.timestamp(self._started + _FOR_EVER)}
        return entry | {"size_vram": self.size if self._base.on_gpu else 0, "context_length": self._base.context}

    def shown(self) -> Json:
        """The answer of /api/show. Its tensors are left out: only an engine knows them."""
        parameters = list(self._parameters())
        shown: Json = {"modelfile": self._modelfile(parameters)}
        if parameters:
            # Go's %#v of a string has quotes, of a number none.
            lines = (f"{key:<30} {words.quoted(value) if key == 'stop' else value}" for key, value in parameters)
            shown["parameters"] = "\n".join(lines)
        if self._base.template:
            shown["template"] = self._base.template
        shown |= {"details": self._details(self._parent), "model_info": self._model_info()}
        # Those that a template in Jinja is seen to have come first.
        completes, *others = self._capabilities()
        return shown | {"capabilities": [*others, completes], "modified_at": words.timestamp(self.modified)}

    @property
    def _parent(self) -> str:
        return tagged(self._own.base) if self._own.base else ""

    def _details(self, parent: str) -> Json:
        card = self._base
        return {
            "parent_model": parent,
            "format": card.format,
            "family": card.family,
            "families": [card.family] if card.family else None,
            "parameter_size": in_units(card.parameters) if card.parameters else "",
            "quantization_level": card.quantization,
        }

    def _capabilities(self) -> list[str]:
        """What orch serves completes texts, and embeds none."""
        heeds = {"tools": self._base.takes_tools and self._chats, "thinking": self._base.thinks and self._chats}
        return ["completion", *(name for name, true in heeds.items() if true)]

    def _parameters(self) -> Iterator[tuple[str, str]]:
        card = self._base
        if card.context:
            yield "num_ctx", str(card.context)
        for text in card.ends:
            yield "stop", text
        for name, value in sorted(card.sampling.items()):
            yield _PARAMETERS.get(name, name), str(_number(value))

    def _modelfile(self, parameters: list[tuple[str, str]]) -> str:
        lines = [
            '# Modelfile generated by "ollama show"',
            "# To build a new Modelfile based on this, replace FROM with:",
        ]
        lines += [f"# FROM {self.name}", "", f"FROM sha256-{self._base.digest}"]
        if self._own.base:
            lines.append(f"ADAPTER sha256-{self._own.digest}")
        if self._base.template:
            # What stands there in Ollama where the template is the model's own, in Jinja.
            lines.append("TEMPLATE {{ .Prompt }}")
        lines += [f"PARAMETER {name} {words.of_modelfile(value)}" for name, value in parameters]
        return "\n".join(lines) + "\n"

    def _model_info(self) -> Json:
        card = self._base
        if not card.family:
            return {}
        info: Json = {"general.architecture": card.family, "general.type": "model"}
        if card.format == "gguf":
            info["general.quantization_version"] = 2
            if card.quantization in _FILE_TYPES:
                info["general.file_type"] = _FILE_TYPES[card.quantization]
        if card.parameters:
            info["general.parameter_count"] = card.parameters
            info["general.size_label"] = _label(card.parameters)
        sizes = dict(card.sizes)
        if "num_attention_heads" in sizes:
            sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
        info |= {f"{card.family}.{key}": _number(sizes[name]) for name, key in _SIZES.items() if name in sizes}
        width = _head_width(sizes)
        if width:
            info |= {f"{card.family}.attention.{key}_length": width for key in ("key", "value")}
        if "eos_token_id" in sizes:
            info["tokenizer.ggml.eos_token_id"] = int(sizes["eos_token_id"])
        if card.tokenizer:
            info["tokenizer.ggml.model"] = card.tokenizer
        # Lists of many thousand texts, which Ollama leaves out too unless they are asked for.
        info |= dict.fromkeys(f"tokenizer.ggml.{name}" for name in ("merges", "token_type", "tokens"))
        return dict(sorted(info.items()))


def in_units(count: int) -> str:
    """A number of weights as Ollama writes it: 4.20M, 1.4B, 8B."""
    for unit, letter, digits in _UNITS:
        if count >= unit:
            whole = count % unit == 0
            return f"{count / unit:.{0 if whole else digits}f}{letter}"
    return str(count)


def _label(count: int) -> str:
    """The same as GGUF files have it, in at least two digits: 4.2M, 15B."""
    for unit, letter, _ in _UNITS:
        if count >= unit:
            digits = max(2 - len(str(round(count / unit))), 0)
            return f"{count / unit:.{digits}f}{letter}"
    return str(count)


def _number(value: float) -> float:
    """As Go writes it: whole numbers without a fraction."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def _head_width(sizes: Mapping[str, float]) -> int:
    """The columns of one attention head."""
    if "head_dim" in sizes:
        return int(sizes["head_dim"])
    heads = sizes.get("num_attention_heads", 0)
    return int(sizes.get("hidden_size", 0) // heads) if heads else 0
