"""Requests whose heads are long, or cannot be read: the answer is in the words that were spoken, in nobody else's."""

from __future__ import annotations

import json
import socket

import pytest

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
SHAPES = {
    CHAT: lambda told: set(told["error"]) == {"message", "type", "param", "code"},
    MESSAGES: lambda told: told["type"] == "error" and set(told["error"]) == {"type", "message"},
    OLLAMA_CHAT: lambda told: set(told) == {"error"} and isinstance(told["error"], str),
}


@pytest.fixture
def gateway(running_gateway):
    yield running_gateway
    running_gateway.admin.remove_routes("one")


def said(gateway, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes before the connection is closed."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize("path", SHAPES)
def test_what_is_no_http_is_answered_in_the_words_of_its_path(gateway, path):
    before = len(gateway.log.read_text())
    for rest, status in [
        (b"Host: localhost\r\nContent-Length: many\r\n\r\n", 400),
        (b"Host: localhost\r\nBad Header\r\n\r\n", 400),
        (b"Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (b"Host: localhost\r\nX: " + b"x" * (40 << 10) + b"\r\n\r\n", 431),
    ]:
        answered, headers, body = said(gateway, b"POST " + path.encode() + b"?x=1 HTTP/1.1\r\n" + rest)
        assert answered == status, rest[:60]
        assert headers["connection"] == "close"
        assert SHAPES[path](json.loads(body)), body
    assert "Traceback" not in gateway.log.read_text()[before:]


def test_a_long_path_and_garbage(gateway):
    before = len(gateway.log.read_text())
    assert said(gateway, b"GET /" + b"x" * (40 << 10) + b" HTTP/1.1\r\n\r\n")[0] == 431
    status, headers, body = said(gateway, b"\x16\x03\x01\x00\xa5\x01\x00\x00\r\n\r\n")
    assert (status, headers["connection"]) == (400, "close")
    assert SHAPES[CHAT](json.loads(body))
    assert "Traceback" not in gateway.log.read_text()[before:]


def test_cookies_of_whoever_stands_before_the_gateway_are_taken_and_not_sent_on(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    long = {"Cookie": "session=" + "c" * (20 << 10), "X-Forwarded-Claims": "j" * (12 << 10), "X-Request-Id": "abc"}
    assert gateway.ask(CHAT, {"model": "tiny"}, headers=long)[0] == 200
    (_, headers, _) = one.requests[0]
    assert headers["x-request-id"] == "abc"
    assert not {"cookie", "x-forwarded-claims"} & set(headers)
