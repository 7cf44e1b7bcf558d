"""Switching and draining under requests."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import Interrupted, PlanRefused

CHAT = "/v1/chat/completions"


def source(answer):
    """Which engine answered."""
    status, _, body = answer
    assert status == 200, body
    return json.loads(body)["from"]


def test_a_switch_moves_new_requests_and_leaves_the_old_where_they_began(gateway, engine, stream):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    old = stream(model="tiny", wait="middle")
    assert json.loads(old.event())["from"] == "one-g1"
    gateway.admin.set_routes("one", [gateway.route("tiny", two)])
    assert source(gateway.ask(CHAT, {"model": "tiny"})) == "one-g2"
    loads = gateway.status().traffic.backends
    assert (loads["one-g1"].in_flight, loads["one-g2"].in_flight) == (1, 0)
    one.gate.set()
    assert [json.loads(old.event())["from"] for _ in range(2)] == ["one-g1"] * 2
    assert old.rest() == ["[DONE]"]


def test_nothing_is_lost_when_the_old_engine_goes_after_its_drain(gateway, engine):
    """Switch to and fro under closed-loop clients, ending the drained engine each time."""
    engines = [engine("g0")]
    gateway.admin.set_routes("one", [gateway.route("tiny", engines[0])])
    over = threading.Event()

    def client(number: int) -> int:
        done = 0
        while not over.is_set():
            body = {"model": "tiny", "stream": number % 2 == 0, "pace": 0.003, "tokens": 5}
            status, _, answer = gateway.ask(CHAT, body)
            assert status == 200, answer
            assert number % 2 or answer.endswith(b"data: [DONE]\n\n")
            done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            for generation in range(1, 6):
                engines.append(engine(f"g{generation}"))
                gateway.admin.set_routes("one", [gateway.route("tiny", engines[-1])])
                assert gateway.admin.drain(f"g{generation - 1}", 5, False) == 0
                served = len(engines[-2].requests)
                engines[-2].close()
                engines[-1].wait_for_requests(10)
                assert len(engines[-2].requests) == served
        finally:
            over.set()
        done = sum(result.result() for result in clients)
    now = gateway.status()
    assert (now.traffic.totals.requests, now.traffic.totals.errors) == (done, 0)
    assert sum(load.counts.requests for load in now.traffic.backends.values()) == done


def test_all_names_of_an_owner_switch_together(gateway, engine):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one), gateway.route("tiny-a", one)])
    gateway.admin.set_routes("one", [gateway.route("tiny", two), gateway.route("tiny-b", two)])
    assert gateway.status().routes.names == ("tiny", "tiny-b")
    assert gateway.ask(CHAT, {"model": "tiny-a"})[0] == 404
    assert {source(gateway.ask(CHAT, {"model": name})) for name in ("tiny", "tiny-b")} == {"one-g2"}


def test_a_name_of_another_owner_is_refused_and_nothing_changes(gateway, engine):
    one, two = engine("one-g1"), engine("two-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.admin.set_routes("two", [gateway.route("other", two, owner="two")])
    before = gateway.status().routes
    with pytest.raises(PlanRefused, match="'tiny' is already served by 'one'"):
        gateway.admin.set_routes("two", [gateway.route(name, two, owner="two") for name in ("new", "tiny")])
    assert gateway.status().routes == before
    gateway.admin.remove_routes("one")
    gateway.admin.set_routes("two", [gateway.route(name, two, owner="two") for name in ("new", "tiny")])
    assert gateway.status().routes.names == ("new", "tiny")


def test_drain_waits_for_what_is_in_flight_and_reports(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    assert gateway.admin.drain("one-g1", 5, True) == 0
    assert gateway.admin.drain("never-seen", 5, True) == 0
    open_one = stream(model="tiny", wait="middle")
    open_one.event()
    assert gateway.admin.drain("one-g1", 0.1, False) == 1
    seen = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append((done, total))
        one.gate.set()

    assert gateway.admin.drain("one-g1", 10, False, progress) == 0
    assert seen[0] == (0, 1)
    assert open_one.rest()[-1] == "[DONE]"


def test_an_interrupt_ends_the_wait_and_cuts_nothing(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    open_one = stream(model="tiny", wait="middle")
    open_one.event()

    def interrupt(*_: object) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        gateway.admin.drain("one-g1", 60, True, interrupt)
    one.gate.set()
    assert open_one.rest()[-1] == "[DONE]"


def test_a_drain_that_cuts_ends_streams_with_an_error_event(gateway, engine, stream):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    open_one = stream(model="tiny", wait="middle")
    open_one.event()
    gateway.admin.set_routes("one", [gateway.route("tiny", two)])
    assert gateway.admin.drain("one-g1", 0.1, True) == 1
    (last,) = open_one.rest()
    assert json.loads(last)["error"]["code"] == "stream_interrupted"
    assert gateway.status().traffic.backends["one-g1"].in_flight == 0
    one.wait_for_disconnect(1)


def test_a_drain_that_cuts_sends_unanswered_requests_to_the_new_engine(gateway, engine):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(gateway.ask, CHAT, {"model": "tiny", "wait": place}) for place in ("head", "body")]
        one.wait_for_requests(2)
        two.gate.set()
        gateway.admin.set_routes("one", [gateway.route("tiny", two)])
        assert gateway.admin.drain("one-g1", 0, True) == 2
        assert [source(one.result()) for one in asked] == ["one-g2"] * 2
