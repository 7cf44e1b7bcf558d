"""What there is to say of a served model to clients that ask for it: the gateway keeps it with the route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.core import json_fields as fields


@dataclass(frozen=True)
class ModelCard:
    """A model as it is served.

    `digest` are 64 hexadecimal digits that name the artifact, `size` its bytes, `format` and `quantization` what it is
    ("gguf", "Q6_K"). `family` is the architecture that config.json names, `sizes` its numbers by their names there
    (num_hidden_layers, ...), `parameters` how many weights it has. `context` is what one request may have of it, in
    tokens. `template` is its chat template in Jinja (empty: it has none), which `takes_tools` or not, and `thinks` or
    not. `ends` are the texts that end an answer, `sampling` what is taken where a request does not say. `on_gpu`: its
    weights lie in a GPU's memory. `made_at` is when it was first served, in ISO 8601. An adapter's card has `base`, the
    public name of what it changes, and else only what differs from that: its own digest.
    """

    digest: str
    base: str = ""
    size: int = 0
    format: str = ""
    quantization: str = ""
    family: str = ""
    sizes: Mapping[str, int | float] = field(default_factory=dict)
    parameters: int = 0
    context: int = 0
    template: str = ""
    takes_tools: bool = False
    thinks: bool = False
    ends: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    on_gpu: bool = False
    made_at: str = ""

    def to_json(self) -> dict[str, object]:
        """As a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> ModelCard:
        """Read what `to_json` wrote, in this version or another; ValueError says which field is wrong."""
        document = fields.mapping(value, "card")
        known: dict[str, Any] = {}
        for name, default in vars(cls(fields.text(document, "digest"))).items():
            found = document.get(name, default)
            if isinstance(default, tuple):
                found = fields.texts({name: found}, name)
            elif type(found) is not type(default):
                raise ValueError(f"{name}: {type(default).__name__} is needed, not {found!r}")
            known[name] = found
        return cls(**known)
