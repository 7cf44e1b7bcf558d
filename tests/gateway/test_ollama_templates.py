"""Go's templates, as far as Modelfiles go."""

from __future__ import annotations

import pytest

from orchestrator.gateway.dialects.ollama.go_template import Template, TemplateError

VALUES = {
    "System": "S",
    "Prompt": "P",
    "Response": "",
    "Messages": [{"Role": "system", "Content": "S"}, {"Role": "user", "Content": "P"}],
}
# As of Ollama's library: of Llama 2, ChatML, Llama 3, Qwen 2.5, Phi 3.
LIBRARY = {
    "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]": "[INST] <<SYS>>S<</SYS>>\n\nP [/INST]",
    (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    ): "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
    (
        "{{- range $i, $_ := .Messages }}\n{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n"
        '{{- if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}'
        "{{ if not $last }}<|im_end|>\n{{ end }}\n"
        '{{- else if or (eq .Role "system") $.Tools }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ end }}\n'
        '{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant\n{{ end }}\n{{- end }}'
    ): "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
    '{{ $system := "" }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = .Content }}{{ else }}'
    "{{ $system }}+{{ .Content }}{{ end }}{{ end }}": "S+P",
    "{{ range .Tools }}x{{ else }}none{{ end }}{{ with .System }}<{{ . }}>{{ end }}{{/* a word */}}": "none<S>",
    '{{ if and .System (or .Tools .Prompt) }}{{ "a\\n" }}{{ `b"` }}{{ .Prompt | len }}{{ end }}': 'a\nb"1',
}


@pytest.mark.parametrize("source", LIBRARY)
def test_templates_of_the_library(source: str) -> None:
    assert Template(source).cut().run(VALUES) == LIBRARY[source]


@pytest.mark.parametrize(
    "source",
    [
        "{{ .Prompt }}{{ .Response }} and more {{ .System }}",
        "{{ .Prompt }}{{ if .Response }}{{ .Response }}<end>{{ end }} and more",
        "{{ .Prompt }}{{ if .Prompt }}{{ .Response }}<end>{{ else }}x{{ end }} and more",
    ],
)
def test_what_follows_the_answer_is_not_said_before_it(source: str) -> None:
    assert Template(source).cut().run(VALUES) == "P"


@pytest.mark.parametrize(
    "source",
    [
        *("{{ .Prompt", "{{ if .Prompt }}x", "{{ end }}", "{{ else }}", "{{ if .A }}{{ else }}{{ else }}{{ end }}"),
        *('{{ printf "%s" .Prompt }}', '{{ template "x" }}', '{{ define "x" }}{{ end }}', "{{ json .Tools }}"),
        *(
            "{{ .A .B }}",
            "{{ (.A).B }}",
            "{{ $x }}",
            "{{ .A := 1 }}",
            "{{ 1 + 2 }}",
            "{{ }}",
            '{{ "a }}',
            '{{ "\\x41" }}',
        ),
        *("{{ range .Prompt }}x{{ end }}", "{{ slice .Prompt 5 }}", "{{ index .Messages 9 }}", "{{ lt .Prompt 1 }}"),
        "{{ if .A }}" * 80 + "{{ end }}" * 80,
        "{{ not " + "(" * 80 + ".A" + ")" * 80 + " }}",
        "{{ range $.Messages }}" * 40 + "x" + "{{ end }}" * 40,
    ],
)
def test_what_cannot_be_run_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        Template(source).run(VALUES)


def test_a_long_template_is_read_at_once() -> None:
    with pytest.raises(TemplateError, match="unclosed"):
        Template("{{" * 1_000_000)
