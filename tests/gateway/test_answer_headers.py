"""What the gateway says by itself, in the shape that the client of each API reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
LORA = {"lora": [{"id": 0, "scale": 0.0}]}
KEPT_ON = (CHAT, RESPONSES)


@pytest.fixture
def gateway(running_gateway):
    """The module's gateway, again without routes after each test. Counts are not reset."""
    yield running_gateway
    running_gateway.admin.remove_routes("one")


def openai(answer):
    """Status, type and code of an error in OpenAI's shape, and in no other."""
    told = json.loads(answer[2])
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    return answer[0], told["error"]["type"], told["error"]["code"]


def anthropic(answer):
    """Status and type of an error in Anthropic's shape, and in no other."""
    told = json.loads(answer[2])
    assert set(told) == {"type", "error"}
    assert (told["type"], set(told["error"])) == ("error", {"type", "message"})
    return answer[0], told["error"]["type"]


def test_the_same_refusals_in_both_shapes(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one), gateway.route("gone", one, url="http://127.0.0.1:1")])
    for verb, body, headers, status, code, kind in [
        ("GET", None, {}, 405, "wrong_method", "invalid_request_error"),
        ("POST", b"{", {}, 400, "invalid_body", "invalid_request_error"),
        ("POST", b'{"model": ""}', {}, 400, "invalid_body", "invalid_request_error"),
        ("POST", {"model": "nope"}, {}, 404, "model_not_found", "not_found_error"),
        ("POST", {"model": "tiny"}, {"Content-Encoding": "br"}, 415, "unknown_encoding", "invalid_request_error"),
        ("POST", {"model": "tiny"}, {"Expect": "miracles"}, 417, "unknown_expectation", "invalid_request_error"),
        ("POST", {"model": "tiny"}, {"Origin": "null"}, 403, "origin_not_allowed", "permission_error"),
        ("POST", {"model": "tiny"}, {"Host": "a.example"}, 403, "host_not_allowed", "permission_error"),
        ("POST", {"model": "gone"}, {}, 503, "backend_unavailable", "overloaded_error"),
    ]:
        for path in (CHAT, "/v1/completions", RESPONSES, "/v1/embeddings", "//v1/chat/completions/"):
            if status == 503 and path != CHAT:
                continue  # it takes seconds
            answer = gateway.ask(path, body, verb, headers)
            shaped = "server_error" if status >= 500 else "invalid_request_error"
            assert openai(answer) == (status, shaped, code), (path, code)
        for path in (MESSAGES, "/v1//messages/"):
            if status == 503 and path != MESSAGES:
                continue
            other = gateway.ask(path, body, verb, headers)
            assert anthropic(other) == (status, kind), (path, code)
        both = [json.loads(said[2])["error"]["message"] for said in (answer, other)]
        if status != 405:  # which names the path
            assert both[0] == both[1]
        assert answer[1].get("retry-after") == other[1].get("retry-after")
    assert anthropic(gateway.ask(f"{MESSAGES}/batches", {"model": "tiny"})) == (404, "not_found_error")
    assert openai(gateway.ask(f"{MESSAGES}s", {"model": "tiny"}))[2] == "unknown_path"
    assert one.requests == []


def test_a_stream_that_breaks_ends_with_the_event_that_its_client_looks_for(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    for place in ("middle", "inside"):
        _, _, text = gateway.ask(CHAT, {"model": "tiny", "stream": True, "die": place})
        last = text.decode().rpartition("data: ")[2]
        assert openai((200, {}, last.encode())) == (200, "server_error", "stream_interrupted")
        _, _, text = gateway.ask(MESSAGES, {"model": "tiny", "stream": True, "die": place})
        name, _, last = text.decode().rstrip("\n").rpartition("\n\n")[2].partition("\n")
        assert name == "event: error"
        assert anthropic((200, {}, last.removeprefix("data: ").encode())) == (200, "api_error")


def test_what_an_engine_says_is_passed_on_in_its_own_shape(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    status, _, answer = gateway.ask(MESSAGES, {"model": "tiny", "status": 400})
    assert (status, json.loads(answer)["from"]) == (400, "one-g1")


def test_a_path_on_which_the_engine_would_lose_the_patch_is_refused(gateway, engine):
    """Before anything is sent: such a request would also spoil the engine's cache for the others."""
    one = engine("one-g1")
    routes = [
        gateway.route("tiny", one, patch=LORA, patch_paths=KEPT_ON),
        gateway.route("alpha", one, patch=LORA, patch_paths=KEPT_ON),
        gateway.route("plain", one, patch_paths=KEPT_ON),
        gateway.route("all", one, patch=LORA),
        gateway.route("none", one, patch=LORA, patch_paths=()),
    ]
    gateway.admin.set_routes("one", routes)
    before = gateway.status().traffic.totals
    for name in ("tiny", "alpha"):
        for stream in (True, False):
            answer = gateway.ask(MESSAGES, {"model": name, "stream": stream})
            assert anthropic(answer) == (400, "invalid_request_error")
            message = json.loads(answer[2])["error"]["message"]
            assert all(path in message for path in (MESSAGES, *KEPT_ON))
            assert "orch migrate --to vllm" in message
        assert openai(gateway.ask("/v1/embeddings", {"model": name}))[2] == "adapters_not_on_this_path"
    assert gateway.ask(CHAT, {"model": "none"})[0] == 400
    assert one.requests == []
    load = gateway.status()
    assert load.traffic.backends["one-g1"].in_flight == 0
    # They are the client's errors, not the engine's.
    assert (load.traffic.totals.requests - before.requests, load.traffic.totals.errors - before.errors) == (7, 0)

    for name, path in [("tiny", CHAT), ("alpha", RESPONSES), ("plain", MESSAGES), ("all", MESSAGES)]:
        assert gateway.ask(path, {"model": name})[0] == 200, (name, path)
        assert ("lora" in json.loads(one.requests[-1][2])) is (name != "plain")


def test_a_request_that_is_held_is_judged_by_the_route_that_it_gets(gateway, engine):
    """Between two tries the name may have moved to an engine of another kind."""
    one, two = engine("one-g1"), engine("one-g2")
    one.loading = True
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, MESSAGES, {"model": "tiny"})
        one.wait_for_requests(1)
        gateway.admin.set_routes("one", [gateway.route("tiny", two, patch=LORA, patch_paths=KEPT_ON)])
        assert anthropic(asked.result()) == (400, "invalid_request_error")
    assert two.requests == []
