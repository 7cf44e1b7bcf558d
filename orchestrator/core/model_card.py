"""What there is to say of a served model to clients that ask for it: the gateway keeps it with the route."""

from __future__ import annotations

from dataclasses import field

from orchestrator.core.part import Part


class ModelCard(Part):
    """A model as it is served.

    `digest` are 64 hexadecimal digits that name the artifact, `key` is its entry in the store, `size` its bytes,
    `format` and `quantization` what it is ("gguf", "Q6_K"). `family` is the architecture by the name that config.json
    has for it (model_type), `sizes` its numbers by their names there (num_hidden_layers, ...), `parameters` how many
    weights it has, `tokenizer` what llama.cpp calls its kind. `context` is what one request may have of it, in tokens.
    `template` is its chat template in Jinja (empty: it has none), which `takes_tools` or not, and `thinks` or not.
    `ends` are the texts that end an answer, `sampling` what is taken where a request does not say. `on_gpu`: its
    weights lie in a GPU's memory. `made_at` is when the artifact was finished, in ISO 8601 (empty: the store does not
    say). An adapter's card has `base`, the public name of what it changes, and else only what differs from that.
    """

    digest: str
    key: str = ""
    base: str = ""
    size: int = 0
    format: str = ""
    quantization: str = ""
    family: str = ""
    sizes: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    tokenizer: str = ""
    context: int = 0
    template: str = ""
    takes_tools: bool = False
    thinks: bool = False
    ends: tuple[str, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)
    on_gpu: bool = False
    made_at: str = ""

    def __post_init__(self) -> None:
        """Keep numbers in the one form that they are read in: routes are compared as they are written."""
        for name in ("sizes", "sampling"):
            numbers = getattr(self, name)
            object.__setattr__(self, name, {key: float(value) for key, value in numbers.items()})

    def to_json(self) -> dict[str, object]:
        """As a plain JSON object."""
        return self.model_dump()

    @classmethod
    def from_json(cls, value: object) -> ModelCard:
        """Read what `to_json` wrote, in this version or another; ValueError says which field is wrong."""
        return cls.model_validate(value, extra="ignore")

    @property
    def as_planned(self) -> ModelCard:
        """Without what is known only once the artifact is there."""
        return self.model_copy({"size": 0, "made_at": ""})
