"""What a directory of weights means, by the rules of transformers 5, in one place: see core/meaning.py.

Only small files are read here. Whether a head is another matrix than the embedding, the weights themselves say
(one_pass.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from orchestrator.artifacts.chat_templates import read_templates
from orchestrator.artifacts.generation import read_ends, read_sampling
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.tokenizer_files import TokenizerFiles, read_tokenizer_files
from orchestrator.core.meaning import DEFAULT, NO_TEMPLATE, AddedToken, ChatTemplate, End, Meaning
from orchestrator.core.weights import INDEX, TEMPLATES, files_left_out, files_that_count

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
_TOKENIZER = "the tokenizer"


def read_meaning(directory: Path, template: str | None = None) -> Meaning:
    """The meaning of a Hugging Face directory; `template` is a chat template that a profile names in place of its own.

    SourceError where its files contradict each other, or are not what their names say.
    """
    names = _names(directory)
    counted = files_that_count(names, lambda: _shards(directory))
    config = read_json(directory / "config.json")
    tokenizer = read_tokenizer_files(directory)
    templates, source = read_templates(directory)
    sampling, ignored = read_sampling(directory)
    ends = _ends(directory, tokenizer)
    architectures = config.get("architectures")
    found = Meaning(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        files=counted,
        left_out=files_left_out(names, counted),
        vocabulary=tokenizer.digest,
        tied=bool(config.get("tie_word_embeddings")),
        added=tuple(AddedToken(id=one.id, text=one.text, special=one.special) for one in tokenizer.added),
        templates=templates,
        template_source=source,
        ends=ends,
        sampling=sampling,
        remarks=tuple(_remarks(tokenizer, templates, ends, ignored)),
    )
    return found.with_template(template) if template is not None else found


def _names(directory: Path) -> list[str]:
    found = [path.name for path in directory.iterdir()]
    return [*found, *(f"{TEMPLATES}/{path.name}" for path in (directory / TEMPLATES).glob("*.jinja"))]


def _shards(directory: Path) -> Collection[str]:
    """The files that an index names; what is wrong with it is told when the weights are opened."""
    found = read_json(directory / INDEX).get("weight_map")
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


def _remarks(
    tokenizer: TokenizerFiles, templates: tuple[ChatTemplate, ...], ends: tuple[End, ...], ignored: tuple[str, ...]
) -> list[str]:
    found = []
    if not templates:
        found.append(f"it has no chat template: completions are served, and {NO_TEMPLATE}")
    elif all(one.name != DEFAULT for one in templates):
        names = ", ".join(one.name for one in templates)
        found.append(f"its chat templates are {names}, and none is the default: {NO_TEMPLATE}")
    if not ends:
        found.append("none of its files names a token that ends an answer: answers end at their limit")
    listed = {end.id for end in ends}
    added = sorted(text for text, number in tokenizer.ids.items() if text in LLAMA_CPP_ENDS and number not in listed)
    if added:
        found.append(
            f"llama.cpp and Ollama also end an answer at {', '.join(added)}, which the model does not list, and show "
            "clients nothing of it"
        )
    if ignored:
        found.append(f"generation_config.json says {', '.join(ignored)}, which no engine heeds")
    return found
