"""What the gateway passes on, and how it answers by itself."""

from __future__ import annotations

import json

CHAT = "/v1/chat/completions"


def test_bytes_pass_through_as_they_came(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    body = b'{"model":"tiny" ,\n "odd spacing": [1.0, 1e3],"tokens":2}'
    status, headers, answer = gateway.ask(
        CHAT + "?a=b%20c", body, headers={"X-Trace": "7", "Authorization": "Bearer k"}
    )
    assert (status, json.loads(answer)) == (200, {"from": "one-g1", "text": "word word "})
    path, sent, received = one.requests[0]
    assert (path, received) == (CHAT + "?a=b%20c", body)
    assert (sent["x-trace"], sent["authorization"]) == ("7", "Bearer k")
    assert headers["content-length"] == str(len(answer))


def test_a_route_renames_and_patches(gateway, engine):
    one = engine("one-g1")
    patch = {"lora": [{"id": 0, "scale": 1.0}], "cache_prompt": False}
    gateway.admin.set_routes("one", [gateway.route("tiny/a", one, upstream="tiny", patch=patch)])
    gateway.ask(CHAT, {"model": "tiny/a", "messages": [{"role": "user", "content": "hé"}], "cache_prompt": True})
    assert json.loads(one.requests[0][2]) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hé"}],
        **patch,
    }


def test_stream_arrives_event_by_event(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", tokens=3, wait="middle")
    # The engine sends the second event only after the gate: the first one did not wait for it.
    assert json.loads(client.event())["index"] == 0
    assert gateway.status().backends["one-g1"].open_streams == 1
    one.gate.set()
    assert [json.loads(event)["index"] for event in (client.event(), client.event())] == [1, 2]
    assert client.rest() == ["[DONE]"]
    load = gateway.status().backends["one-g1"]
    assert (load.in_flight, load.open_streams, load.counts.streams, load.counts.errors) == (0, 0, 1, 0)
