"""Bodies: how they may be packed, how large they may be, and how much of them is held at once."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_process import Gateway, key_ring, wait_until, write_keys

from orchestrator.gateway.bodies import LARGEST_BODY, MOST_HELD, MOST_PARTS, PIECE

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
START, END = b'{"model": "tiny", "x": "', b'"}'
GZIP = {"Content-Encoding": "gzip"}
# What the gateway may take with all that it holds: that, one body more while it is put together, and itself.
MOST_MIB = 1.25 * MOST_HELD / 2**20 + 150


def code(answer):
    return answer[0], json.loads(answer[2])["error"]["code"]


def filled(size, start=START, filling=b"a", end=END):
    """A body of so many bytes."""
    return start + filling * ((size - len(start) - len(end)) // len(filling)) + end


def packed(size, start=START, filling=b"a" * 1024, end=END, bits=31):
    """The same, packed, without ever having it here."""
    packing = zlib.compressobj(9, zlib.DEFLATED, bits)
    made = [packing.compress(start)]
    blocks, rest = divmod((size - len(start) - len(end)) // len(filling), 1024)
    made += [packing.compress(filling * 1024) for _ in range(blocks)]
    made += [packing.compress(filling * rest), packing.compress(end), packing.flush()]
    return b"".join(made)


def mib(gateway: Gateway, line: str) -> float:
    """A line of the process's status that is memory; VmHWM is the most it ever had."""
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(text.partition(f"{line}:")[2].split()[0]) / 1024


@pytest.fixture(scope="module")
def bomb():
    """More than a gigabyte in one megabyte; it has no end, because nobody gets there."""
    packing = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packing.compress(START) + packing.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before, so the block can be repeated.
    block = packing.compress(b"a" * (1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    assert len(block) < 1100
    return start + block * 1024


@pytest.fixture
def shared(running_gateway):
    """The module's gateway, again without routes after each test."""
    yield running_gateway
    running_gateway.admin.remove_routes("one")


def raw_deflate(body):
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(body) + packing.flush()


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_what_is_unpacked(shared, engine, path, encoding, pack):
    one = engine("one-g1")
    shared.admin.set_routes("one", [shared.route("tiny", one)])
    body = filled(2000)
    for data in (pack(body), iter([pack(body)])):
        assert shared.ask(path, data, headers={"Content-Encoding": encoding})[0] == 200
    assert [(got, "content-encoding" in sent) for _, sent, got in one.requests] == [(body, False)] * 2


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, PIECE + 2, 4 * PIECE])
def test_nothing_is_left_inside_at_the_end_of_a_piece(shared, engine, size):
    one = engine("one-g1")
    shared.admin.set_routes("one", [shared.route("tiny", one)])
    # Bare deflate of so many spaces: all input is in, a whole piece is out, and something is still to come.
    body = b'{"model": "tiny"}'.ljust(size)
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)):
        assert shared.ask(CHAT, pack(body), headers={"Content-Encoding": encoding})[0] == 200
    assert [got for _, _, got in one.requests] == [body] * 3


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip;q=1", "x"])
def test_another_encoding_is_refused_before_the_body_is_sent(shared, encoding):
    for path, kind in ((CHAT, "invalid_request_error"), (MESSAGES, "invalid_request_error")):
        connection = shared.connect()
        connection.putrequest("POST", path)
        connection.putheader("Content-Encoding", encoding)
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        assert (response.status, response.getheader("Accept-Encoding"), error["type"]) == (415, "gzip, deflate", kind)
        assert encoding in error["message"]
        connection.close()


NOT_WELL_PACKED = {
    "not packed": ("gzip", b"not gzip"),
    "nothing": ("gzip", b""),
    "one byte less": ("gzip", gzip.compress(filled(1000))[:-1]),
    "one byte more": ("gzip", gzip.compress(filled(1000)) + b"x"),
    "two of them": ("gzip", gzip.compress(START) + gzip.compress(END)),
    "a wrong checksum": ("gzip", gzip.compress(filled(1000))[:-8] + b"\0" * 8),
    "not deflated": ("deflate", b"\xff"),
    "no end": ("deflate", zlib.compress(filled(1000))[:-5]),
}


@pytest.mark.parametrize(("encoding", "body"), NOT_WELL_PACKED.values(), ids=NOT_WELL_PACKED)
def test_what_is_not_well_packed_is_told(shared, encoding, body):
    answer = shared.ask(CHAT, body, headers={"Content-Encoding": encoding})
    assert code(answer) == (400, "invalid_body")
    assert encoding in json.loads(answer[2])["error"]["message"]


def test_the_limit_is_one_of_unpacked_bytes(shared, engine):
    one = engine("one-g1")
    shared.admin.set_routes("one", [shared.route("tiny", one)])
    assert shared.ask(CHAT, packed(LARGEST_BODY, filling=b"a"), headers=GZIP)[0] == 200
    assert len(one.requests[0][2]) == LARGEST_BODY
    for data in (packed(LARGEST_BODY + 1, filling=b"a"), iter([packed(LARGEST_BODY + 1, filling=b"a")])):
        assert code(shared.ask(CHAT, data, headers=GZIP)) == (413, "body_too_large")
    status, _, answer = shared.ask(MESSAGES, packed(LARGEST_BODY + 1, filling=b"a"), headers=GZIP)
    assert (status, json.loads(answer)["error"]["type"]) == (413, "request_too_large")
    assert len(one.requests) == 1


def test_the_limit_is_one_of_sent_bytes_too(shared):
    """Blocks with nothing in them: 5 bytes that unpack to none, as long as the client likes."""
    nothing = b"\0\0\0\xff\xff" * (1 << 18)
    pieces = (nothing for _ in range(LARGEST_BODY // len(nothing) + 1))
    status, _, answer = shared.ask(CHAT, pieces, headers={"Content-Encoding": "deflate"})
    assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")


def test_nothing_is_unpacked_for_those_who_are_not_admitted(idle_gateway, home, bomb):
    """No key, a foreign page, a path that is none, a wrong method: what they send is thrown away as it is."""
    keys = home / "keys"
    write_keys(keys, key_ring("sk-1"))
    page = {"Origin": "https://evil.example.com"}
    asks = [("POST", CHAT, {}, 401), ("POST", CHAT, page, 403), ("POST", "/x", {}, 404), ("PUT", CHAT, {}, 405)]
    for verb, path, more, status in asks:
        idle_gateway.start(*(("--key-file", str(keys)) if status == 401 else ()))
        before = cpu_s(idle_gateway)
        head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(bomb)}\r\nContent-Encoding: gzip\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in more.items())
        with socket.create_connection(("127.0.0.1", idle_gateway.port), timeout=20) as client:
            client.sendall(f"{head}\r\n".encode() + bomb)
            answer = b""
            # To the end of the connection: what is left of the body is read after the answer.
            while data := client.recv(4096):
                answer += data
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert mib(idle_gateway, "VmHWM") < 60
        # A gigabyte takes more than a second to unpack.
        assert cpu_s(idle_gateway) - before < 0.5
        idle_gateway.end()


def cpu_s(gateway):
    """Seconds that the process was on a CPU so far."""
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def all_at_once(gateway, count, body, path=CHAT, meanwhile=lambda _: None):
    """The same packed body so many times side by side: status, Retry-After and JSON of each answer. `meanwhile` is
    called with something that tells how many have been answered."""

    def ask(_):
        with contextlib.closing(gateway.connect()) as connection:
            connection.timeout = 60
            connection.request("POST", path, body, {**GZIP, "Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.getheader("Retry-After"), json.loads(response.read())

    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(ask, number) for number in range(count)]
        meanwhile(lambda: sum(one.done() for one in asked))
        return [one.result() for one in asked]


def test_twenty_bombs_at_once(gateway, engine, bomb):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    seen = Counter(status for status, _, _ in all_at_once(gateway, 20, bomb))
    assert set(seen) <= {413, 503}
    assert seen[413] > 0
    assert mib(gateway, "VmHWM") < MOST_MIB
    assert one.requests == []
    assert gateway.ask(CHAT, {"model": "tiny"})[0] == 200


@pytest.mark.parametrize(("path", "patch"), [(CHAT, {}), (MESSAGES, {"lora": [{"id": 0, "scale": 1.0}]})])
def test_bodies_that_wait_for_their_engine_are_held_up_to_a_limit(gateway, engine, patch, path):
    """Each is as large as it may be and in order; there is room for some, and the others may come again. A body that
    a route rewrites is there twice."""
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one, patch=patch)])
    body = packed(LARGEST_BODY, start=b'{"model": "tiny", "wait": "head", "x": "')
    fit = MOST_HELD // LARGEST_BODY // (2 if patch else 1)

    def meanwhile(answered):
        # Those that fit wait at the engine, the others have been sent away.
        wait_until(lambda: len(one.requests) + answered() == fit + 4, timeout=50)
        one.gate.set()

    answers = all_at_once(gateway, fit + 4, body, path, meanwhile)
    seen = Counter(status for status, _, _ in answers)
    assert set(seen) == {200, 503}
    assert seen[200] <= fit
    assert mib(gateway, "VmHWM") < MOST_MIB
    for status, retry, answer in answers:
        if status == 503:
            assert retry == "2"
            told = answer["error"]["type"] if path == MESSAGES else answer["error"]["code"]
            assert told == ("overloaded_error" if path == MESSAGES else "too_much_held")
    # All that was held is let go of.
    assert [status for status, _, _ in all_at_once(gateway, 1, body, path)] == [200]
    wait_until(lambda: mib(gateway, "VmRSS") < 250, timeout=20)


def test_a_body_is_let_go_of_when_its_answer_begins(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    body = packed(LARGEST_BODY, start=b'{"model": "tiny", "stream": true, "wait": "middle", "x": "')
    # More than are held at once: each of them streams on.
    answers = []
    for _ in range(MOST_HELD // LARGEST_BODY + 2):
        connection = gateway.connect()
        connection.request("POST", CHAT, body, GZIP)
        answers.append((connection, connection.getresponse()))
        assert answers[-1][1].readline().startswith(b"data: ")
        one.requests.clear()
    assert mib(gateway, "VmRSS") < 60 + 2 * LARGEST_BODY / 2**20
    one.gate.set()
    for connection, answer in answers:
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_a_small_body_can_mean_much_to_a_parser(gateway, engine):
    """Lists in lists: as objects they would take thirty times their bytes, and seconds to look through."""
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one, patch={"y": 1})])
    lists = packed(LARGEST_BODY, start=b'{"model": "tiny", "x": [', filling=b"[],", end=b"[]]}")
    assert code(gateway.ask(CHAT, lists, headers=GZIP)) == (413, "body_too_intricate")
    few = packed(MOST_PARTS - 100, start=b'{"model": "nope", "x": [', filling=b"[],", end=b"[]]}")
    assert code(gateway.ask(CHAT, few, headers=GZIP)) == (404, "model_not_found")
    many = b'{"model": "tiny"' + b"".join(b', "%x": 1' % number for number in range(MOST_PARTS)) + b"}"
    assert code(gateway.ask(CHAT, many)) == (413, "body_too_intricate")
    assert mib(gateway, "VmHWM") < 200
    assert one.requests == []


def test_a_rewritten_body_keeps_its_values_as_they_are(shared, engine):
    one = engine("one-g1")
    shared.admin.set_routes("one", [shared.route("tiny", one, patch={"y": 1})])
    nested = b"[" * 400 + b"]" * 400
    body = b'{"y": 2, "model": "nope", "big": 123456789012345678901234567890, "far": 1e400, "x": ' + nested
    assert shared.ask(CHAT, body + b', "model": "tiny"} \n')[0] in (200, 500)
    sent = one.requests[0][2]
    assert sent == body + b', "model": "tiny","model":"tiny","y":1}'
    deep = b'{"model": "tiny", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert code(shared.ask(CHAT, deep)) == (400, "invalid_body")


def test_a_large_body_arrives_whole_on_a_kept_connection(shared, engine):
    one = engine("one-g1")
    shared.admin.set_routes("one", [shared.route("tiny", one)])
    bodies = [filled(size) for size in (PIECE, PIECE + 1, 10 * PIECE, 10 * PIECE + 7)]
    connection = shared.connect()
    for body in bodies:
        connection.request("POST", CHAT, body)
        assert json.loads(connection.getresponse().read())["from"] == "one-g1"
    connection.close()
    assert [got for _, _, got in one.requests] == bodies
    assert [sent["content-length"] for _, sent, _ in one.requests] == [str(len(body)) for body in bodies]
    assert not any("transfer-encoding" in sent for _, sent, _ in one.requests)


def test_a_body_that_does_not_go_on_is_given_up(idle_gateway):
    idle_gateway.start("--limit=body_s=0.3")
    for path in (CHAT, MESSAGES):
        with socket.create_connection(("127.0.0.1", idle_gateway.port), timeout=5) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
            client.sendall(head.encode() + b'{"model"')
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"\r\nConnection: close\r\n" in answer
    # As long as enough comes, it may take its time.
    body = b'{"model":"tiny"}' + b" " * 1500
    with socket.create_connection(("127.0.0.1", idle_gateway.port), timeout=5) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.settimeout(0.1)
        for start in range(0, len(body), 100):
            client.sendall(body[start : start + 100])
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 404 ")
