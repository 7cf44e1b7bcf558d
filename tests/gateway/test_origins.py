"""Which pages, and under which names, may use a gateway that demands no key."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest
from gateway_process import key_ring, write_keys

from orchestrator.gateway.origins import Allowed, Name, Origin, parse_host, parse_origin, parse_pattern
from orchestrator.gateway.sockets import is_own_address

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
OWN_ADDRESS = "9.9.9.7"


def allowed(*added: str) -> Allowed:
    """The rule on a machine named box, which has one public address."""
    return Allowed(tuple(map(parse_pattern, added)), "Box", lambda address: address == OWN_ADDRESS)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "localhost:8484",
        "LOCALHOST:8484",
        "localhost.:8484",
        "127.0.0.1:8484",
        "127.9.9.9",
        "0.0.0.0:8484",
        "[::1]",
        "[::1]:8484",
        "[::]:8484",
        "[::ffff:127.0.0.1]:8484",
        "[::ffff:7f00:1]",
        "[fe80::1]:8484",
        "[fd00::1]",
        "10.1.2.3:80",
        "192.168.0.7",
        OWN_ADDRESS,
        f"{OWN_ADDRESS}:8484",
        "box",
        "BOX:8484",
        "box.",
        "app.localhost:8484",
        "box.local",
        "host.docker.internal:8484",
    ],
)
def test_names_of_this_machine(host):
    assert allowed().host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "evil.example.com:8484",
        "evil.example.com.",
        "localhost.evil.example.com",
        "127.0.0.1.evil.example.com",
        "evil-localhost",
        "evillocal",
        "local",
        "internal",
        "box.example.com",
        "localhost@evil.example.com",
        "evil.example.com@localhost",
        "evil.example.com#.localhost",
        "evil.example.com/.local",
        "evil.example.com?.local",
        "evil.example.com\\.local",
        "evil.example.com .local",
        "evil.example.com,localhost",
        "localhost:8484:8484",
        "localhost:",
        "localhost:x",
        "[::1",
        "::1",
        "[localhost]",
        "[2001:db9::1]:8484",
        "9.9.9.8",
        "8.8.8.8",
        "2130706433",
        "0x7f.1",
        "127.1",
        "büro.local",
        "localhost\n",
    ],
)
def test_names_of_others(host):
    assert not allowed().host(host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:3000",
        "HTTP://LocalHost:3000",
        "http://localhost.:3000",
        "http://127.0.0.1",
        "https://127.0.0.1:65535",
        "http://0.0.0.0:8080",
        "http://[::1]",
        "http://[::1]:3000",
        "app://obsidian.md",
        "app://-",
        "file://",
        "tauri://localhost",
        "vscode-webview://1ab2c3",
        "vscode-file://vscode-app",
    ],
)
def test_pages_of_this_machine(origin):
    assert allowed().origin(origin, "127.0.0.1:8484")


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://evil.example.com",
        "https://evil.example.com:8484",
        "http://localhost.evil.example.com",
        "http://127.0.0.1.evil.example.com:3000",
        "http://localhost@evil.example.com",
        "http://localhost:3000@evil.example.com",
        "http://evil.example.com/http://localhost:3000",
        "http://evil.example.com#http://localhost:3000",
        "http://localhost:3000 http://evil.example.com",
        "http://localhost:3000/",
        "http://localhost:3000/page",
        "http://localhost:x",
        "http://localhost:",
        "http://",
        "//localhost",
        "localhost",
        "localhost:3000",
        "http:localhost",
        "ftp://localhost",
        "ws://localhost:3000",
        "chrome-extension://abcdef",
        "http://app.localhost",
        "http://192.168.0.7",
        "http://[::2]",
        "http://127.0.0.2",
        "data:text/html,x",
        "http://localhost:3000\n",
    ],
)
def test_pages_of_others(origin):
    assert not allowed().origin(origin, "127.0.0.1:8484")


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://box.local:8484", "box.local:8484", True),
        ("http://BOX.local.:8484", "box.local:8484", True),
        ("https://box.local", "box.local", True),
        ("https://box.local", "box.local:443", True),
        ("http://box.local:80", "box.local", True),
        ("http://[fe80::1]:8484", "[fe80::1]:8484", True),
        ("http://box.local", "box.local:8484", False),
        ("http://box.local:8484", "box.local", False),
        ("http://other.local:8484", "box.local:8484", False),
        ("moz-extension://box.local", "box.local", False),
        ("http://", "", False),
        ("http://a@b", "a@b", False),
        ("null", "null", False),
    ],
)
def test_pages_of_the_gateways_own_name(origin, host, own):
    assert allowed().origin(origin, host) is own


@pytest.mark.parametrize(
    ("added", "origin", "may"),
    [
        ("https://chat.example.org", "https://chat.example.org", True),
        ("https://Chat.Example.Org", "https://chat.example.org:443", True),
        ("https://chat.example.org", "http://chat.example.org", False),
        ("https://chat.example.org", "https://chat.example.org:8443", False),
        ("https://chat.example.org", "https://chat.example.org.evil.example.com", False),
        ("https://chat.example.org", "https://evil-chat.example.org", False),
        ("http://chat.lan:3000", "http://chat.lan:3000", True),
        ("http://chat.lan:3000", "http://chat.lan", False),
        ("http://chat.lan:*", "http://chat.lan:3001", True),
        ("http://chat.lan:*", "http://chat.lan", True),
        ("https://*.example.org", "https://chat.example.org", True),
        ("https://*.example.org", "https://a.b.example.org", True),
        ("https://*.example.org", "https://example.org", False),
        ("https://*.example.org", "https://evilexample.org", False),
        ("https://*.example.org", "https://evil.example.com/.example.org", False),
        ("https://*", "https://anything.example.com:8443", True),
        ("https://*", "http://anything.example.com", False),
        ("http://[fd00::1]:3000", "http://[fd00::1]:3000", True),
        ("chrome-extension://*", "chrome-extension://abcdef", True),
        ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
        ("chrome-extension://abcdef", "chrome-extension://fedcba", False),
        ("*", "https://anything.example.com", True),
        ("*", "null", True),
        ("https://*", "null", False),
    ],
)
def test_pages_that_were_added(added, origin, may):
    assert allowed(added).origin(origin, "localhost") is may
    assert allowed(added).origin("http://localhost:3000", "localhost")


@pytest.mark.parametrize(
    ("added", "host", "may"),
    [
        ("https://llm.example.org", "llm.example.org", True),
        ("https://llm.example.org", "llm.example.org:8484", True),
        ("https://*.example.org", "llm.example.org", True),
        ("https://llm.example.org", "evil.example.com", False),
        ("https://*", "evil.example.com", False),
        ("chrome-extension://abcdef", "abcdef", False),
        ("*", "evil.example.com", True),
    ],
)
def test_a_site_that_was_added_may_name_the_gateway(added, host, may):
    assert allowed(added).host(host) is may


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "chat.example.org",
            "https://",
            "https://a/b",
            "https://a/",
            "https://a b",
            "null",
            "**",
            "*.example.org",
        ),
        *("https://a.*", "https://*a", "https://a:x", "https://a@b", "https://a,https://b", "http://192.168.1.*"),
    ],
)
def test_what_is_no_origin(text):
    with pytest.raises(ValueError, match="is not a valid origin"):
        parse_pattern(text)


def test_what_is_read():
    assert parse_host("LocalHost.:80") == Name("localhost", 80)
    assert parse_host("[::1]") == Name("::1", None)
    assert parse_host("a@b") is None
    assert parse_origin("https://A.example") == Origin("https", "a.example", 443)
    assert parse_origin("tauri://localhost") == Origin("tauri", "localhost", None)
    assert parse_origin("null") is None


def test_addresses_of_this_machine():
    assert is_own_address("127.0.0.1")
    assert is_own_address("0.0.0.0")
    assert not is_own_address("9.9.9.7")
    assert not is_own_address("2001:db9::1")
    assert not is_own_address("fe80::1%nowhere")


@pytest.fixture
def gateway(running_gateway):
    """The module's gateway, again without routes after each test."""
    yield running_gateway
    running_gateway.admin.remove_routes("one")


def test_a_page_of_another_site_gets_nothing(gateway, engine):
    """What a browser sends without asking anybody: plain text, with an Origin."""
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    before = gateway.status().traffic.totals
    for origin in ("https://evil.example.com", "null"):
        page = {"Origin": origin, "Content-Type": "text/plain;charset=UTF-8"}
        for verb, path in [("POST", CHAT), ("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("GET", "/health")]:
            status, head, answer = gateway.ask(path, {"model": "tiny"} if verb == "POST" else None, verb, page)
            error = json.loads(answer)["error"]
            assert (status, error["code"], error["type"]) == (403, "origin_not_allowed", "invalid_request_error")
            assert not [name for name in head if name.startswith("access-control-")]
        status, _, answer = gateway.ask(MESSAGES, {"model": "tiny"}, headers=page)
        told = json.loads(answer)
        assert (status, told["type"], told["error"]["type"]) == (403, "error", "permission_error")
        assert set(told["error"]) == {"type", "message"}
    assert one.requests == []
    assert gateway.status().traffic.totals == before


def test_a_rebound_name_gets_nothing(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    host = f"evil.example.com:{gateway.port}"
    for verb, path in [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics")]:
        for more in ({}, {"Origin": f"http://{host}"}):
            body = {"model": "tiny"} if verb == "POST" else None
            status, _, answer = gateway.ask(path, body, verb, {"Host": host, **more})
            assert (status, json.loads(answer)["error"]["code"]) == (403, "host_not_allowed")
    assert one.requests == []


def test_pages_and_names_of_this_machine_are_served_and_the_engine_is_not_asked_about_them(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    name = f"{socket.gethostname()}:{gateway.port}"
    for headers in (
        {},
        {"Origin": "http://localhost:3000", "Content-Type": "text/plain"},
        {"Host": name},
        {"Host": name, "Origin": f"http://{name}"},
        {"Host": "localhost", "Origin": "tauri://localhost"},
    ):
        assert gateway.ask(CHAT, {"model": "tiny"}, headers=headers)[0] == 200, headers
    assert not any("origin" in sent for _, sent, _ in one.requests)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.0 200 ")


def test_a_refused_page_is_not_asked_for_its_body(gateway):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n"
    for more in ("Expect: 100-continue\r\n", ""):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
            client.sendall(f"{head}{more}Origin: https://evil.example.com\r\n\r\n".encode())
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"\r\nConnection: close\r\n" in answer


def test_origins_that_were_added(idle_gateway, engine):
    added = ("https://chat.example.org", "chrome-extension://*")
    idle_gateway.start(*(f"--origin={origin}" for origin in added))
    one = engine("one-g1")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    assert idle_gateway.status().origins == added
    for headers, status in [
        ({"Origin": "https://chat.example.org"}, 200),
        ({"Origin": "chrome-extension://abcdef"}, 200),
        ({"Host": "chat.example.org"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://other.example.org"}, 403),
        ({"Host": "other.example.org"}, 403),
    ]:
        assert idle_gateway.ask(CHAT, {"model": "tiny"}, headers=headers)[0] == status, headers


def test_the_way_out_of_a_refusal_is_one(idle_gateway, engine):
    """What a refusal says to let in is an origin, and with it the same request is answered."""
    one = engine("one-g1")
    for headers in ({"Origin": "https://chat.example.org:8443"}, {"Host": "llm.example.org:8484"}):
        idle_gateway.start()
        idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
        status, _, answer = idle_gateway.ask(CHAT, {"model": "tiny"}, headers=headers)
        message = json.loads(answer)["error"]["message"]
        assert (status, "`orch up --origin " in message) == (403, True)
        told = message.partition("--origin ")[2].partition("`")[0]
        idle_gateway.end()
        idle_gateway.start(f"--origin={told}")
        assert idle_gateway.ask(CHAT, {"model": "tiny"}, headers=headers)[0] == 200, told
        idle_gateway.end()
    for headers in ({"Origin": "null"}, {"Host": "a@b"}, {"Origin": "http://a@b"}):
        idle_gateway.start()
        status, _, answer = idle_gateway.ask(CHAT, {"model": "tiny"}, headers=headers)
        assert (status, b"--origin" in answer) == (403, False)
        idle_gateway.end()


def test_a_key_opens_to_every_page_under_every_name(idle_gateway, engine, home):
    keys = home / "keys"
    write_keys(keys, key_ring("sk-1"))
    idle_gateway.start("--key-file", str(keys), listen="0.0.0.0:0")
    one = engine("one-g1")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    page = {"Origin": "https://chat.example.org", "Host": "llm.example.org"}
    assert idle_gateway.ask(CHAT, {"model": "tiny"}, headers={**page, "X-Api-Key": "sk-1"})[0] == 200
    assert idle_gateway.ask(CHAT, {"model": "tiny"}, headers={**page, "X-Api-Key": "sk-2"})[0] == 401
    assert idle_gateway.ask("/health", verb="GET", headers=page)[0] == 200


def test_an_origin_that_is_none_ends_the_start(idle_gateway):
    command = idle_gateway.command("127.0.0.1:0", "--origin=chat.example.org")
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "'chat.example.org' is not a valid origin" in done.stderr
