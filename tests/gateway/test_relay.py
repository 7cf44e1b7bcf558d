"""What the gateway passes on, and how it answers by itself."""

from __future__ import annotations

import gzip
import json

import pytest

CHAT = "/v1/chat/completions"


@pytest.fixture
def gateway(running_gateway):
    """The module's gateway, again without routes after each test. Counts are not reset."""
    yield running_gateway
    running_gateway.admin.remove_routes("one")


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
    assert sent["x-trace"] == "7"
    assert "authorization" not in sent, "it is meant for the gateway"
    assert headers["content-length"] == str(len(answer))


def test_a_body_goes_on_as_json_whatever_it_was_called(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    # What curl -d says; llama.cpp takes it, vLLM would not.
    called = {"Content-Type": "application/x-www-form-urlencoded"}
    assert gateway.ask(CHAT, {"model": "tiny"}, headers=called)[0] == 200
    assert one.requests[0][1]["content-type"] == "application/json"


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


def test_a_route_fills_in_what_a_request_does_not_say(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one, defaults={"temperature": 0.5, "top_p": 0.9})])
    gateway.ask(CHAT, {"model": "tiny", "messages": [], "temperature": 1.5})
    assert json.loads(one.requests[0][2]) == {"model": "tiny", "messages": [], "temperature": 1.5, "top_p": 0.9}


def test_stream_arrives_event_by_event(gateway, engine, stream):
    one = engine("streaming-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", tokens=3, wait="middle")
    # The engine sends the second event only after the gate: the first one did not wait for it.
    assert json.loads(client.event())["index"] == 0
    assert gateway.status().traffic.backends["streaming-g1"].open_streams == 1
    one.gate.set()
    assert [json.loads(event)["index"] for event in (client.event(), client.event())] == [1, 2]
    assert client.rest() == ["[DONE]"]
    load = gateway.status().traffic.backends["streaming-g1"]
    assert (load.in_flight, load.open_streams, load.counts.streams, load.counts.errors) == (0, 0, 1, 0)


def test_headers_of_one_hop_stay_on_it(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    body = {"model": "tiny", "reply_headers": {"Connection": "X-Private", "X-Private": "1", "X-Public": "2"}}
    mine = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "TE": "trailers", "X-Yours": "2"}
    _, headers, _ = gateway.ask(CHAT, body, headers=mine)
    sent = one.requests[0][1]
    assert sent["x-yours"] == "2"
    # http.client sends Accept-Encoding, and no User-Agent that could be passed on.
    assert not {"x-mine", "te", "connection", "keep-alive", "user-agent"} & set(sent)
    assert sent["host"] == f"127.0.0.1:{one.port}"
    assert headers["x-public"] == "2"
    assert "x-private" not in headers


def test_cookies_of_one_client_are_not_sent_for_another(gateway, engine):
    one = engine("one-g1")
    # A host name: for bare addresses clients keep no cookies anyway.
    gateway.admin.set_routes("one", [gateway.route("tiny", one, url=f"http://localhost:{one.port}")])
    _, headers, _ = gateway.ask(CHAT, {"model": "tiny", "reply_headers": {"Set-Cookie": "who=me"}})
    assert headers["set-cookie"] == "who=me"
    gateway.ask(CHAT, {"model": "tiny"})
    assert "cookie" not in one.requests[1][1]


def test_a_compressed_answer_stays_as_it_is(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    _, headers, answer = gateway.ask(CHAT, {"model": "tiny", "gzip": True})
    assert headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer))["from"] == "one-g1"


def test_a_redirect_is_the_clients_to_follow(gateway, engine):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    target = {"Location": two.url + CHAT}
    status, headers, _ = gateway.ask(CHAT, {"model": "tiny", "status": 307, "reply_headers": target})
    assert (status, headers["location"]) == (307, two.url + CHAT)
    assert two.requests == []


def test_an_engines_error_is_passed_on_and_counted(gateway, engine):
    one = engine("failing-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    before = gateway.status().traffic.totals
    status, _, answer = gateway.ask(CHAT, {"model": "tiny", "status": 500})
    assert (status, json.loads(answer)["from"]) == (500, "failing-g1")
    assert len(one.requests) == 1
    now = gateway.status()
    assert (now.traffic.totals.requests - before.requests, now.traffic.totals.errors - before.errors) == (1, 1)
    counts = now.traffic.backends["failing-g1"].counts
    assert (counts.requests, counts.errors) == (1, 1)


def test_an_engine_of_the_same_name_as_one_that_was_taken_down_is_counted_anew(gateway, engine):
    one = engine("again-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    assert gateway.ask(CHAT, {"model": "tiny"})[0] == 200

    def counted():
        return gateway.status().load_of("again-g1").counts.requests

    totals = gateway.status().traffic.totals
    gateway.admin.set_routes("one", [gateway.route("tiny", one), gateway.route("other", one)])
    assert counted() == 1
    gateway.admin.remove_routes("one")
    assert counted() == 1, "a drained one can be read"
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    assert counted() == 0
    assert gateway.status().traffic.totals == totals


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]
)
def test_every_path_that_is_relayed(gateway, engine, path):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    assert gateway.ask("/" + path.replace("/", "//") + "/", {"model": "tiny"})[0] == 200
    assert one.requests[0][0] == path
    status, headers, answer = gateway.ask(path, verb="GET")
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_nothing_else_is_reachable(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    paths = [
        "/slots",
        "/tokenize",
        "/lora-adapters",
        "/v1/load_lora_adapter",
        # What vLLM's development mode opens, where it may sleep.
        "/sleep",
        "/wake_up",
        "/collective_rpc",
        "/v1/chat/completions/../../slots",
        "/v1/chat/completions/%2e%2e/x",
        "/status",
        "/V1/models",
    ]
    for verb in ("GET", "POST", "DELETE"):
        for path in paths:
            status, _, answer = gateway.ask(path, {"model": "tiny"} if verb == "POST" else None, verb)
            assert (status, json.loads(answer)["error"]["code"]) == (404, "unknown_path"), (verb, path)
    assert one.requests == []


def test_the_model_list_is_the_gateways(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one), gateway.route("org/tiny-a", one)])
    status, _, answer = gateway.ask("/v1//models/", verb="GET")
    listed = json.loads(answer)
    assert (status, listed["object"]) == (200, "list")
    assert [(entry["id"], entry["object"], entry["owned_by"]) for entry in listed["data"]] == [
        ("org/tiny-a", "model", "one"),
        ("tiny", "model", "one"),
    ]
    for path in ("/v1/models/org/tiny-a", "/v1/models/org%2Ftiny-a"):
        status, _, answer = gateway.ask(path, verb="GET")
        assert (status, json.loads(answer)) == (200, listed["data"][0])
    status, _, answer = gateway.ask("/v1/models/nope", verb="GET")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "model_not_found")
    assert gateway.ask("/v1/models", verb="DELETE")[0] == 405
    assert one.requests == []


def test_an_unknown_name_is_told_the_valid_ones(gateway, engine):
    status, _, answer = gateway.ask(CHAT, {"model": "tiny"})
    assert status == 404
    assert "orch up" in json.loads(answer)["error"]["message"]
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one), gateway.route("tiny-a", one)])
    status, _, answer = gateway.ask(CHAT, {"model": "Tiny"})
    error = json.loads(answer)["error"]
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert error["message"] == "The model `Tiny` does not exist. Valid names: tiny, tiny-a."
    assert one.requests == []


def test_a_body_without_a_model_is_refused(gateway):
    before = gateway.status().traffic.totals
    for body in (b"", b"{", b"[]", b'"tiny"', b"{}", b'{"model": 3}', b'{"model": ""}', b"\xff"):
        status, headers, answer = gateway.ask(CHAT, body)
        assert (status, headers["content-type"]) == (400, "application/json"), body
        assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    assert gateway.status().traffic.totals == before


def test_a_compressed_body_reaches_the_engine_unpacked(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    body = b'{"model": "tiny"}'
    packed = {"Content-Encoding": "gzip"}
    assert gateway.ask(CHAT, gzip.compress(body), headers=packed)[0] == 200
    assert one.requests[0][2] == body
    assert "content-encoding" not in one.requests[0][1]
    status, _, answer = gateway.ask(CHAT, b"not gzip", headers=packed)
    assert (status, json.loads(answer)["error"]["code"]) == (400, "invalid_body")


def test_bodies_up_to_8_mib(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    start = b'{"model": "tiny", "x": "'
    largest = start + b"x" * ((8 << 20) - len(start) - 2) + b'"}'
    assert gateway.ask(CHAT, largest)[0] == 200
    assert len(one.requests[0][2]) == 8 << 20
    status, _, answer = gateway.ask(CHAT, iter([largest, b" "]))
    assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")
    assert len(one.requests) == 1


def test_a_declared_length_beyond_8_mib_is_refused_before_it_is_sent(gateway):
    connection = gateway.connect()
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", str((8 << 20) + 1))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "body_too_large")
    connection.close()


def test_health_and_metrics(gateway, engine):
    assert gateway.ask("/health", verb="GET")[0] == 200
    assert gateway.ask("/health", verb="HEAD")[::2] == (200, b"")
    one = engine('odd"name')
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    for _ in range(2):
        gateway.ask(CHAT, {"model": "tiny"})
    gateway.ask(CHAT, {"model": "tiny", "stream": True})
    status, headers, answer = gateway.ask("/metrics", verb="GET")
    lines = answer.decode().splitlines()
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    totals = gateway.status().traffic.totals
    assert f"orch_gateway_requests_total {float(totals.requests)}" in lines
    assert f"orch_gateway_streams_total {float(totals.streams)}" in lines
    assert totals.requests >= 3
    assert 'orch_gateway_tries_total{backend="odd\\"name",model="tiny"} 3.0' in lines
    assert 'orch_gateway_in_flight{backend="odd\\"name"} 0.0' in lines
