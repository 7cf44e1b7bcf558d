"""What a model means beside its weights: template, ends, sampling, added tokens, head. It is decided once, by the rules
of transformers (artifacts/meaning.py), and everything takes it from there: engines, builders, gateway, `inspect`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.part import Part

# By these names transformers chooses: for chats with tools the second, where it is there.
DEFAULT, TOOL_USE = "default", "tool_use"

# Of an architecture's numbers those that clients are told, by the names that config.json has for them.
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)

# What is said of sampling where nobody says it: the model's own distribution, as OpenAI's API has it.
NEUTRAL: Mapping[str, float | int] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
}
NOBODY = "nobody"


# In a remark about a model that cannot chat.
NO_TEMPLATE = "chats are refused"


class AddedToken(Part):
    """A token beside the vocabulary that was learnt; special ones are left out of what clients read."""

    id: int
    text: str
    special: bool


class End(Part):
    """A token that ends an answer, and the files that say so."""

    id: int
    text: str
    said_by: tuple[str, ...]


class ChatTemplate(Part):
    """A Jinja template, and the name that it is chosen by."""

    name: str
    text: str


class Meaning(Part):
    """What a directory of weights, or a GGUF file, says of how to use it.

    `thinks`: what the chat template takes for enable_thinking where nobody says it; None where it does not ask.
    `takes_tools`: it asks for tools, or there is another one for them. `sizes` are the architecture's numbers by the
    names of config.json, `tokenizer` is what llama.cpp calls its kind, `dtype` what
    its weights are said to be.

    `files` are those of a directory that count, `left_out` what lies beside them and reaches no engine; `vocabulary` is
    a SHA-256 over the tokens, empty where there is no tokenizer. `sampling` is by the names of a profile's. `tied`: the
    head is the embedding. `ends_by_text` are tokens at which llama.cpp ends an answer by itself. `remarks` is what
    somebody who serves it should know.
    """

    architecture: str = ""
    model_type: str = ""
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    vocabulary: str = ""
    tied: bool = False
    added: tuple[AddedToken, ...] = ()
    templates: tuple[ChatTemplate, ...] = ()
    template_source: str = ""
    thinks: bool | None = None
    takes_tools: bool = False
    sizes: dict[str, float] = field(default_factory=dict)
    tokenizer: str = ""
    dtype: str = ""
    ends: tuple[End, ...] = ()
    ends_by_text: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def chats(self) -> bool:
        """Whether it says how a chat becomes a prompt."""
        return any(template.name == DEFAULT for template in self.templates)

    def with_template(self, text: str, thinks: bool | None, takes_tools: bool) -> Meaning:
        """The same with another chat template than its own."""
        return self.model_copy(
            {
                "templates": (ChatTemplate(name=DEFAULT, text=text),),
                "template_source": "the profile",
                "thinks": thinks,
                "takes_tools": takes_tools,
                "remarks": tuple(remark for remark in self.remarks if NO_TEMPLATE not in remark),
            }
        )

    def ends_at(self, end: End) -> bool:
        """Whether an answer ends at this token too, by its id or, in an engine that goes by texts, by that."""
        return any(end.id == one.id for one in self.ends) or end.text in self.ends_by_text

    def template(self, name: str) -> str:
        """The template of that name; empty where there is none."""
        return next((one.text for one in self.templates if one.name == name), "")


def deviations(ready: Meaning, weights: Meaning) -> tuple[str, ...]:
    """Where an artifact means something else than its weights do, in words."""
    found = []
    if ready.template(DEFAULT).strip() != weights.template(DEFAULT).strip():
        found.append("it has another chat template than the weights" if ready.chats else "it has no chat template")
    missing = sorted(end.text or str(end.id) for end in weights.ends if not ready.ends_at(end))
    if missing:
        found.append(f"it does not end answers at {', '.join(missing)}, and the weights do")
    # A GGUF has spaces where SentencePiece has a letter for them.
    theirs = {token.id: token.text.replace("\u2581", " ") for token in weights.added}
    ours = {token.id: token.text.replace("\u2581", " ") for token in ready.added}
    others = sorted(text for number, text in ours.items() if theirs.get(number, text) != text)
    if others:
        found.append(f"its tokens {', '.join(others[:5])} are other ones in the weights")
    return tuple(found)


@dataclass(frozen=True)
class SamplingDefault:
    """What is taken where a request does not say: a value, and who says it."""

    name: str
    value: float
    said_by: str


def sampling_defaults(
    profile: Mapping[str, float], meaning: Meaning | None, source: str = "generation_config.json"
) -> tuple[SamplingDefault, ...]:
    """The profile's before the model's, and those before what goes without saying."""
    model = meaning.sampling if meaning is not None else {}
    names = dict.fromkeys((*NEUTRAL, *model, *profile))
    found = []
    for name in names:
        if name in profile:
            found.append(SamplingDefault(name, profile[name], "the profile"))
        elif name in model:
            found.append(SamplingDefault(name, model[name], source))
        else:
            found.append(SamplingDefault(name, NEUTRAL[name], NOBODY))
    return tuple(found)
