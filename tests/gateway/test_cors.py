"""What browsers are told: which page may ask, and which may read an answer, on every path and in every API's errors."""

from __future__ import annotations

import http.client
import json
import socket

import pytest
from gateway_process import Gateway, key_ring, wait_until, write_keys

from orchestrator.core.gateway_status import Phase
from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OPENAI
from orchestrator.drivers.gateway_admin import GatewayAdmin

PAGE, STRANGER = "http://localhost:3000", "https://evil.example.com"
CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
PATHS = (
    *("/", CHAT, MESSAGES, "/v1/models", "/v1/models/tiny", "/v1/responses", "/v1/nothing", "/v1", "//v1//models/"),
    *(OLLAMA_CHAT, "/api/tags", "/api/version", "/api/create", "/api/nothing", "/health", "/metrics", "/nothing"),
)
# What the clients that run in pages send besides what every page may.
SENT = (
    *("authorization", "content-type", "user-agent", "accept", "x-requested-with", "x-api-key", "anthropic-version"),
    *("anthropic-beta", "anthropic-dangerous-direct-browser-access", "openai-organization", "openai-project"),
    *("openai-beta", "x-stainless-arch", "x-stainless-os", "x-stainless-retry-count", "x-stainless-timeout"),
)


def asking(model="tiny", **more):
    """A whole question, for each of the paths; see upstream.py for what an engine is told by it."""
    said = [{"role": "user", "content": "Who are you?"}]
    return {"model": model, "messages": said, "input": "Who are you?", "max_tokens": 9, **more}


def preflight(gateway, path=CHAT, origin=PAGE, method="POST", **more):
    """A browser's question before it asks: status and headers."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    asked |= {name.replace("_", "-"): value for name, value in more.items()}
    status, head, body = gateway.ask(path, None, "OPTIONS", asked)
    assert status != 204 or body == b""
    return status, head


def told(head):
    """What of a head is for browsers."""
    return {name: value for name, value in head.items() if name.startswith("access-control-")}


def may_read(head, origin):
    """What a browser makes of it, for a page that has asked without credentials."""
    return head.get("access-control-allow-origin") in ("*", origin)


def names(listed):
    return {name.strip().lower() for name in listed.split(",")}


@pytest.fixture
def gateway(running_gateway):
    """The module's gateway, again without routes after each test."""
    yield running_gateway
    running_gateway.admin.remove_routes("one")


@pytest.fixture
def served(gateway, engine):
    """An engine behind it, under names of several kinds."""
    one = engine("one-g1")
    card = ModelCard(digest="0" * 64, context=4096)
    routes = [
        gateway.route("tiny", one),
        gateway.route("translated", one, speaks=(OPENAI, LLAMA_SERVER), card=card),
        gateway.route("gone", one, url="http://127.0.0.1:1"),
    ]
    gateway.admin.set_routes("one", routes)
    return one


@pytest.fixture
def keyed(idle_gateway, home):
    """A gateway that demands keys."""
    write_keys(home / "keys", key_ring("sk-1"))
    idle_gateway.start("--key-file", str(home / "keys"))
    return idle_gateway


def test_a_preflight_is_answered_on_every_path_without_asking_anybody(gateway, served):
    for path in PATHS:
        for method in ("GET", "POST", "PUT", "DELETE"):
            status, head = preflight(gateway, path, method=method, Access_Control_Request_Headers=",".join(SENT))
            assert (status, may_read(head, PAGE)) == (204, True), path
            assert method in head["access-control-allow-methods"].split(", ")
            assert names(head["access-control-allow-headers"]) == {*SENT}
            assert int(head["access-control-max-age"]) >= 600
            assert "access-control-allow-credentials" not in head
            assert "origin" in names(head["vary"])
            assert not {"content-length", "content-type", "transfer-encoding"} & {*head}
    assert served.requests == []


def test_the_page_of_another_site_is_told_nothing(gateway, served):
    for path in PATHS:
        for origin in (STRANGER, "null", "http://localhost.evil.example.com", "localhost:3000"):
            status, head = preflight(gateway, path, origin, Access_Control_Request_Private_Network="true")
            assert (status, told(head)) == (403, {}), (path, origin)
            # Nor by what it sends without asking.
            status, head, _ = gateway.ask(path, b"{}", "POST", {"Origin": origin, "Content-Type": "text/plain"})
            assert (status, told(head)) == (403, {}), (path, origin)
    assert served.requests == []
    for path, shape in ((CHAT, {"error"}), (MESSAGES, {"type", "error"}), (OLLAMA_CHAT, {"error"})):
        asked = {"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
        assert set(json.loads(gateway.ask(path, None, "OPTIONS", asked)[2])) == shape


def test_a_page_under_a_rebound_name_is_told_nothing(gateway):
    host = f"evil.example.com:{gateway.port}"
    for origin in (f"http://{host}", STRANGER):
        status, head = preflight(gateway, origin=origin, Host=host)
        assert (status, told(head)) == (403, {})
        status, head, _ = gateway.ask("/v1/models", None, "GET", {"Origin": origin, "Host": host})
        assert (status, told(head)) == (403, {})
    # A page of this machine may read why it was refused.
    status, head, _ = gateway.ask("/v1/models", None, "GET", {"Origin": PAGE, "Host": host})
    assert (status, may_read(head, PAGE)) == (403, True)


def test_headers_that_are_none_are_not_repeated(gateway):
    for asked, allowed in [
        ("", None),
        ("x-one, X-Two ,,x one,é,(x),x:y", {"x-one", "x-two"}),
        (",".join(f"x-{n}" for n in range(1000)), {f"x-{n}" for n in range(100)}),
        ("x" * 101, None),
    ]:
        status, head = preflight(gateway, Access_Control_Request_Headers=asked.encode())
        assert status == 204
        got = head.get("access-control-allow-headers")
        assert (names(got) if got is not None else None) == allowed


def test_a_page_of_a_public_site_may_come_to_a_private_network_where_it_is_allowed(gateway):
    asks = {"Access_Control_Request_Private_Network": "true"}
    assert preflight(gateway, **asks)[1]["access-control-allow-private-network"] == "true"
    assert "access-control-allow-private-network" not in preflight(gateway)[1]


def test_what_is_no_preflight_is_a_request(gateway, served):
    for headers in ({}, {"Origin": PAGE}, {"Access-Control-Request-Method": "POST"}):
        status, head, _ = gateway.ask(CHAT, None, "OPTIONS", headers)
        assert (status, head["allow"]) == (405, "POST")
        assert may_read(head, PAGE) is ("Origin" in headers)
    status, _, _ = gateway.ask(CHAT, None, "OPTIONS", {"Origin": STRANGER})
    assert status == 403


def test_a_connection_goes_on_after_a_preflight(gateway, served):
    client = gateway.connect()
    for body in (None, b"x" * 100):
        client.request("OPTIONS", CHAT, body, {"Origin": PAGE, "Access-Control-Request-Method": "POST"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (204, b"")
        first = client.sock
        client.request("POST", CHAT, json.dumps(asking()), {"Origin": PAGE})
        answer = client.getresponse()
        assert (answer.status, answer.read() != b"") == (200, True)
        assert client.sock is first
    client.close()


# Of each API and of the gateway's own: status, what is asked, and with which headers.
ASKED = [
    (200, "GET", "/", None, {}),
    (200, "GET", "/health", None, {}),
    (200, "GET", "/metrics", None, {}),
    (200, "GET", "/v1/models", None, {}),
    (200, "HEAD", "/v1/models", None, {}),
    (200, "GET", "/api/tags", None, {}),
    (200, "GET", "/api/version", None, {}),
    (200, "POST", CHAT, asking(), {}),
    (200, "POST", MESSAGES, asking(), {}),
    (200, "POST", "/v1/responses", asking(), {}),
    (418, "POST", CHAT, asking(status=418), {}),
    (500, "POST", CHAT, asking(status=500), {}),
    *((400, "POST", path, b"{", {}) for path in (CHAT, MESSAGES, OLLAMA_CHAT)),
    *((404, "POST", path, asking("nope"), {}) for path in (CHAT, MESSAGES, OLLAMA_CHAT)),
    *((404, "GET", path, None, {}) for path in ("/nothing", "/v1/nothing", "/v1/models/nope", "/api/nothing")),
    *((405, "GET", path, None, {}) for path in (CHAT, MESSAGES, OLLAMA_CHAT)),
    (405, "DELETE", "/health", None, {}),
    (403, "POST", "/api/create", {"model": "x"}, {}),
    (501, "POST", "/api/embed", {"model": "translated", "input": "x"}, {}),
    *((413, "POST", path, None, {"Content-Length": "999999999"}) for path in (CHAT, MESSAGES, OLLAMA_CHAT)),
    (415, "POST", CHAT, asking(), {"Content-Encoding": "br"}),
    (417, "POST", CHAT, asking(), {"Expect": "miracles"}),
    (503, "POST", CHAT, asking("gone"), {}),
]


@pytest.mark.parametrize(("status", "verb", "path", "body", "headers"), ASKED)
def test_an_allowed_page_can_read_every_answer(gateway, served, status, verb, path, body, headers):
    got, head, _ = gateway.ask(path, body, verb, {**headers, "Origin": PAGE})
    assert (got, head["access-control-allow-origin"]) == (status, PAGE)
    assert names(head["vary"]) == {"origin"}
    assert head["access-control-expose-headers"] == "*"
    assert set(told(head)) == {"access-control-allow-origin", "access-control-expose-headers"}
    assert status != 503 or "retry-after" in head


def test_for_what_is_no_page_nothing_changes(gateway, served):
    for status, verb, path, body, headers in ASKED:
        if status != 503:
            got, head, _ = gateway.ask(path, body, verb, headers)
            assert (got, told(head), "vary" in head) == (status, {}, False), path


def test_streams_can_be_read_whole_and_broken(gateway, served):
    for path in (CHAT, MESSAGES):
        for more in ({}, {"die": "middle"}):
            body = asking(stream=True, **more)
            status, head, _ = gateway.ask(path, body, headers={"Origin": PAGE})
            assert (status, head["content-type"], may_read(head, PAGE)) == (200, "text/event-stream", True)


def test_what_engines_tell_browsers_is_not_passed_on(gateway, served):
    """llama.cpp lets every page in; and what a stream varies with is still told."""
    for varies in ("Accept-Encoding", "Origin", "origin, Accept", "*"):
        says = {"Access-Control-Allow-Origin": "*", "ACCESS-CONTROL-ALLOW-CREDENTIALS": "true", "Vary": varies}
        for path, stream in ((CHAT, True), (CHAT, False), (MESSAGES, True), (MESSAGES, False)):
            body = asking(stream=stream, reply_headers=says)
            _, head, _ = gateway.ask(path, body, headers={"Origin": PAGE})
            assert head["access-control-allow-origin"] == PAGE
            assert "access-control-allow-credentials" not in head
            assert told(gateway.ask(path, body)[1]) == {}
        client = gateway.connect()
        client.request("POST", CHAT, json.dumps(asking(stream=True, reply_headers=says)), {"Origin": PAGE})
        vary = client.getresponse().headers.get_all("Vary")
        client.close()
        assert names(",".join(vary)) == names(varies) | {"origin"}


def sent(gateway: Gateway, *pieces: bytes) -> tuple[int, dict[str, str]]:
    """A request as it is written, in pieces that come one by one: the answer's status and headers."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces[:-1]:
            client.sendall(piece)
            with pytest.raises(TimeoutError):
                client.settimeout(0.05)
                client.recv(1)
            client.settimeout(5)
        client.sendall(pieces[-1])
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_a_head_that_cannot_be_read_still_says_whose_page_it_is(gateway):
    lines = [b"POST %s HTTP/1.1", b"Host: localhost", b"X-Long: " + b"x" * 40_000, b"origin:  %s ", b"", b""]
    for path in (CHAT, MESSAGES, OLLAMA_CHAT):
        for origin, may in ((PAGE, True), (STRANGER, False)):
            head = b"\r\n".join(lines) % (path.encode(), origin.encode())
            status, told_of = sent(gateway, head)
            assert (status, may_read(told_of, origin), "access-control-allow-origin" in told_of) == (431, may, may)
            first, _, rest = head.partition(b"X-Long")
            moved = first + b"Origin: " + origin.encode() + b"\r\nX-Long" + rest
            status, told_of = sent(gateway, moved[:30], moved[30:90], moved[90:])
            assert (status, may_read(told_of, origin)) == (431, may)
            wrong = b"\r\n".join([lines[0], lines[1], b"No colon", lines[3], b"", b""]) % (
                path.encode(),
                origin.encode(),
            )
            status, told_of = sent(gateway, wrong)
            assert (status, may_read(told_of, origin)) == (400, may)
    # Half of an origin is none.
    cut = b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\nOrigin: http://localhost:3000"
    status, told_of = sent(gateway, cut)
    assert (status, told(told_of)) == (400, {})


def test_a_kept_connection_does_not_remember_a_page(gateway):
    good = f"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        client.sendall(good)
        assert PAGE.encode() in client.recv(4096)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n")
        answer = client.recv(4096)
        assert b" 400 Bad Request" in answer
        assert b"Access-Control" not in answer


def test_where_keys_are_demanded_every_page_may_ask_for_one(keyed, engine):
    """Its preflight never has the key, and what it may read without one is that one is needed."""
    one = engine("one-g1")
    keyed.admin.set_routes("one", [keyed.route("tiny", one)])
    for origin in (STRANGER, PAGE, "null"):
        for path in PATHS:
            status, head = preflight(keyed, path, origin, Access_Control_Request_Headers="authorization,content-type")
            assert (status, head["access-control-allow-origin"]) == (204, "*"), path
            assert names(head["access-control-allow-headers"]) == {"authorization", "content-type"}
            for key, good in (("", False), ("sk-2", False), ("sk-1", True)):
                shown = {"Authorization": f"Bearer {key}"} if key else {}
                status, head, _ = keyed.ask(path, None, "GET", {"Origin": origin, **shown})
                assert (status == 401) is not (good or path == "/health"), path
                assert set(told(head)) == {"access-control-allow-origin", "access-control-expose-headers"}
                assert (head["access-control-allow-origin"], "vary" in head) == ("*", False)
    assert one.requests == []
    for stream in (False, True):
        shown = {"Origin": STRANGER, "X-Api-Key": "sk-1"}
        status, head, _ = keyed.ask(CHAT, asking(stream=stream), headers=shown)
        assert (status, head["access-control-allow-origin"]) == (200, "*")
    status, told_of = sent(keyed, f"GET / HTTP/1.1\r\nOrigin: {STRANGER}\r\nNo colon\r\n\r\n".encode())
    assert (status, told_of["access-control-allow-origin"]) == (400, "*")


def test_before_keys_are_demanded_a_strangers_page_may_bring_one(idle_gateway, home, engine):
    """While a gateway has its first key and still serves without: a page that shows the key is served already."""
    ring = json.loads(key_ring("sk-1"))
    write_keys(home / "keys", json.dumps({**ring, "open_until": "2999-01-31T12:00:00Z"}))
    idle_gateway.start("--key-file", str(home / "keys"))
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", engine("one-g1"))])
    for header in ("authorization", "X-API-Key"):
        status, head = preflight(idle_gateway, origin=STRANGER, Access_Control_Request_Headers=f"content-type,{header}")
        assert (status, head["access-control-allow-origin"]) == (204, STRANGER)
    status, head = preflight(idle_gateway, origin=STRANGER, Access_Control_Request_Headers="content-type")
    assert (status, told(head)) == (403, {})
    for key, good in (("sk-1", True), ("sk-2", False)):
        shown = {"Origin": STRANGER, "Authorization": f"Bearer {key}"}
        status, head, _ = idle_gateway.ask(CHAT, asking(), headers=shown)
        assert (status, may_read(head, STRANGER)) == ((200, True) if good else (403, False))
    assert preflight(idle_gateway)[0] == 204


def test_without_keys_nobody_can_bring_one(gateway):
    status, head = preflight(gateway, origin=STRANGER, Access_Control_Request_Headers="authorization")
    assert (status, told(head)) == (403, {})


@pytest.mark.parametrize("added", ["*", "https://*.example.com"])
def test_pages_that_were_added(idle_gateway, engine, added):
    idle_gateway.start(f"--origin={added}")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", engine("one-g1"))])
    named = "*" if added == "*" else STRANGER
    status, head = preflight(idle_gateway, origin=STRANGER, Access_Control_Request_Private_Network="true")
    assert (status, head["access-control-allow-origin"]) == (204, named)
    assert head["access-control-allow-private-network"] == "true"
    status, head, _ = idle_gateway.ask(CHAT, asking(), headers={"Origin": STRANGER})
    assert (status, head["access-control-allow-origin"], "vary" in head) == (200, named, added != "*")
    assert (preflight(idle_gateway, origin="null")[0] == 204) is (added == "*")


@pytest.mark.parametrize("turn", [1, -1], ids=["let in", "let in no longer"])
def test_a_connection_that_was_open_before_goes_by_the_gateway_that_took_over(idle_gateway, home, turn):
    """A browser keeps the one on which its page was refused."""
    ways = [((), 403), ((f"--origin={STRANGER}",), 200)][::turn]
    (before, first), (after, then) = ways
    idle_gateway.start(*before)
    client = idle_gateway.connect()
    client.request("GET", "/v1/models", headers={"Origin": STRANGER})
    answer = client.getresponse()
    assert (answer.status, bool(answer.read()), client.sock is not None) == (first, True, True)
    new = Gateway(home)
    new.socket, new.state = home / "gateway-g2.sock", home / "routes-g2.json"
    new.admin = GatewayAdmin(new.socket)
    waits = home / "take-over.sock"
    try:
        new.start("--take-over", str(waits), *after, listen=idle_gateway.listen)
        idle_gateway.admin.hand_over(waits)
        wait_until(lambda: new.status().phase is Phase.SERVING)
        client.request("GET", "/v1/models", headers={"Origin": STRANGER})
        answer = client.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (then, "close")
        client.close()
        assert idle_gateway.process.wait(10) == 0
    finally:
        new.close()
