"""Requests that are held while what serves them is changed."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_process import wait_until

from orchestrator.errors import HostError

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}


def source(answer):
    """Which engine answered."""
    status, _, body = answer
    assert status == 200, body
    return json.loads(body)["from"]


def test_a_pause_holds_requests_until_resume_and_then_uses_the_new_route(gateway, engine):
    one, two = engine("one-g1"), engine("one-g2")
    other = engine("two-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.set_routes("two", [gateway.route("other", other, owner="two")])
    gateway.admin.pause("one", 60)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(gateway.ask, CHAT, {"model": "tiny"}) for _ in range(3)]
        wait_until(lambda: gateway.status().traffic.held == 3)
        now = gateway.status()
        assert 55 < now.paused["one"] <= 60
        assert now.traffic.backends["one-g1"].in_flight == 0
        assert source(gateway.ask(CHAT, {"model": "other"})) == "two-g1"
        one.close()
        gateway.admin.set_routes("one", [gateway.route("tiny", two)])
        gateway.admin.resume("one")
        assert [source(answer.result()) for answer in asked] == ["one-g2"] * 3
    now = gateway.status()
    assert (now.traffic.held, now.paused, now.traffic.totals.errors) == (0, {}, 0)
    assert one.requests == []


def test_a_pause_expires_by_itself(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.pause("one", 60)
    gateway.admin.pause("one", 0.2)
    assert source(gateway.ask(CHAT, {"model": "tiny"})) == "one-g1"
    assert gateway.status().paused == {}
    gateway.admin.resume("one")


def test_a_second_pause_moves_the_expiry(gateway):
    gateway.admin.pause("one", 0.1)
    gateway.admin.pause("one", 60)
    gateway.admin.pause("two", 0.2)
    wait_until(lambda: "two" not in gateway.status().paused)
    assert set(gateway.status().paused) == {"one"}


def test_who_waits_is_told_by_owner(gateway, engine):
    gateway.admin.set_routes("one", [gateway.route("tiny", engine("one-g1"))])
    gateway.admin.pause("one", 60)
    gateway.admin.pause("two", 60)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(gateway.ask, CHAT, ASKED) for _ in range(2)]
        wait_until(lambda: gateway.status().traffic.held == 2)
        first = gateway.status().traffic.holds["one"]
        assert (first.requests, first.size) == (2, 2 * len(json.dumps(ASKED)))
        wait_until(lambda: gateway.status().traffic.holds["one"].oldest_s > first.oldest_s)
        assert gateway.status().traffic.holds["two"].requests == 0
        gateway.admin.resume("one")
        assert [source(one.result()) for one in asked] == ["one-g1"] * 2
    assert set(gateway.status().traffic.holds) == {"two"}


def test_what_orch_asks_itself_is_not_held(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.pause("one", 60)
    own = {"Authorization": f"Bearer {gateway.admin.credential()}"}
    assert source(gateway.ask(CHAT, ASKED, headers=own)) == "one-g1"
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(gateway.ask, CHAT, ASKED, headers={"Authorization": "Bearer of-somebody"})
        wait_until(lambda: gateway.status().traffic.held == 1)
        gateway.admin.resume("one")
        assert source(theirs.result()) == "one-g1"


@pytest.mark.parametrize("limit", ["held_requests=3", "held_mib=1"])
def test_no_more_are_held_than_may_be(idle_gateway, engine, limit):
    """What comes beyond it is told to come again, in the words of its API; those that wait are answered."""
    gateway = idle_gateway
    gateway.start("--limit", limit)
    gateway.admin.set_routes("one", [gateway.route("tiny", engine("one-g1"))])
    gateway.admin.pause("one", 60)
    # Three of these are less than a MiB, four are more.
    large = {**ASKED, "user": "x" * 300_000}
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(gateway.ask, CHAT, large) for _ in range(3)]
        wait_until(lambda: gateway.status().traffic.held == 3)
        status, head, body = gateway.ask(CHAT, large)
        assert (status, head["retry-after"], json.loads(body)["error"]["code"]) == (503, "2", "too_many_held")
        status, head, body = gateway.ask("/api/chat", large)
        assert (status, head["retry-after"], "too many" in json.loads(body)["error"]) == (503, "2", True)
        status, head, body = gateway.ask("/v1/messages", large)
        assert (status, head["retry-after"], json.loads(body)["type"]) == (503, "2", "error")
        gateway.admin.resume("one")
        assert [source(one.result()) for one in asked] == ["one-g1"] * 3


def test_a_held_client_that_leaves_is_dropped(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.pause("one", 60)
    connection = gateway.connect()
    connection.request("POST", CHAT, b'{"model": "tiny"}')
    wait_until(lambda: gateway.status().traffic.held == 1)
    connection.close()
    wait_until(lambda: gateway.status().traffic.held == 0)
    gateway.admin.resume("one")
    assert source(gateway.ask(CHAT, {"model": "tiny"})) == "one-g1"
    assert len(one.requests) == 1


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_a_pause_without_a_sensible_end_is_refused(gateway, seconds):
    with pytest.raises(HostError):
        gateway.admin.pause("one", seconds)
    assert gateway.status().paused == {}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_gateway_that_is_started_again_holds_on(gateway, engine, number):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.pause("one", 60)
    gateway.admin.pause("two", 0.1)
    gateway.end(number)
    gateway.start()
    assert set(gateway.status().paused) == {"one"}
    assert 50 < gateway.status().paused["one"] <= 60
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, CHAT, ASKED)
        wait_until(lambda: gateway.status().traffic.held == 1)
        assert one.requests == []
        gateway.admin.resume("one")
        assert source(asked.result()) == "one-g1"
    gateway.end(number)
    gateway.start()
    assert gateway.status().paused == {}


STREAMED = {**ASKED, "stream": True}


@pytest.fixture
def early(idle_gateway, engine):
    """A gateway that begins streams before there is an answer."""
    idle_gateway.start("--limit", "held_head_s=0.2")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", engine("one-g1"))])
    return idle_gateway


def begun(gateway, path):
    """A stream that is asked for while requests are held: its connection, and its head, which is there already."""
    connection = gateway.connect()
    connection.request("POST", path, json.dumps(STREAMED), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_a_stream_that_waits_is_begun_where_the_operator_wants_that(early):
    told = early.ask(CHAT, STREAMED)[2]
    early.admin.pause("one", 60)
    connection, answer = begun(early, CHAT)
    assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream")
    assert answer.readline() == b": waiting for the model\n"
    assert early.status().traffic.held == 1
    early.admin.resume("one")
    rest = answer.read()
    connection.close()
    assert rest.replace(b": waiting for the model\n\n", b"").lstrip(b"\n") == told
    # What wants no stream is answered as ever.
    early.admin.pause("one", 0.6)
    assert source(early.ask(CHAT, ASKED)) == "one-g1"
    # An engine's own error comes as the end of the stream.
    early.admin.pause("one", 0.6)
    status, _, body = early.ask(CHAT, {**STREAMED, "whole": True, "status": 400})
    assert (status, json.loads(body.splitlines()[-2][6:])["error"]["code"]) == (200, "backend_refused")
    assert early.status().traffic.totals.errors == 0


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_what_goes_wrong_after_that_is_told_in_the_stream(early, path):
    early.admin.pause("one", 60)
    connection, answer = begun(early, path)
    assert answer.readline() == b": waiting for the model\n"
    early.admin.set_routes("one", [])
    early.admin.resume("one")
    rest = answer.read().decode()
    connection.close()
    (event,) = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: ")]
    assert "tiny" in event["error"]["message"]
    assert "[DONE]" not in rest


def test_a_client_that_leaves_meanwhile_is_gone(early):
    early.admin.pause("one", 60)
    connection, answer = begun(early, CHAT)
    assert answer.readline() == b": waiting for the model\n"
    connection.close()
    wait_until(lambda: early.status().traffic.held == 0)
    early.admin.resume("one")
    assert source(early.ask(CHAT, ASKED)) == "one-g1"
