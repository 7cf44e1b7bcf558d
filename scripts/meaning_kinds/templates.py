"""Chat templates, and where they stand."""

from __future__ import annotations

from meaning_kinds.recipes import CHATML, OTHER, file, kind, tokenizer_config, without

TOOLS = "{%- if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}" + CHATML
THINKING = (
    "{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}" + CHATML + "{%- if add_generation_prompt and enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
GENERATION = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
NO_SYSTEM = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system role.') }}{% endif %}" + CHATML

kind("plain", "tiny-qwen3 as it is.")
kind(
    "template-two",
    "chat_template.jinja is the trained one, tokenizer_config.json still holds another.",
    tokenizer_config(chat_template=OTHER),
)
kind("template-null", "null in tokenizer_config.json beside chat_template.jinja.", tokenizer_config(chat_template=None))
kind(
    "template-null-alone",
    "null in tokenizer_config.json and no file: a base model.",
    without("chat_template.jinja"),
    tokenizer_config(chat_template=None),
)
kind("template-none", "No template anywhere: a base model.", without("chat_template.jinja"))
kind(
    "template-config",
    "The template stands in tokenizer_config.json only, as all did before 2025.",
    without("chat_template.jinja"),
    tokenizer_config(chat_template=CHATML),
)
kind(
    "template-list",
    "tokenizer_config.json has named templates, default and tool_use.",
    without("chat_template.jinja"),
    tokenizer_config(chat_template=[{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOLS}]),
)
kind(
    "template-list-no-default",
    "tokenizer_config.json has a list with tool_use only.",
    without("chat_template.jinja"),
    tokenizer_config(chat_template=[{"name": "tool_use", "template": TOOLS}]),
)
kind(
    "template-list-beside",
    "A list of named templates in tokenizer_config.json beside chat_template.jinja, which replaces them all.",
    tokenizer_config(chat_template=[{"name": "default", "template": OTHER}, {"name": "tool_use", "template": TOOLS}]),
)
kind(
    "template-more",
    "chat_template.jinja, and tool_use in additional_chat_templates.",
    file("additional_chat_templates/tool_use.jinja", TOOLS),
)
kind(
    "template-more-only",
    "tool_use in additional_chat_templates, and the rest nowhere.",
    without("chat_template.jinja"),
    file("additional_chat_templates/tool_use.jinja", TOOLS),
)
kind(
    "template-more-beside",
    "tool_use in additional_chat_templates; the template of tokenizer_config.json is replaced by it.",
    without("chat_template.jinja"),
    file("additional_chat_templates/tool_use.jinja", TOOLS),
    tokenizer_config(chat_template=CHATML),
)
kind(
    "template-more-rag",
    "A template in additional_chat_templates that nothing asks for.",
    file("additional_chat_templates/rag.jinja", OTHER),
)
kind(
    "template-json",
    "chat_template.json, which is a processor's and no tokenizer's.",
    without("chat_template.jinja"),
    file("chat_template.json", {"json": {"chat_template": OTHER}}),
)
kind(
    "template-json-beside",
    "chat_template.json with another template beside chat_template.jinja.",
    file("chat_template.json", {"json": {"chat_template": OTHER}}),
)
kind("template-empty", "chat_template.jinja is empty.", file("chat_template.jinja", ""))
kind(
    "template-thinking",
    "A template that knows tools and enable_thinking.",
    file("chat_template.jinja", THINKING),
)
kind(
    "template-generation",
    "A template with the tag {% generation %}, as TRL trains by.",
    file("chat_template.jinja", GENERATION),
)
kind("template-no-system", "A template that refuses system messages.", file("chat_template.jinja", NO_SYSTEM))
kind(
    "template-broken",
    "A template that is no Jinja.",
    file("chat_template.jinja", CHATML + "{% if %}"),
)
kind(
    "template-crlf",
    "chat_template.jinja with the line ends of Windows.",
    file("chat_template.jinja", CHATML.replace("\n", "\r\n")),
)
kind(
    "template-newline",
    "chat_template.jinja with a line break at its end.",
    file("chat_template.jinja", CHATML + "\n"),
)
