"""Answers to chats as Anthropic's API gives them: whole and streamed, cut anywhere, and broken in any way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_engine import event, stream, texts

from orchestrator.gateway.dialects.anthropic.answers import Answer
from orchestrator.gateway.dialects.anthropic.blocks import Blocks, Stops
from orchestrator.gateway.dialects.base import EndedEarlyError, Said
from orchestrator.gateway.refusals import Refusal

Json = dict[str, Any]


def answer(streams: bool = True, **how: Any) -> Answer:
    return Answer("tiny", streams, Blocks(**how))


def events_of(data: bytes) -> list[Json]:
    """What a client reads: each event's data, which has the event's own name."""
    found = []
    for one in data.decode().split("\n\n")[:-1]:
        name, _, said = one.partition("\n")
        found.append(json.loads(said.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def read(parts: list[bytes], **how: Any) -> list[Json]:
    """The events that an engine's stream becomes."""
    one = answer(**how)
    said = []
    for part in parts:
        said.append(one.part(part))
        if one.done:
            break
    return events_of(b"".join([*said, asyncio.run(one.end())]))


def gathered(parts: list[bytes], **how: Any) -> Json:
    """The message that it becomes."""
    one = answer(streams=False, **how)
    for part in parts:
        assert one.part(part) == b""
    said: Json = json.loads(asyncio.run(one.end()))
    assert said.pop("id").startswith("msg_")
    return said


def whole(message: object, reason: str = "stop", **how: Any) -> Json:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    body = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
    said = asyncio.run(answer(streams=False, **how).whole(200, json.dumps(body).encode()))
    assert (said.status, said.content_type) == (200, "application/json")
    found: Json = json.loads(said.body)
    assert found.pop("id").startswith("msg_")
    return found


def message_of(events: list[Json]) -> Json:
    """The message that a client puts together of events, checked for their order on the way."""
    assert [one["type"] for one in events[:2]] == ["message_start", "ping"]
    message: Json = events[0]["message"]
    assert message.pop("id").startswith("msg_")
    assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
    opened = False
    arguments = ""
    for one in events[2:-2]:
        if one["type"] == "content_block_start":
            assert (opened, one["index"]) == (False, len(message["content"]))
            message["content"].append(one["content_block"])
            opened, arguments = True, ""
            continue
        block = message["content"][-1]
        assert (opened, one["index"]) == (True, len(message["content"]) - 1)
        if one["type"] == "content_block_delta":
            delta = one["delta"]
            if delta["type"] == "input_json_delta":
                arguments += delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        else:
            assert one["type"] == "content_block_stop"
            opened = False
            if block["type"] == "tool_use":
                assert block["input"] == {}
                block["input"] = json.loads(arguments or "{}")
    assert not opened
    assert [one["type"] for one in events[-2:]] == ["message_delta", "message_stop"]
    message |= events[-2]["delta"]
    message["usage"] = events[-2]["usage"]
    return message


def usage(prompt: int = 7, answered: int = 2) -> Json:
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": prompt, **cached, "output_tokens": answered}


def message(*content: Json, reason: str = "end_turn", sequence: str | None = None, answered: int = 2) -> Json:
    head = {"type": "message", "role": "assistant", "model": "tiny", "content": list(content)}
    return {**head, "stop_reason": reason, "stop_sequence": sequence, "usage": usage(answered=answered)}


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def called(name: str, **given: Any) -> Json:
    return {"type": "tool_use", "id": f"call_{name}", "name": name, "input": given}


def call(index: int | None, name: str | None = None, arguments: str = "") -> Json:
    about = {"id": f"call_{name}", "type": "function"} if name else {}
    return {"index": index, **about, "function": {"name": name, "arguments": arguments}}


def test_the_events_of_a_text() -> None:
    counted = {"usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    first = b"data: " + json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}], **counted}).encode()
    found = read([first + b"\n\n", stream(*texts("Hel", "lo"))])
    start = message(answered=0) | {"stop_reason": None}
    assert found[0].pop("message") | {"id": ""} == start | {"id": ""}
    assert found == [
        {"type": "message_start"},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": text("")},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage()},
        {"type": "message_stop"},
    ]


def test_llama_cpp_counts_while_it_answers() -> None:
    timings = {"timings": {"prompt_n": 3, "cache_n": 4, "predicted_n": 1}}
    first = b"data: " + json.dumps({"choices": [{"delta": {"content": "Hi"}}], **timings}).encode() + b"\n\n"
    found = read([first, b"data: [DONE]\n\n"])
    assert found[0]["message"]["usage"] == usage(answered=0)
    assert found[-2]["usage"] == usage(answered=1)


def test_whole_answers() -> None:
    assert whole({"role": "assistant", "content": "Hi"}) == message(text("Hi"))
    assert whole({"content": "Hi"}, "length") == message(text("Hi"), reason="max_tokens")
    assert whole({"content": None}) == message(text(""))
    assert whole({"content": "Hello"}, beginning="Hel") == message(text("lo"))
    # Two calls of which none has a number.
    calls = [call(None, "f", '{"a": [1, "<"]}'), call(None, "g")]
    found = whole({"content": None, "tool_calls": calls}, "tool_calls")
    assert found == message(called("f", a=[1, "<"]), called("g"), reason="tool_use")
    assert whole({"content": "", "tool_calls": calls}, "stop", parallel=False)["content"] == [called("f", a=[1, "<"])]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts(name: str) -> None:
    pieces = [{name: "\nI"}, {name: " see"}, {name: ".\n"}, {"content": "\n\n"}, {"content": " Yes "}]
    found = message_of(read([stream(*pieces)]))
    thought, said = found["content"]
    assert (thought["type"], thought["thinking"], said) == ("thinking", "I see.", text("Yes "))
    assert thought["signature"]
    assert whole({name: "\nI see.\n", "content": "\n\nYes "})["content"] == found["content"]
    assert gathered([stream(*pieces)])["content"] == found["content"]


CALLING = [
    {"content": "Let me see.\n\n"},
    {"tool_calls": [call(0, "f")]},
    {"tool_calls": [call(0, None, '{"a":')]},
    {"content": "\n"},
    {"tool_calls": [call(0, None, " 1}")]},
    {"content": "\n"},
    {"tool_calls": [call(1, "g", "{}")]},
]


def test_calls_in_pieces() -> None:
    wanted = message(text("Let me see."), called("f", a=1), called("g"), reason="tool_use", answered=7)
    assert message_of(read([stream(*CALLING, reason="tool_calls")])) == wanted
    # vLLM says stop where a call was demanded.
    assert message_of(read([stream(*CALLING)])) == wanted
    assert gathered([stream(*CALLING)]) == wanted
    alone = message_of(read([stream(*CALLING)], parallel=False))
    assert alone["content"] == wanted["content"][:2]


def test_blanks_wait_only_where_a_call_may_follow() -> None:
    for may_follow, said in ((True, "Hi"), (False, "Hi ")):
        one = answer(may_follow=may_follow)
        (*_, last) = events_of(one.part(event({"content": "Hi "})))
        assert last["delta"]["text"] == said
        one.part(b"data: [DONE]\n\n")
    assert gathered([stream(*texts("Hi "))])["content"] == [text("Hi ")]


def test_what_is_said_beside_a_call_follows_it() -> None:
    pieces = [{"tool_calls": [call(0, "f", "{")]}, {"content": " so "}, {"tool_calls": [call(0, None, "}")]}]
    assert message_of(read([stream(*pieces)]))["content"] == [called("f"), text("so")]


def test_half_a_call_is_not_done() -> None:
    half = {"tool_calls": [call(0, "f", '{"a": "')]}
    found = whole({"content": None, **half}, "length")
    assert (found["content"], found["stop_reason"]) == (
        [text('{"name":"f","arguments":"{\\"a\\": \\""}')],
        "max_tokens",
    )
    events = read([stream(half, reason="length")])
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("pieces", [("a EN", "D b"), ("a END b",), ("a ", "E", "N", "D", " b"), ("a END",)])
def test_sequences_that_end_it(pieces: tuple[str, ...]) -> None:
    how: Json = {"stops": ("never", "END", "D b")}
    events = read([stream(*texts(*pieces))], **how)
    assert [block["text"] for block in message_of(events)["content"]] == ["a "]
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    found = gathered([stream(*texts(*pieces))], **how)
    assert (found["content"], found["stop_sequence"]) == ([text("a ")], "END")


def test_what_looks_like_one_is_said() -> None:
    for said in ("a EN", "E", "EEN "):
        found = gathered([stream(*texts(*said))], stops=("END",))
        assert (found["content"], found["stop_reason"]) == ([text(said)], "end_turn")
    # A thought has none.
    found = gathered([stream({"reasoning": "END"}, {"content": "x"})], stops=("END",))
    assert (found["content"][0]["thinking"], found["content"][1], found["stop_reason"]) == (
        "END",
        text("x"),
        "end_turn",
    )


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3), st.text("abc"), st.data())
def test_the_first_that_is_whole_is_found_however_the_text_is_cut(
    sequences: list[str], said: str, data: st.DataObject
) -> None:
    ends = [(at + len(one), at) for one in sequences if (at := said.find(one)) >= 0]
    wanted = said[: min(ends)[1]] if ends else said
    stops = Stops(tuple(sequences))
    found, left = "", said
    while left and stops.found is None:
        size = data.draw(st.integers(1, len(left)))
        found += stops.take(left[:size])
        left = left[size:]
    found += stops.rest()
    assert found == wanted
    assert (stops.found is not None) == bool(ends)


PIECES = st.one_of(
    st.builds(lambda said: {"content": said}, st.text("ab \nE\u00e4", max_size=4)),
    st.builds(lambda said: {"reasoning": said}, st.text("th \n", max_size=4)),
    st.builds(lambda n, name: {"tool_calls": [call(n, name)]}, st.integers(0, 2), st.sampled_from("fg")),
)


@settings(max_examples=150)
@given(st.lists(PIECES, max_size=8), st.sampled_from([(), ("aE",), ("b", "ab")]), st.data())
def test_any_stream_cut_anywhere_gives_the_same_events(
    pieces: list[Json], stops: tuple[str, ...], data: st.DataObject
) -> None:
    said = stream(*pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    parts = [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    once, cut = read([said], stops=stops), read(parts, stops=stops)
    for events in (once, cut):
        events[0]["message"].pop("id")
    assert cut == once
    once[0]["message"]["id"] = "msg_"
    told, whole_of_it = message_of(once), gathered([said], stops=stops)
    assert all(block.get("input", {}) == {} for block in told["content"])
    assert told == whole_of_it


def test_a_stream_that_ends_early() -> None:
    for streams in (True, False):
        one = answer(streams)
        one.part(event({"content": "Hi"}))
        with pytest.raises(EndedEarlyError):
            asyncio.run(one.end())
    # The end of the last line is no part of the end.
    assert read([stream(*texts("Hi")).removesuffix(b"\n\n")])[-1] == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'data: {"error": {"message": "broken", "code": 500}}', "broken"),
        (b'error: {"message": "broken"}', "broken"),
        (b"data: {", "The engine's answer cannot be read"),
        (b'data: {"choices": [{"delta": {"content": 1}}]}', "The engine's answer cannot be read"),
    ],
)
def test_an_error_within_a_stream(line: bytes, words: str) -> None:
    parts = [event({"content": "Hi"}), line + b"\n\n", event({"content": "more"}), b"data: [DONE]\n\n"]
    one = answer()
    events = events_of(b"".join([*map(one.part, parts), asyncio.run(one.end())]))
    assert (events[-1]["type"], events[-1]["error"]["type"], one.done) == ("error", "api_error", True)
    assert words in events[-1]["error"]["message"]
    assert [one["type"] for one in events].count("error") == 1
    one = answer(streams=False)
    for part in parts:
        one.part(part)
    with pytest.raises(Refusal) as caught:
        asyncio.run(one.end())
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("status", "told", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (404, 404, "not_found_error"),
        (409, 400, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (422, 400, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (501, 500, "api_error"),
        (503, 503, "overloaded_error"),
    ],
)
def test_what_engines_refuse(status: int, told: int, kind: str) -> None:
    for body in (b'{"error": {"message": "no"}}', b'{"detail": "no"}', b'{"message": "no"}', b"no"):
        said = asyncio.run(answer().whole(status, body))
        assert isinstance(said, Said)
        wanted = {"type": "error", "error": {"type": kind, "message": "no"}}
        assert (said.status, json.loads(said.body)) == (told, wanted)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": {}}}]}'])
def test_whole_answers_that_are_none(body: bytes) -> None:
    said = asyncio.run(answer(streams=False).whole(200, body))
    assert (said.status, json.loads(said.body)["error"]["type"]) == (500, "api_error")
