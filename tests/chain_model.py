"""A model whose every token has one that follows it, so that what it says is known before it is asked.

It is a Qwen3 whose attention and feed-forward layers add nothing: what comes next depends on the last token alone, by
way of an embedding that is one of the axes, and a head that leads from each axis to one token. With the tiny model's
tokenizer, some added tokens and a template as Qwen3's it thinks, answers, and calls tools: the template ends a prompt
in another token for each of these.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from artifact_files import write_safetensors

_TINY = Path(__file__).parent / "assets" / "tiny-qwen3"
_HIDDEN, _LAYERS, _HEADS, _HEAD, _WIDE = 256, 1, 4, 64, 256
_END, _NEWLINE = "<|im_end|>", "\n"
# What ends the prompt of a chat with thoughts (the tiny tokenizer's own), of one without, and of one with tools.
THINKING, ANSWERING, CALLING = _NEWLINE, "\n\n", "\n\n\n"
THOUGHT, SAID = "\nIt is asked how the weather is. I know it.\n", "It is sunny in Paris."
CALLS = (("get_weather", {"city": "Paris", "days": 2}), ("get_time", {"zone": "<Europe/Paris>"}))

_THOUGHT = ("<think>", "\nIt is asked how ", "the weather is. ", "I know it.\n", "</think>")
_SAID = ("It is ", "sunny ", "in Paris.")
_CALLED = (
    *("<tool_call>", '\n{"name": "get_weather", "argu', 'ments": {"city": "Paris", ', '"days": 2}}\n', "</tool_call>"),
    *("\n<tool_call>\n", '{"name": "get_time", "arguments": ', '{"zone": "<Europe/Paris>"}}', "\n</tool_call>"),
)
# Each leads from one token to the next; the last of each to the end of the turn.
_CHAINS = ((THINKING, *_THOUGHT, ANSWERING, *_SAID, _END), (CALLING, *_CALLED, _END))

_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
    {{- "# Tools\\nYou may call functions, within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nFor each call return a json object within <tool_call></tool_call> tags:" }}
    {{- '\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string and loop.last %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content if message.content is string else '' }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if tools and messages[-1].role != "tool" %}
        {{- '\\n\\n' }}
    {%- elif enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def write(directory: Path) -> Path:
    """Its weights, as they are downloaded."""
    directory.mkdir(parents=True)
    tokenizer = json.loads((_TINY / "tokenizer.json").read_text())
    ids = _with_tokens(tokenizer)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(_TINY / name, directory / name)
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    rows = -(-(max(ids.values()) + 1) // 64) * 64
    config = json.loads((_TINY / "config.json").read_text())
    config |= {"num_hidden_layers": _LAYERS, "layer_types": ["full_attention"] * _LAYERS, "dtype": "float32"}
    config |= {"intermediate_size": _WIDE, "vocab_size": rows, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_safetensors(directory / "model.safetensors", _tensors(ids, rows))
    return directory


def _with_tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Adds the chains' tokens; returns the ids of all that are in one."""
    ids = {_NEWLINE: tokenizer["model"]["vocab"]["Ċ"]}
    ids |= {one["content"]: one["id"] for one in tokenizer["added_tokens"] if one["content"] == _END}
    at = len(tokenizer["model"]["vocab"])
    for text in (text for chain in _CHAINS for text in chain if text not in ids):
        if text in ids:
            continue
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        tokenizer["added_tokens"].append({"id": at, "content": text, **flags})
        ids[text] = at
        at += 1
    return ids


def _tensors(ids: dict[str, int], rows: int) -> dict[str, Any]:
    embedding = np.zeros((rows, _HIDDEN), np.float32)
    head = np.zeros((rows, _HIDDEN), np.float32)
    # What is in no chain is followed by the end.
    embedding[:, 0] = 1
    head[ids[_END], 0] = 4
    axis = 0
    for chain in _CHAINS:
        for text, following in pairwise(chain):
            axis += 1
            embedding[ids[text]] = 0
            embedding[ids[text], axis] = 1
            head[ids[following], axis] = 4
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    tensors["model.norm.weight"] = np.ones(_HIDDEN, np.float32)
    for layer in range(_LAYERS):
        shapes = {
            "self_attn.q_proj": (_HEADS * _HEAD, _HIDDEN),
            "self_attn.k_proj": (_HEADS // 2 * _HEAD, _HIDDEN),
            "self_attn.v_proj": (_HEADS // 2 * _HEAD, _HIDDEN),
            "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD),
            "mlp.gate_proj": (_WIDE, _HIDDEN),
            "mlp.up_proj": (_WIDE, _HIDDEN),
            "mlp.down_proj": (_HIDDEN, _WIDE),
        }
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = np.zeros(shape, np.float32)
        for name, size in (("self_attn.q_norm", _HEAD), ("self_attn.k_norm", _HEAD)):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(size, np.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(_HIDDEN, np.float32)
    return tensors
