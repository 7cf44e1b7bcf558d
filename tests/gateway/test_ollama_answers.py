"""Answers in OpenAI's API as Ollama gives them, whole and streamed, cut anywhere, and broken in any way."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_engine import counting, event, lines_of, stream, texts

from orchestrator.core.routes import LLAMA_SERVER, VLLM
from orchestrator.gateway.dialects.base import EndedEarlyError, Question, Said
from orchestrator.gateway.dialects.ollama import Ollama
from orchestrator.gateway.dialects.ollama.answers import Answer, Reading
from orchestrator.gateway.dialects.ollama.asked import Asked
from orchestrator.gateway.dialects.ollama.splitters import Calls, Thoughts
from orchestrator.gateway.dialects.ollama.translated import translated
from orchestrator.gateway.refusals import Refusal

PLAIN, APART = Reading(), Reading(thinks=True, calls=True)
CALLED = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
DONE = {"done": True, "done_reason": "stop", "prompt_eval_count": 7}


def answer(reading: Reading = PLAIN, chats: bool = True) -> Answer:
    return Answer("tiny", chats, 1, reading)


def read(parts: list[bytes], reading: Reading = PLAIN, chats: bool = True) -> list[dict[str, Any]]:
    """The lines that an engine's stream becomes."""
    one = answer(reading, chats)
    return lines_of([*map(one.part, parts), asyncio.run(one.end())])


def whole(message: object, reading: Reading = PLAIN, chats: bool = True, **more: object) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop", **more}], "usage": usage}).encode()
    said = asyncio.run(answer(reading, chats).whole(200, body))
    assert (said.status, said.content_type) == (200, "application/json; charset=utf-8")
    return lines_of([said.body])[0]


def chat(content: str = "", done: bool = False, **message: object) -> dict[str, Any]:
    return {"model": "tiny", "message": {"role": "assistant", "content": content, **message}, "done": done}


def called(index: int, name: str, arguments: object) -> dict[str, Any]:
    return chat(tool_calls=[{"function": {"index": index, "name": name, "arguments": arguments}}])


def test_a_line_for_each_event_and_one_at_the_end() -> None:
    last = {**chat(), **DONE, "eval_count": 3}
    assert read([stream(*texts("Hel", "", "lo"))]) == [chat("Hel"), chat("lo"), last]
    said = [{"model": "tiny", "response": text, "done": False} for text in ("a", "b")]
    parts = [event(text="a"), event(text="b", finish_reason="length"), b"data: [DONE]\n\n"]
    end = {"model": "tiny", "response": "", "done": True, "done_reason": "length"}
    assert read(parts, chats=False) == [*said, end]


def test_lines_are_written_as_go_does() -> None:
    one = answer()
    line = one.part(event({"content": '<a href="x">&\u2028\u00e4'}))
    head, _, rest = line.partition(b'","message":')
    assert head.startswith(b'{"model":"tiny","created_at":"20')
    assert rest == (
        '{"role":"assistant","content":"\\u003ca href=\\"x\\"\\u003e\\u0026\\u2028\u00e4"},"done":false}\n'.encode()
    )


def test_a_whole_answer() -> None:
    assert whole({"role": "assistant", "content": "Hi"}) == {**chat("Hi"), **DONE, "eval_count": 2}
    wanted = {"model": "tiny", "response": "Hi", "thinking": "Hm", **DONE, "eval_count": 2}
    assert whole({"content": "Hi", "reasoning_content": "Hm"}, chats=False) == wanted
    assert whole({"content": "Hi", "reasoning": "Hm"}, chats=False) == wanted
    assert whole({"content": "<think>\nHm\n</think>\n\nHi"}, APART, chats=False) == wanted
    assert whole({"content": "Hello"}, Reading(beginning="Hel"))["message"]["content"] == "lo"


def test_figures_are_the_engine_s_where_it_tells_them() -> None:
    timings = {"prompt_ms": 1.5, "predicted_ms": 2.25}
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "timings": timings}).encode()
    said = json.loads(asyncio.run(answer().whole(200, body)).body)
    assert (said["prompt_eval_duration"], said["eval_duration"]) == (1_500_000, 2_250_000)


def test_thoughts_are_told_apart() -> None:
    wanted = [chat(thinking="I"), chat(thinking=" see"), chat("Yes")]
    for name in ("reasoning", "reasoning_content"):
        assert read([stream({name: "I"}, {name: " see"}, {"content": "Yes"})], APART)[:-1] == wanted
    pieces = ("<th", "ink>\n", "I", " see", "\n</thi", "nk>\n", "\n", "Yes")
    assert read([stream(*texts(*pieces))], APART)[:-1] == wanted
    # An engine that tells them apart, and leaves the blanks.
    pieces_apart = ({"reasoning": "\nI"}, {"reasoning": " see"}, {"content": "\n\n"}, {"content": " Yes"})
    assert read([stream(*pieces_apart)], APART)[:-1] == wanted
    assert whole({"content": "\n\nHi", "reasoning": "\nHm"}, APART)["message"] == chat("Hi", thinking="Hm")["message"]
    # A prompt that ends within a thought.
    assert read([stream(*texts(*pieces[2:]))], Reading(thinks=True, begun=True))[:-1] == wanted
    prompted = json.loads(event({"content": ""}).removeprefix(b"data: ")) | {"prompt_text": "...<think>\n"}
    first = b"data: " + json.dumps(prompted).encode() + b"\n\n"
    assert read([first, stream(*texts(*pieces[2:]))], APART)[:-1] == wanted


def test_a_text_without_thoughts_is_said() -> None:
    for text in ("<thin", "Yes", " <b>", "a <think> b </think>"):
        assert "".join(line["message"]["content"] for line in read([stream(*texts(*text))], APART)) == text


def test_calls_in_pieces_are_told_whole() -> None:
    pieces = [
        {"tool_calls": [{"index": 0, "id": "call_a", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "[1]}"}}]},
        {"tool_calls": [{"index": 1, "id": "call_b", "function": {"name": "g", "arguments": "{}"}}]},
    ]
    raw = b"".join([answer().part(stream(*pieces, reason="tool_calls"))])
    assert b'"tool_calls":[{"id":"call_a","function":{"index":0,"name":"f","arguments":{"a":[1]}}}]}' in raw
    lines = read([stream(*pieces, reason="tool_calls")])
    assert lines[:-1] == [called(0, "f", {"a": [1]}), called(1, "g", {})]
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize(
    "text",
    [
        CALLED,
        '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    ],
)
def test_calls_in_a_text_are_told(text: str) -> None:
    for pieces in ([text], [*text]):
        said = read([stream(*texts("Wait. ", *pieces, "\n", *pieces))], APART)
        assert said[:-1] == [chat("Wait."), called(0, "f", {"a": 1}), called(1, "f", {"a": 1})]
    both = whole({"content": f"{text}\n{text}"}, APART)["message"]["tool_calls"]
    assert [call["function"]["index"] for call in both] == [0, 1]


@pytest.mark.parametrize(
    "text", ["<tool_call>no</tool_call>", '<tool_call>\n{"name": ', "a <tool_cal", "<tool_call>" * 2]
)
def test_what_is_no_call_is_said(text: str) -> None:
    for pieces in ([text], [*text]):
        assert "".join(line["message"]["content"] for line in read([stream(*texts(*pieces))], APART)) == text


def test_half_a_call_is_told_as_text() -> None:
    half = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a": '}}]}
    first, last = read([stream(half, reason="length")])
    assert json.loads(first["message"]["content"]) == {"name": "f", "arguments": '{"a": '}
    assert last["done_reason"] == "length"


def test_logprobs_are_told_with_their_tokens() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97]}
    given = {"content": [{"id": 3, **token, "top_logprobs": [{"id": 3, **token}, {"id": 4, **token}]}]}
    body = [event({"content": "a"}, logprobs=given), b"data: [DONE]\n\n"]
    assert read(body, Reading(tops=1))[0] == {**chat("a"), "logprobs": [{**token, "top_logprobs": [token]}]}
    assert read(body, Reading(tops=0))[0] == {**chat("a"), "logprobs": [token]}
    old = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]}
    body = [event(text="a", logprobs=old), b"data: [DONE]\n\n"]
    assert read(body, Reading(tops=1))[0]["logprobs"] == [{**token, "top_logprobs": [token]}]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'data: {"error": {"code": 500, "message": "no more", "type": "x"}}\n\n', "no more"),
        (b'error: {"code": 500, "message": "no more"}\n\n', "no more"),
        (b'data: {"error": "no more"}\n\ndata: [DONE]\n\n', "no more"),
        (b'data: {"choices": 5}\n\n', "the engine's answer cannot be read: "),
        (b"data: nothing\n\n", "the engine's answer cannot be read: "),
        (b"data: " + b"[" * 5000 + b"\n\n", "the engine's answer cannot be read: "),
    ],
)
def test_an_error_in_a_stream_is_its_end(body: bytes, text: str) -> None:
    first, last = read([event({"content": "a"}), body, event({"content": "b"})])
    assert first == chat("a")
    assert last.keys() == {"error"}
    assert last["error"].startswith(text)


@pytest.mark.parametrize("cut", [b"", b"data: [DONE", b": ping\n\n"])
def test_a_stream_that_ends_too_early_is_not_whole(cut: bytes) -> None:
    one = answer()
    one.part(event({"content": "a"}) + cut)
    with pytest.raises(EndedEarlyError):
        asyncio.run(one.end())


@pytest.mark.parametrize(
    ("status", "body", "told", "text"),
    [
        (400, b'{"error": {"message": "too long", "code": 400}}', 400, "too long"),
        (422, b'{"detail": "bad"}', 400, "bad"),
        (404, b'{"object": "error", "message": "gone"}', 400, "gone"),
        (503, b'{"error": {"message": "Loading model"}}', 503, "Loading model"),
        (500, b"Internal Server Error", 500, "Internal Server Error"),
        (502, b"", 500, "the engine gave no reason"),
    ],
)
def test_an_engine_s_error_has_ollama_s_shape(status: int, body: bytes, told: int, text: str) -> None:
    said = asyncio.run(answer().whole(status, body))
    assert (said.status, json.loads(said.body)) == (told, {"error": text})


def test_the_tokens_of_both_sides_are_told_at_the_end() -> None:
    async def both(whole: bool) -> dict[str, Any]:
        engine = counting(LLAMA_SERVER)
        body = {"model": "tiny", "prompt": "P", "stream": not whole}
        put = await translated(Asked.read("/api/generate", json.dumps(body).encode()), "/api/generate", engine)
        assert isinstance(put, Question)
        assert engine.asked == []
        if whole:
            said = await put.reply.whole(200, b'{"choices": [{"message": {"content": "ab"}}]}')
            return json.loads(said.body)
        put.reply.part(stream(*texts("a", "b")))
        return json.loads((await put.reply.end()).splitlines()[-1])

    for kind in (True, False):
        last = asyncio.run(both(kind))
        assert last["context"] == [*map(ord, "[P]ab")]
        assert [*last][:6] == ["model", "created_at", "response", "done", "done_reason", "context"]


Text = TypeVar("Text", str, bytes)
SAID = st.lists(st.text(max_size=8), max_size=8)
MARKED = st.lists(
    st.sampled_from(["<think>", "</think>", CALLED, "<tool_", "\n", "a\u00e4\U0001f600", " ", "<"]), max_size=8
)
CUTS = st.lists(st.integers(0, 4000), max_size=12)


def cut(data: Text, places: list[int]) -> list[Text]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(SAID | MARKED, CUTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_wherever_a_stream_is_cut_the_lines_are_the_same(said: list[str], places: list[int], apart: bool) -> None:
    data, reading = stream(*texts(*said)), APART if apart else PLAIN
    assert read(cut(data, places), reading) == read([data], reading)


@given(MARKED, CUTS)
@settings(max_examples=300, deadline=None)
def test_wherever_a_text_is_cut_it_is_taken_apart_alike(said: list[str], places: list[int]) -> None:
    text = "".join(said)

    def parted(parts: list[str]) -> tuple[str, str, list[str]]:
        thoughts, calls = Thoughts(), Calls()
        thought, spoken, made = "", "", []
        for one, rest in [*((thoughts.take(part)) for part in parts), thoughts.rest()]:
            thought += one
            more, found = calls.take(rest)
            spoken += more
            made += [call.name for call in found]
        return thought, spoken + calls.rest(), made

    assert parted(cut(text, places)) == parted([text])


# Bodies and streams from which others are made by small changes.
BODIES = [
    b'{"model": "tiny", "messages": [{"role": "user", "content": "Hello \\u00e4"}], '
    b'"options": {"num_ctx": 64, "seed": 1}}',
    b'{"model": "tiny", "messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", '
    b'"arguments": {"a": [1, {"b": null}]}}}]}, {"role": "tool", "tool_name": "f", "content": "x"}], "think": "low", '
    b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], '
    b'"keep_alive": "5m"}',
    b'{"model": "tiny", "prompt": "P", "system": "S", "template": "{{ if .System }}<{{ .System }}>{{ end }}'
    b'{{ .Prompt }}{{ range $i, $m := .Messages }}{{ $m.Content }}{{ end }}", '
    b'"format": {"type": "object"}, "logprobs": true}',
    b'{"model": "tiny", "prompt": "P", "raw": false, "context": [1, 2, 3], "stream": false, "truncate": false, '
    b'"top_logprobs": 3, "options": {"stop": ["x"], "temperature": 0.5, "num_predict": 1e9}, "images": []}',
    b'{"model": "tiny", "input": ["a", "b"], "keep_alive": -1.5, "suffix": "s"}',
]
STREAMS = [
    stream(*texts("Hel", "lo \u00e4\U0001f600", "<think>", "hm", "</think>", CALLED)),
    stream({"reasoning": "a"}, {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}),
    event(text="a", logprobs={"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]})
    + b'data: {"error": {"message": "x"}}\n\ndata: [DONE]\n\n',
]
PATHS = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
WORDS = [
    b"null",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\xff",
    b"1e999",
    b"-1",
    b"{{",
    b"}}",
    b"\\ud800",
    b",",
    b":",
    b"9" * 30,
]
READINGS = [PLAIN, APART, Reading(tops=2), Reading(thinks=True, begun=True, tops=0)]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same with some bytes changed, left out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + chance.randrange(20)]
            case 2:
                changed[place:place] = chance.choice(WORDS)
            case 3:
                changed[place:place] = changed[place : place + chance.randrange(40)]
            case _:
                changed[place : place + 1] = chance.choice(WORDS)
    return bytes(changed)


async def asked_and_answered(chance: random.Random) -> str:
    """What becomes of one body, and of one stream that was changed as well: never anything but what is said here."""
    path, body = chance.choice(PATHS), mutated(chance.choice(BODIES), chance)
    engine = counting(
        chance.choice([LLAMA_SERVER, VLLM]), takes_tools=True, thinks=True, context=chance.choice([0, 16, 512])
    )
    kind = "put"
    try:
        Ollama().parse(path, body)
        found = await translated(Asked.read(path, body), path, engine)
        kind = "told" if isinstance(found, Said) else kind
    except Refusal as refusal:
        assert 400 <= refusal.status <= 501
        assert Ollama().refused(refusal).body
        kind = "refused"
    one = Answer("tiny", chance.random() < 0.5, 1, chance.choice(READINGS))
    parts = [one.part(part) for part in cut(mutated(chance.choice(STREAMS), chance), [chance.randrange(2000)])]
    try:
        parts.append(await one.end())
    except EndedEarlyError:
        kind += ", early"
    for line in b"".join(parts).splitlines():
        assert isinstance(json.loads(line), dict)
    said = await one.whole(200, mutated(b'{"choices": [{"message": {"content": "a<think>"}}], "usage": {}}', chance))
    assert isinstance(json.loads(said.body), dict)
    return kind


def many(count: int, seed: str) -> dict[str, int]:
    async def run() -> dict[str, int]:
        chance, kinds = random.Random(seed), dict[str, int]()
        for _ in range(count):
            kind = await asked_and_answered(chance)
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds

    return asyncio.run(run())


def test_what_is_changed_a_little_is_read_or_refused() -> None:
    kinds = many(4000, "a little")
    assert kinds.keys() >= {"put", "refused", "told", "put, early", "refused, early"}


@pytest.mark.long
def test_a_million_changed_bodies_and_streams_are_read_or_refused_and_leave_nothing() -> None:
    many(50_000, "to begin with")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for turn in range(19):
        many(50_000, f"turn {turn}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 << 10, f"{grown} KiB"
