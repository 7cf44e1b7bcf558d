"""What a directory of weights means, by the rules of transformers 5, in one place: see core/meaning.py.

Of the weights only what stands at the head of their files is read here. Whether a head is another matrix than the
embedding, they say themselves (head.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts.chat_rendering import asked_of, render_chat, template_problem
from orchestrator.artifacts.chat_templates import read_templates
from orchestrator.artifacts.contradictions import refuse_contradictions
from orchestrator.artifacts.generation import read_ends, read_sampling
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.tokenizer_files import TokenizerFiles, put_around, read_tokenizer_files
from orchestrator.core.meaning import DEFAULT, NO_TEMPLATE, SIZES, TOOL_USE, AddedToken, ChatTemplate, End, Meaning
from orchestrator.core.weights import INDEX, SINGLE, TEMPLATES, files_left_out, files_that_count
from orchestrator.errors import SourceError

# llama.cpp takes these for ends by their text, in whatever vocabulary they stand, and hides them from clients; of the
# third group it takes the first of a kind that it finds (src/llama-vocab.cpp, special_eog_ids and special_fim_*_id).
LLAMA_CPP_ENDS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
        "<|file_sep|>",
    }
)  # fmt: skip
ADAPTER = "adapter_config.json"
_TOKENIZER = "the tokenizer"


def read_meaning(directory: Path, template: str | None = None) -> Meaning:
    """The meaning of a Hugging Face directory; `template` is a chat template that a profile names in place of its own.

    SourceError where its files contradict each other, or are not what their names say.
    """
    names = _names(directory)
    counted = files_that_count(names, lambda: shards_of(directory))
    config = read_json(directory / "config.json")
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise SourceError(
            f"{directory / 'config.json'} says that its weights are in {named!r} (transformers_weights).",
            f"Give that file the name {SINGLE}, and take transformers_weights out of config.json.",
        )
    refuse_contradictions(directory, config)
    tokenizer = read_tokenizer_files(directory)
    templates, source = read_templates(directory)
    broken = {one.name: problem for one in templates if (problem := template_problem(one.text))}
    templates = tuple(one for one in templates if one.name not in broken)
    sampling, ignored = read_sampling(directory)
    ends = _ends(directory, tokenizer)
    architectures = config.get("architectures")
    found = Meaning(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        model_type=str(config.get("model_type") or ""),
        files=counted,
        left_out=files_left_out(names, counted),
        vocabulary=tokenizer.digest,
        tied=bool(config.get("tie_word_embeddings")),
        added=tuple(AddedToken(id=one.id, text=one.text, special=one.special) for one in tokenizer.added),
        templates=templates,
        template_source=source,
        thinks=thinks_by_itself(next((one.text for one in templates if one.name == DEFAULT), "")),
        takes_tools=takes_tools({one.name: one.text for one in templates}),
        sizes=_sizes(config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        tokenizer="llama" if tokenizer.is_spm else "gpt2",
        ends=ends,
        sampling=sampling,
        remarks=(
            *_of_templates(templates, broken),
            *_of_ends(tokenizer, ends),
            *_of_texts(tokenizer, templates, str(config.get("model_type"))),
            *(["generation_config.json says " + ", ".join(ignored) + ", which no engine heeds"] if ignored else []),
            *(["an adapter lies beside the weights, and is not applied: orch lora add"] if ADAPTER in names else []),
        ),
    )
    if template is None:
        return found
    return found.with_template(template, thinks_by_itself(template), takes_tools({DEFAULT: template}))


def _names(directory: Path) -> list[str]:
    found = [path.name for path in directory.iterdir()]
    return [*found, *(f"{TEMPLATES}/{path.name}" for path in (directory / TEMPLATES).glob("*.jinja"))]


def shards_of(directory: Path) -> Collection[str]:
    """The files that an index names; what is wrong with it is told when the weights are opened."""
    index = directory / INDEX
    found = read_json(index).get("weight_map") if index.is_file() else None
    return {name for name in found.values() if isinstance(name, str)} if isinstance(found, dict) else ()


def _ends(directory: Path, tokenizer: TokenizerFiles) -> tuple[End, ...]:
    """All that any of its files calls an end; the tokenizer's own first, because engines stop there whoever else
    agrees."""
    ids, said = tokenizer.ids, read_ends(directory)
    texts = {number: text for text, number in ids.items()}
    own = ids.get(tokenizer.named.get("eos", ""))
    if own is not None:
        said = {own: (*said.pop(own, ()), _TOKENIZER), **said}
    return tuple(End(id=number, text=texts.get(number, ""), said_by=files) for number, files in said.items())


def _of_templates(templates: tuple[ChatTemplate, ...], broken: Mapping[str, str]) -> list[str]:
    found = [f"its chat template {name} cannot be used: {problem}" for name, problem in broken.items()]
    if not templates:
        found.append(f"it has no chat template: completions are served, and {NO_TEMPLATE}")
    elif all(one.name != DEFAULT for one in templates):
        names = ", ".join(one.name for one in templates)
        found.append(f"its chat templates are {names}, and none is the default: {NO_TEMPLATE}")
    return found


def _of_ends(tokenizer: TokenizerFiles, ends: tuple[End, ...]) -> list[str]:
    found = []
    if not ends:
        found.append("none of its files names a token that ends an answer: answers end at their limit")
    listed = {end.id for end in ends}
    added = sorted(text for text, number in tokenizer.ids.items() if text in LLAMA_CPP_ENDS and number not in listed)
    if added:
        found.append(
            f"llama.cpp and Ollama also end an answer at {', '.join(added)}, which the model does not list, and show "
            "clients nothing of it"
        )
    special = {one.id for one in tokenizer.added if one.special}
    shown = [end.text for end in ends if end.text and end.id not in special and end.text not in LLAMA_CPP_ENDS]
    if shown:
        texts = ", ".join(map(repr, shown))
        found.append(
            f"answers that end at {texts}, which is not a special token, have that text last on llama.cpp and Ollama, "
            "and end before it on vLLM"
        )
    return found


def _of_texts(tokenizer: TokenizerFiles, templates: tuple[ChatTemplate, ...], model_type: str) -> list[str]:
    """What llama.cpp does otherwise with texts that are to be completed."""
    found = []
    default = next((one.text for one in templates if one.name == DEFAULT), "")
    adds = put_around(tokenizer) or {}
    bos = tokenizer.named.get("bos")
    if default and bos and adds.get("bos") and not writes_bos(default, tokenizer):
        found.append(
            f"texts to be completed do not begin with {bos} on llama.cpp and Ollama: there is "
            "one setting, and the chat template does not write it"
        )
    if tokenizer.is_spm and loses_space(tokenizer, model_type, default):
        found.append(
            "texts to be completed have no space in front on llama.cpp and Ollama: there is one setting, and after the "
            "special token that a chat begins with there is none"
        )
    elif tokenizer.is_spm and (where := tokenizer.space_in_front(model_type)) in _ONE_MORE:
        found.append(f"what {_ONE_MORE[where]} has one space more on llama.cpp and Ollama, as it had in transformers 4")
    return found


def thinks_by_itself(template: str) -> bool | None:
    """What a chat template takes for enable_thinking where it is not told: engines that always tell it must know."""
    if "enable_thinking" not in template:
        return None
    try:
        unsaid = render_chat(template, _HELLO)
        said = {value: render_chat(template, _HELLO, enable_thinking=value) for value in (True, False)}
    except SourceError:
        return None
    return next((value for value, text in said.items() if said[True] != said[False] and text == unsaid), None)


def takes_tools(templates: Mapping[str, str]) -> bool:
    """Whether chats may name tools: the default template, of these by name, heeds them, or another one is for them."""
    return DEFAULT in templates and (TOOL_USE in templates or "tools" in asked_of(templates[DEFAULT]))


def _sizes(config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a config.json that describe its architecture."""
    rope = config.get("rope_parameters")
    known = {**config, **(rope if isinstance(rope, dict) else {})}
    return {name: float(known[name]) for name in SIZES if type(known.get(name)) in (int, float)}


def writes_bos(template: str, tokenizer: TokenizerFiles) -> bool:
    """Whether a chat's prompt begins with the token that texts begin with."""
    bos = tokenizer.named.get("bos", "")
    named: dict[str, Any] = {f"{name}_token": text for name, text in tokenizer.named.items()}
    try:
        return bool(bos) and render_chat(template, _HELLO, **named).startswith(bos)
    except SourceError:
        return True


def loses_space(tokenizer: TokenizerFiles, model_type: str, template: str) -> bool:
    """Whether chats begin with a special token after which no space is put, though one is put in front of other texts:
    a GGUF has one setting for both, and chats come first."""
    return tokenizer.space_in_front(model_type) == "first" and bool(template) and writes_bos(template, tokenizer)


_ONE_MORE = {"always": "begins with a space", "first": "begins with a space or follows a special token"}
_HELLO = ({"role": "user", "content": "Hello!"},)
