"""The name of a model in what an engine answers, as the client knows it."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.core.routes import Backend, Route
from orchestrator.gateway.dialects.base import EndedEarlyError
from orchestrator.gateway.dialects.named import Passing
from orchestrator.gateway.dialects.ollama.passed import Passed

ENDS = (b"\ndata: [DONE]",)
# A word may look like a name; a nested field may be called so; the engine's own name may have quotes.
LINES = (
    b'data: {"id":"x","model":"engine","choices":[{"delta":{"content":"\\"model\\":\\"engine\\""}}]}\n\n',
    b'data: {"model":"an \\"engine\\" \\\\","tool":{"model":"T"}}\r\n\r\n',
    b'data: {"choices":[],"model":""}\n\n: model\n\ndata: {"no":"name"}\n\n',
)
RENAMED = (
    b'data: {"id":"x","model":"p\xc3\xa4t","choices":[{"delta":{"content":"\\"model\\":\\"engine\\""}}]}\n\n',
    b'data: {"model":"p\xc3\xa4t","tool":{"model":"T"}}\r\n\r\n',
    b'data: {"choices":[],"model":"p\xc3\xa4t"}\n\n: model\n\ndata: {"no":"name"}\n\n',
)
LAST = b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 64, 1000])
def test_a_stream_cut_anywhere_comes_under_the_clients_name(size):
    reply, data = Passing(ENDS, "p\xe4t"), b"".join((*LINES, LAST))
    came = b"".join(reply.part(data[start : start + size]) for start in range(0, len(data), size))
    came += asyncio.run(reply.end())
    assert came == b"".join((*RENAMED, LAST))


@pytest.mark.parametrize(("line", "renamed"), list(zip(LINES, RENAMED, strict=True)))
def test_a_whole_answer_does(line, renamed):
    data, wanted = (text.split(b"\n")[0].removeprefix(b"data: ").strip() for text in (line, renamed))
    json.loads(data)
    assert asyncio.run(Passing((), "p\xe4t").whole(200, data)).body == wanted


@pytest.mark.parametrize("name", ["", "p\xe4t"])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_an_end_is_seen_wherever_it_is_cut(name, size):
    data = LINES[0] + LAST
    for cut in (LAST, b" [DONE]\n\n", b"]\n\n", b""):
        reply, begun = Passing(ENDS, name), data[: len(data) - len(cut)]
        for start in range(0, len(begun), size):
            reply.part(begun[start : start + size])
        if cut:
            with pytest.raises(EndedEarlyError):
                asyncio.run(reply.end())
        else:
            asyncio.run(reply.end())


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_ollamas_own_errors_name_the_model_as_the_client_does(size):
    route = Route("tiny", "one", (Backend("one-g1", "http://127.0.0.1:1"),), upstream="adapter-26")
    lines = (
        b'{"model":"adapter-26","message":{"content":"{\\"error\\":\\"adapter-26\\"}"},"done":false}\n',
        b'{"error":"model \'adapter-26\' is gone"}\n',
        b'{"model":"adapter-26","done":true}\n',
    )
    wanted = [line.replace(b'"model":"adapter-26"', b'"model":"Tiny"') for line in lines]
    wanted[1] = lines[1].replace(b"adapter-26", b"Tiny")
    reply, data = Passed(route, "Tiny"), b"".join(lines)
    assert b"".join(reply.part(data[at : at + size]) for at in range(0, len(data), size)) == b"".join(wanted)
