"""API keys: who is let in, what is told of them, and their change while requests run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gateway_process import key_ring, wait_until, write_keys

from orchestrator.core.keys import ApiKey, KeyRing, digest_of, utc
from orchestrator.core.listen import is_loopback
from orchestrator.core.routes import FIRST_WITH_DIGESTS
from orchestrator.errors import HostError
from orchestrator.gateway.keys import read_keys

CHAT = "/v1/chat/completions"
KEY, NEXT, WRONG = "sk-first-4fd1", "sk-next-88aa", "sk-wrong-0c0c"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def at(seconds):
    return utc(datetime.now(UTC) + timedelta(seconds=seconds))


def code(answer):
    return json.loads(answer[2])["error"]["code"]


@pytest.fixture
def key_file(home):
    path = home / "keys"
    write_keys(path, key_ring(KEY))
    return path


@pytest.fixture
def gateway(idle_gateway, key_file):
    """A running gateway that demands the key."""
    idle_gateway.start("--key-file", str(key_file))
    return idle_gateway


def hang_up(gateway, count, what):
    """SIGHUP, then wait until the log has `what` so many times."""
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: gateway.log.read_text().count(what) == count)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
@pytest.mark.parametrize("headers", [bearer(KEY), {"authorization": f"bearer  {KEY}"}, {"X-Api-Key": KEY}])
def test_the_key_opens_and_goes_no_further(gateway, engine, path, headers):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    assert gateway.ask(path, {"model": "tiny"}, headers={**headers, "X-Trace": "7"})[0] == 200
    _, sent, _ = one.requests[0]
    assert sent["x-trace"] == "7"
    assert not {"authorization", "x-api-key"} & set(sent)
    assert KEY not in str(one.requests)


def test_neither_header_goes_on_when_the_other_holds_the_key(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    for headers in ({**bearer(KEY), "X-Api-Key": WRONG}, {**bearer(WRONG), "X-Api-Key": KEY}):
        assert gateway.ask(CHAT, {"model": "tiny", "stream": True}, headers=headers)[0] == 200
    assert [{"authorization", "x-api-key"} & set(sent) for _, sent, _ in one.requests] == [set(), set()]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(WRONG),
        {"X-Api-Key": WRONG},
        {"X-Api-Key": ""},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xff\udc80"},
        {"Cookie": f"key={KEY}"},
        bearer(KEY[:-1]),
        bearer(KEY.upper()),
        bearer(f"{KEY}, {KEY}"),
    ],
    ids=str,
)
def test_nobody_else_comes_in(gateway, engine, headers):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    headers = {name: value.encode("latin-1", "replace") for name, value in headers.items()}
    for verb, path in [
        ("POST", CHAT),
        ("POST", "/v1/messages"),
        ("GET", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/metrics"),
        ("POST", "/health"),
        ("GET", "/health/x"),
        ("GET", "/nothing"),
        ("OPTIONS", CHAT),
    ]:
        status, head, answer = gateway.ask(path, {"model": "tiny"} if verb == "POST" else None, verb, headers)
        error = json.loads(answer)["error"]
        # OpenAI's word for it, and Anthropic's.
        word = error["type"] if path == "/v1/messages" else error["code"]
        wanted = "authentication_error" if path == "/v1/messages" else "invalid_api_key"
        assert (status, word, head["www-authenticate"]) == (401, wanted, "Bearer"), (verb, path)
        assert "`Authorization: Bearer KEY`" in error["message"]
        assert "`X-Api-Key: KEY`" in error["message"]
        assert b"sk-" not in answer
    assert gateway.ask("/metrics", verb="HEAD", headers=headers)[::2] == (401, b"")
    assert one.requests == []
    assert gateway.status().traffic.totals.requests == 0


def test_with_the_key_paths_are_as_without_keys(gateway):
    assert code(gateway.ask("/nothing", verb="GET", headers=bearer(KEY))) == "unknown_path"
    assert code(gateway.ask(CHAT, verb="GET", headers=bearer(KEY))) == "wrong_method"
    assert code(gateway.ask(CHAT, {"model": "tiny"}, headers=bearer(KEY))) == "model_not_found"
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 200
    assert gateway.ask("/metrics", verb="GET", headers=bearer(KEY))[0] == 200


def test_health_is_open(gateway):
    for headers in ({}, bearer(WRONG)):
        assert gateway.ask("/health", verb="GET", headers=headers)[::2] == (200, b'{"status": "ok"}')
        assert gateway.ask("//health/", verb="HEAD", headers=headers)[::2] == (200, b"")


def test_the_key_is_looked_at_before_the_body(gateway):
    connection = gateway.connect()
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, response.getheader("Connection")) == (401, "close")
    connection.close()


@pytest.mark.parametrize(("key", "first"), [(WRONG, "401"), (KEY, "100"), (None, "401")])
def test_a_client_that_waits_with_its_body_is_asked_for_it_only_with_the_key(gateway, key, first):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\nExpect: 100-continue\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        client.sendall(f"{head}\r\n".encode())
        assert client.recv(4096).startswith(f"HTTP/1.1 {first} ".encode())
        if first == "100":
            client.sendall(b'{"model":"tiny"}')
            assert client.recv(4096).startswith(b"HTTP/1.1 404 ")


def test_another_expectation_is_not_met(gateway):
    assert gateway.ask(CHAT, {"model": "tiny"}, headers={**bearer(KEY), "Expect": "miracles"})[0] == 417


def test_keys_change_under_an_open_stream(gateway, engine, stream, key_file):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(bearer(KEY), model="tiny", wait="middle")
    assert json.loads(client.event())["index"] == 0
    kept = gateway.connect()
    kept.request("GET", "/v1/models", headers=bearer(KEY))
    assert kept.getresponse().read()

    write_keys(key_file, key_ring(KEY, NEXT))
    hang_up(gateway, 1, "was read; API keys: 2.")
    for key, status in ((KEY, 200), (NEXT, 200), (WRONG, 401)):
        assert gateway.ask("/v1/models", verb="GET", headers=bearer(key))[0] == status
    write_keys(key_file, key_ring(NEXT))
    hang_up(gateway, 2, "was read; API keys: 1.")
    for key, status in ((KEY, 401), (NEXT, 200)):
        assert gateway.ask(CHAT, {"model": "tiny", "tokens": 1}, headers=bearer(key))[0] == status
    # A connection has no key: its next request must show one that is in force.
    kept.request("GET", "/v1/models", headers=bearer(KEY))
    assert kept.getresponse().status == 401
    kept.close()

    one.gate.set()
    assert [json.loads(client.event())["index"] for _ in range(2)] == [1, 2]
    assert client.rest() == ["[DONE]"]
    assert gateway.status().pid == gateway.process.pid


def test_a_bad_file_at_sighup_changes_nothing(gateway, key_file):
    write_keys(key_file, "")
    hang_up(gateway, 1, "cannot be read: it has no API key")
    write_keys(key_file, key_ring(NEXT), 0o640)
    hang_up(gateway, 1, "is open to other users (mode 0640)")
    key_file.unlink()
    hang_up(gateway, 1, "No such file or directory")
    said = [line for line in gateway.log.read_text().splitlines() if " ERROR " in line]
    assert [line.endswith("The API keys read before stay in force.") for line in said] == [True] * 3
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 200
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(NEXT))[0] == 401
    write_keys(key_file, key_ring(NEXT))
    hang_up(gateway, 2, "was read; API keys: 1.")
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(NEXT))[0] == 200


def test_the_key_is_told_nowhere(gateway, engine, key_file):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    for key in (KEY, WRONG):
        for headers in (bearer(key), {"X-Api-Key": key}):
            gateway.ask(CHAT, {"model": "tiny"}, headers=headers)
            gateway.ask(CHAT, {"model": "tiny", "die": "head"}, headers=headers)
            gateway.ask("/nothing", verb="GET", headers=headers)
    write_keys(key_file, f"{KEY}\n{NEXT} and more\n")
    hang_up(gateway, 1, "line 2 is not an API key")
    write_keys(key_file, key_ring(KEY, NEXT))
    hang_up(gateway, 1, "API keys: 2.")
    said = {
        "log": gateway.log.read_text(),
        "command": Path(f"/proc/{gateway.process.pid}/cmdline").read_text(),
        "status": json.dumps(gateway.status().to_json()),
        "metrics": gateway.ask("/metrics", verb="GET", headers=bearer(KEY))[2].decode(),
        "routes": gateway.state.read_text(),
    }
    assert "requests_total" in said["metrics"]
    assert "--key-file" in said["command"]
    assert {place: [key for key in (KEY, NEXT, WRONG) if key in text] for place, text in said.items()} == {
        place: [] for place in said
    }


def test_status_says_whether_keys_are_demanded(gateway, key_file):
    assert gateway.status().keys is True
    gateway.end()
    gateway.start()
    assert gateway.status().keys is False
    assert gateway.ask("/v1/models", verb="GET")[0] == 200


def start(gateway, listen, *more):
    """Start a gateway that is expected to end by itself; the exit code and what it said."""
    result = subprocess.run(gateway.command(listen, *more), capture_output=True, text=True, timeout=10)
    return result.returncode, result.stderr


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8484", "some-host:8484"])
def test_beyond_loopback_a_key_file_is_needed(idle_gateway, listen):
    status, said = start(idle_gateway, listen)
    assert (status, len(said.splitlines())) == (4, 1)
    assert "lets other machines in" in said
    assert "orch keys add NAME" in said
    assert not idle_gateway.socket.exists()


def test_beyond_loopback_with_keys(idle_gateway, key_file):
    idle_gateway.start("--key-file", str(key_file), listen="0.0.0.0:0")
    assert idle_gateway.listen.startswith("0.0.0.0:")
    assert idle_gateway.ask("/v1/models", verb="GET")[0] == 401
    assert idle_gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 200


def test_the_name_localhost_needs_no_keys(idle_gateway):
    idle_gateway.start(listen="localhost:0")
    assert idle_gateway.ask("/v1/models", verb="GET")[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.3.4", True),
        ("::1", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("128.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1", False),
        ("localhost.example.org", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_what_loopback_is(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (key_ring(KEY), 0o644, "open to other users (mode 0644). Run `chmod 600"),
        (key_ring(KEY), 0o620, "open to other users (mode 0620)"),
        ("", 0o600, "it has no API key"),
        ("# nobody\n", 0o600, "it has no API key"),
        (f"\n{KEY} # mine\n", 0o600, "line 2 is not an API key"),
        ("{", 0o600, "it is not JSON"),
        ("[]", 0o600, "a JSON object is needed"),
        ('{"version": 2, "keys": []}', 0o600, "version 1 is needed"),
        ('{"version": 1, "keys": [{"name": "a"}]}', 0o600, "created: a non-empty string"),
        (key_ring(KEY).replace(digest_of(KEY), "short"), 0o600, "64 hexadecimal digits"),
        (key_ring(KEY, NEXT).replace("key-2", "key-1"), 0o600, "a name occurs twice"),
        (key_ring(KEY, expires="tomorrow"), 0o600, "a time is needed"),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_start(idle_gateway, key_file, content, mode, message):
    write_keys(key_file, content, mode)
    status, said = start(idle_gateway, "127.0.0.1:0", "--key-file", str(key_file))
    assert (status, len(said.splitlines())) == (4, 1)
    assert re.match(r"\S+T\S+ ERROR ", said)
    assert message in said
    assert KEY not in said
    assert not idle_gateway.socket.exists()


def test_what_is_no_file_is_refused_at_once(home):
    os.mkfifo(home / "pipe", 0o600)
    (home / "link").symlink_to("/dev/null")
    write_keys(home / "large", "x" * (1 << 20) + "\n")
    for name, message in {
        "none": "No such file",
        "pipe": "not a regular file",
        "link": "not a regular file",
        "large": "larger than 1024 KiB",
        ".": "Is a directory",
    }.items():
        with pytest.raises(HostError, match=message) as caught:
            read_keys(home / name)
        assert caught.value.hint


def test_as_an_earlier_version_has_started_it_it_goes_by_that_versions_file(idle_gateway, key_file):
    """Its keeper starts the program that is installed by now, with the words of then."""
    write_keys(key_file, f"# of the web page\n{KEY}\n")
    idle_gateway.start("--key-file", str(key_file))
    assert [idle_gateway.ask("/v1/models", verb="GET", headers=bearer(key))[0] for key in (KEY, NEXT)] == [200, 401]
    # So that it is replaced by whoever needs more of it.
    assert idle_gateway.status().protocol == FIRST_WITH_DIGESTS - 1


def test_a_rotated_key_is_good_for_as_long_as_the_one_before_was():
    now = datetime.now(UTC)
    old = ApiKey("a", digest_of(KEY), utc(now - timedelta(days=20)), expires=utc(now - timedelta(days=10)))
    (rotated,) = KeyRing((old,)).rotated("a", digest_of(NEXT), now, at(60)).keys
    assert (rotated.expires, rotated.before) == (utc(now + timedelta(days=10)), ())
    (again,) = KeyRing((rotated,)).rotated("a", digest_of(WRONG), now, at(60)).keys
    assert [(one.digest, one.until) for one in again.before] == [(digest_of(NEXT), at(60))]


def test_a_key_is_good_until_it_expires_and_then_still_demanded(gateway, key_file):
    write_keys(key_file, key_ring(KEY, expires=at(2)))
    gateway.admin.read_keys()
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 200
    wait_until(lambda: gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 401)
    assert gateway.ask("/v1/models", verb="GET")[0] == 401
    assert gateway.status().keys is True


def test_a_key_that_was_replaced_is_good_for_a_while(gateway, key_file):
    ring = KeyRing.from_text(key_ring(KEY)).rotated("key-1", digest_of(NEXT), datetime.now(UTC), at(2))
    write_keys(key_file, ring.to_text())
    gateway.admin.read_keys()
    for key in (KEY, NEXT):
        assert gateway.ask("/v1/models", verb="GET", headers=bearer(key))[0] == 200
    wait_until(lambda: gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 401)
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(NEXT))[0] == 200


def test_whoever_has_no_key_yet_is_let_in_for_a_while_on_loopback_only(idle_gateway, key_file):
    ring = replace(KeyRing.from_text(key_ring(KEY)), open_until=at(2))
    write_keys(key_file, ring.to_text())
    idle_gateway.start("--key-file", str(key_file))
    assert idle_gateway.ask("/v1/models", verb="GET")[0] == 200
    # Its page may be anybody's; with the key it is not asked whose.
    foreign = {"Origin": "https://elsewhere.example"}
    assert idle_gateway.ask("/v1/models", verb="GET", headers=foreign)[0] == 403
    assert idle_gateway.ask("/v1/models", verb="GET", headers={**foreign, **bearer(KEY)})[0] == 200
    wait_until(lambda: idle_gateway.ask("/v1/models", verb="GET")[0] == 401)
    idle_gateway.end()
    write_keys(key_file, replace(ring, open_until=at(60)).to_text())
    idle_gateway.start("--key-file", str(key_file), listen="0.0.0.0:0")
    assert idle_gateway.ask("/v1/models", verb="GET")[0] == 401


def test_without_its_last_key_a_gateway_on_loopback_is_open_and_another_keeps_it(idle_gateway, key_file):
    for listen, status in (("127.0.0.1:0", 200), ("0.0.0.0:0", 401)):
        write_keys(key_file, key_ring(KEY))
        idle_gateway.start("--key-file", str(key_file), listen=listen)
        write_keys(key_file, key_ring())
        if status == 200:
            assert idle_gateway.admin.read_keys() == ""
        else:
            with pytest.raises(HostError, match="holds no API key"):
                idle_gateway.admin.read_keys()
        assert idle_gateway.ask("/v1/models", verb="GET")[0] == status
        idle_gateway.end()


def test_when_a_key_was_used_last_is_written_down_and_nothing_of_the_key(gateway, key_file):
    use = gateway.socket.with_name("key-use.json")
    gateway.ask("/v1/models", verb="GET", headers=bearer(WRONG))
    gateway.ask("/v1/models", verb="GET", headers=bearer(gateway.admin.credential()))
    assert gateway.ask("/v1/models", verb="GET", headers=bearer(KEY))[0] == 200
    wait_until(use.exists)
    first = json.loads(use.read_text())
    assert list(first) == [digest_of(KEY)]
    assert first[digest_of(KEY)] <= at(0)
    # Once a minute at most; what has come since is written at the end.
    write_keys(key_file, key_ring(KEY, NEXT))
    gateway.admin.read_keys()
    gateway.ask("/v1/models", verb="GET", headers=bearer(NEXT))
    time.sleep(1.5)
    assert json.loads(use.read_text()) == first
    gateway.end()
    assert sorted(json.loads(use.read_text())) == sorted([digest_of(KEY), digest_of(NEXT)])


def test_what_an_engine_asks_for_is_added_and_read_again(idle_gateway, engine, home):
    one, two = engine("one-g1"), engine("two-g1")
    (home / "secrets").mkdir()
    (home / "secrets" / "one-g1").write_text("of one\n")
    idle_gateway.start("--secrets", str(home / "secrets"))
    idle_gateway.admin.set_routes("one", [idle_gateway.route("a", one), idle_gateway.route("b", two)])
    for name in ("a", "b"):
        assert idle_gateway.ask(CHAT, {"model": name}, headers=bearer("the client's own"))[0] == 200
    assert [one.requests[0][1].get("authorization"), two.requests[0][1].get("authorization")] == ["Bearer of one", None]
    # The name comes back, with another secret.
    write_keys(home / "secrets" / "one-g1", "of another")
    assert idle_gateway.ask(CHAT, {"model": "a"})[0] == 200
    assert one.requests[1][1]["authorization"] == "Bearer of another"
    said = idle_gateway.log.read_text() + idle_gateway.state.read_text() + json.dumps(idle_gateway.status().to_json())
    assert "of one" not in said


def test_the_help_tells_of_keys(idle_gateway):
    said = subprocess.run(idle_gateway.command("127.0.0.1:0", "--help"), capture_output=True, text=True, timeout=10)
    assert said.returncode == 0
    assert "--key-file FILE" in said.stdout
    assert "SIGHUP" in said.stdout
