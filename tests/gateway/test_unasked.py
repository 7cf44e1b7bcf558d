"""Figures that the gateway asks an engine for on its own account: the client reads what it would have read without."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from engine_by_script import ollama_stream, vllm_stream, wants_figures
from openai_engine import CARD, ROUTE, Counting

from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, OPENAI, VLLM
from orchestrator.gateway.dialects.base import Question
from orchestrator.gateway.dialects.openai import OpenAI
from orchestrator.gateway.dialects.openai.asked import CHAT, COMPLETIONS, RESPONSES
from orchestrator.gateway.tokens import Told

STREAMS = {VLLM: vllm_stream, OLLAMA: ollama_stream}
EACH_ASKED = [(server, path) for server in STREAMS for path in (CHAT, COMPLETIONS)]


def asking(server: str, path: str, **more: Any) -> Question:
    """What an engine is asked of a stream."""
    said: dict[str, Any] = {"prompt": "."} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "."}]}
    said = {"input": "."} if path == RESPONSES else said
    body = json.dumps({"model": "tiny", "stream": True, **said, **more}).encode()
    engine = Counting(replace(ROUTE, speaks=(OPENAI, server), card=CARD))
    dialect = OpenAI()
    question = asyncio.run(dialect.question(dialect.parse(path, body), path, body, engine))
    assert isinstance(question, Question)
    return question


def told(question: Question, sent: bytes, cuts: list[int]) -> bytes:
    """What the client reads of a stream that comes cut at these places."""
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    return b"".join(map(question.reply.part, pieces)) + asyncio.run(question.reply.end())


@pytest.mark.parametrize(("server", "path"), EACH_ASKED)
def test_a_stream_is_the_same_to_the_byte_wherever_it_is_cut(server: str, path: str) -> None:
    chats = path == CHAT
    sent, wanted = (b"".join(STREAMS[server](chats, figures)) for figures in (True, False))
    assert sent != wanted
    for cuts in [[], [*range(1, len(sent))], *([cut] for cut in range(1, len(sent)))]:
        question = asking(server, path)
        assert wants_figures(json.loads(question.body))
        assert told(question, sent, cuts) == wanted, cuts


@pytest.mark.parametrize(("server", "path"), EACH_ASKED)
def test_the_same_with_lines_that_end_as_in_windows(server: str, path: str) -> None:
    sent, wanted = (b"".join(STREAMS[server](path == CHAT, figures)) for figures in (True, False))
    ended = sent.replace(b"\n", b"\r\n")
    assert told(asking(server, path), ended, []) == wanted.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(("server", "path"), EACH_ASKED)
def test_who_asks_is_told(server: str, path: str) -> None:
    question = asking(server, path, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert json.loads(question.body)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    sent = b"".join(STREAMS[server](path == CHAT, True))
    assert told(question, sent, [100]) == sent


@pytest.mark.parametrize("said", [{"include_usage": False}, {"include_usage": None}, {}, None])
@pytest.mark.parametrize("server", STREAMS)
def test_who_says_that_it_does_not_want_them_is_not_told(server: str, said: dict[str, object] | None) -> None:
    more = {"continuous_usage_stats": True, "include_obfuscation": False} if said is not None else {}
    options = said if said is None else {**said, **more}
    sent = json.loads(asking(server, CHAT, stream_options=options).body)["stream_options"]
    # Figures with each event could not be taken out.
    assert sent == {"include_usage": True, **({"include_obfuscation": False} if said is not None else {})}


def test_what_is_none_is_left_to_the_engine_to_refuse() -> None:
    assert json.loads(asking(VLLM, CHAT, stream_options={"include_usage": "x"}).body)["stream_options"] == {
        "include_usage": "x"
    }


@pytest.mark.parametrize(
    ("server", "path", "more"),
    [
        (LLAMA_SERVER, CHAT, {}),
        (LLAMA_SERVER, COMPLETIONS, {}),
        (VLLM, RESPONSES, {}),
        (VLLM, CHAT, {"n": 2, "temperature": 1}),
        (VLLM, COMPLETIONS, {"prompt": ["a", "b"]}),
        (VLLM, CHAT, {"stream": False}),
        ("nobody-knows", CHAT, {}),
    ],
)
def test_who_is_not_asked(server: str, path: str, more: dict[str, Any]) -> None:
    assert "stream_options" not in json.loads(asking(server, path, **more).body)


def test_a_stream_without_the_figures_that_were_asked_for_is_whole() -> None:
    sent = b"".join(vllm_stream(True, False))
    for cuts in ([], [*range(1, len(sent))]):
        assert told(asking(VLLM, CHAT), sent, cuts) == sent


def test_an_event_without_choices_that_has_no_figures_stays() -> None:
    for nothing in (b'data: {"choices":[]}\n\n', b'data: {"choices":[],"usage":null}\n\n', b'data: {"usage":{\n\n'):
        sent = nothing + b"".join(vllm_stream(True, True))
        assert told(asking(VLLM, CHAT), sent, []) == nothing + b"".join(vllm_stream(True, False))


@pytest.mark.parametrize("status", [400, 422])
def test_an_engine_that_knows_no_such_options_is_asked_again_without(status: int) -> None:
    question = asking(VLLM, CHAT, max_tokens=5)
    refused = b'{"error": {"message": "stream_options: Extra inputs are not permitted"}}'
    again = asyncio.run(question.reply.whole(status, refused))
    assert isinstance(again, Question)
    assert "stream_options" not in json.loads(again.body)
    assert json.loads(again.body)["max_tokens"] == 5
    # What it says now is for the client.
    assert not isinstance(asyncio.run(again.reply.whole(status, refused)), Question)


def test_another_error_is_the_client_s() -> None:
    question = asking(VLLM, CHAT)
    assert not isinstance(asyncio.run(question.reply.whole(400, b'{"error": {"message": "no"}}')), Question)


# --- where the figures are


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b"".join(vllm_stream(True, True)), (18, 12)),
        (b"".join(ollama_stream(False, True)), (21, 4)),
        (b"".join(vllm_stream(True, False)), (None, None)),
        (b'{"choices":[],"usage":{"prompt_tokens": 210, "total_tokens": 230, "completion_tokens": 20}}', (210, 20)),
        (b'{"choices":[],"usage":{"prompt_tokens":7,"total_tokens":7,"prompt_tokens_details":null}}', (7, None)),
        (b'{"response":"x","done":false}\n{"done":true,"prompt_eval_count":26,"eval_count":298}\n', (26, 298)),
        (b'data: {"type":"response.completed","response":{"usage":{"input_tokens":9,"output_tokens":3}}}\n\n', (9, 3)),
        (
            b'data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
            + b": x\n\n" * 2000
            + b'data: {"type":"message_delta","usage":{"output_tokens":15}}\n\n',
            (25, 15),
        ),
        (b'{"timings":{"cache_n":16,"prompt_n":1,"predicted_n":4}}', (17, 4)),
        (b'{"usage":{"prompt_tokens":17,"completion_tokens":4},"timings":{"cache_n":0,"predicted_n":9}}', (17, 4)),
        (b'{"content":"\\"completion_tokens\\":7,\\"prompt_tokens\\":7"}', (None, None)),
        (b'{"usage":{"completion_tokens":' + b"9" * 400 + b"}}", (None, None)),
        (b"\x1f\x8b\x08 compressed", (None, None)),
        (b"", (None, None)),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_tokens_are_found_in_what_engines_say(answer: bytes, counts: tuple[int | None, int | None], size: int) -> None:
    found = Told()
    for start in range(0, len(answer), size):
        found.take(answer[start : start + size])
    assert found.counts() == counts


def test_of_a_long_answer_its_end_is_kept_alone() -> None:
    found = Told()
    for _ in range(1000):
        found.take(b"x" * 1000)
    found.take(b'"usage":{"prompt_tokens":3,"completion_tokens":2}')
    assert found.counts() == (3, 2)
    assert found.size < 16 << 10


@pytest.mark.parametrize(
    ("begins", "pieces", "first"),
    [
        (b"", [b"data: x\n\n"], 0),
        (b"", [b": wait", b"ing\n\n", b": waiting\n\ndata: x\n\n"], 2),
        (
            b'.delta"',
            [b'data: {"type":"response.created"}\n\n', b'data: {"type":"response.output_text.del', b'ta"}'],
            2,
        ),
    ],
)
def test_when_the_first_token_is_there(begins: bytes, pieces: list[bytes], first: int) -> None:
    found, begun = Told(), []
    for piece in pieces:
        found.take(piece)
        begun.append(found.has_begun(begins))
    assert begun.index(True) == first
