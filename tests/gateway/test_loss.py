"""Engines that die, and clients that leave."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_process import wait_until

from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, OPENAI, VLLM

CHAT = "/v1/chat/completions"
TINY = {"model": "tiny", "messages": [{"role": "user", "content": "."}]}


def test_a_client_that_leaves_a_stream_ends_it_at_the_engine(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", wait="middle")
    client.event()
    client.close()
    one.wait_for_disconnect(1)
    wait_until(lambda: gateway.status().traffic.backends["one-g1"].in_flight == 0)
    assert gateway.status().traffic.totals.errors == 0


def test_clients_that_leave_under_a_write_are_no_errors(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    for _ in range(30):
        client = stream(model="tiny", tokens=100_000)
        client.event()
        client.close()
    wait_until(lambda: gateway.status().traffic.backends["one-g1"].in_flight == 0)
    assert gateway.status().traffic.totals.errors == 0
    assert "ERROR" not in gateway.log.read_text()


@pytest.mark.parametrize("place", ["head", "body"])
def test_a_client_that_leaves_before_the_answer_ends_the_request_at_the_engine(gateway, engine, place):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    connection = gateway.connect()
    connection.request("POST", CHAT, json.dumps({"model": "tiny", "wait": place}))
    one.wait_for_requests(1)
    connection.close()
    one.wait_for_disconnect(1)
    wait_until(lambda: gateway.status().traffic.backends["one-g1"].in_flight == 0)
    assert len(one.requests) == 1


def test_a_dead_engine_is_tried_again_for_some_seconds_then_503(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    one.close()
    began = time.monotonic()
    status, headers, answer = gateway.ask(CHAT, {"model": "tiny"})
    took = time.monotonic() - began
    assert (status, json.loads(answer)["error"]["code"]) == (503, "backend_unavailable")
    assert int(headers["retry-after"]) > 0
    assert 2 < took < 5
    now = gateway.status()
    assert (now.traffic.totals.requests, now.traffic.totals.errors) == (1, 1)
    assert now.traffic.backends["one-g1"].counts.requests == now.traffic.backends["one-g1"].counts.errors > 2


def test_an_engine_that_comes_back_in_time_answers(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    one.close()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, CHAT, {"model": "tiny"})
        wait_until(lambda: gateway.status().traffic.backends["one-g1"].counts.errors > 1)
        engine("again", one.port)
        assert json.loads(asked.result()[2])["from"] == "again"
    assert gateway.status().traffic.totals.errors == 0


def test_an_engine_that_still_loads_is_waited_for(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    one.loading = True
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, CHAT, {"model": "tiny"})
        one.wait_for_requests(3)
        one.loading = False
        assert asked.result()[0] == 200
    assert gateway.status().traffic.totals.errors == 0


def test_an_engine_that_loads_for_long_answers_itself(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    one.loading = True
    status, _, answer = gateway.ask(CHAT, {"model": "tiny"})
    assert (status, json.loads(answer)["from"]) == (503, "one-g1")
    assert gateway.status().traffic.totals.errors == 1


def test_a_request_whose_engine_is_gone_follows_the_route(gateway, engine):
    one, two = engine("one-g1"), engine("one-g2")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    one.close()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, CHAT, {"model": "tiny"})
        wait_until(lambda: gateway.status().traffic.backends["one-g1"].counts.errors > 1)
        gateway.admin.set_routes("one", [gateway.route("tiny", two)])
        assert json.loads(asked.result()[2])["from"] == "one-g2"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["head", "body"])
def test_an_engine_lost_before_the_first_byte_is_tried_again_but_not_for_ever(gateway, engine, place, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    status, _, answer = gateway.ask(CHAT, {"model": "tiny", "stream": stream, "die": place})
    assert (status, json.loads(answer)["error"]["code"]) == (503, "backend_unavailable")
    # A request that kills its engine must not be fed to every engine that comes up.
    assert len(one.requests) == 3
    assert gateway.status().traffic.totals.errors == 1


@pytest.mark.parametrize(("server", "connections"), [(VLLM, 1), (OLLAMA, 1), (LLAMA_SERVER, 3), (OPENAI, 3)])
def test_streams_share_a_connection_where_the_engine_keeps_it(gateway, engine, stream, server, connections):
    one = engine("one-g1")
    one.keeps = True
    gateway.admin.set_routes("one", [gateway.route("tiny", one, speaks=(OPENAI, server))])
    for _ in range(3):
        assert len(stream(**TINY).rest()) == 4
        wait_until(lambda: gateway.status().traffic.backends["one-g1"].in_flight == 0)
    assert (len(one.requests), one.connections) == (3, connections)


def test_a_stream_that_meets_a_closing_connection_is_asked_for_again(gateway, engine, stream):
    one = engine("one-g1")
    one.keeps = one.one_each = True
    gateway.admin.set_routes("one", [gateway.route("tiny", one, speaks=(OPENAI, VLLM))])
    for _ in range(3):
        assert len(stream(**TINY).rest()) == 4
        wait_until(lambda: gateway.status().traffic.backends["one-g1"].in_flight == 0)
    # The second stream met one that was closing, and took another; that was not kept for the third.
    assert (len(one.requests), one.connections) == (3, 3)
    assert gateway.status().traffic.totals.errors == 0


def test_an_engine_lost_in_a_stream_ends_it_with_an_error_event(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", die="middle")
    assert json.loads(client.event())["index"] == 0
    (last,) = client.rest()
    assert json.loads(last)["error"]["code"] == "stream_interrupted"
    assert len(one.requests) == 1
    now = gateway.status()
    assert (now.traffic.totals.requests, now.traffic.totals.errors) == (1, 1)
    assert now.traffic.backends["one-g1"].in_flight == now.traffic.backends["one-g1"].open_streams == 0


def test_an_engine_lost_inside_an_event_still_ends_with_one_of_its_own(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    status, _, answer = gateway.ask(CHAT, {"model": "tiny", "stream": True, "die": "inside"})
    assert status == 200
    first, half, last, end = answer.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["index"] == 0
    assert half == b'data: {"from": '
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"
    assert end == b""


def test_an_engine_lost_in_a_whole_answer_leaves_it_visibly_broken(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        gateway.ask(CHAT, {"model": "tiny", "tokens": 1000, "die": "middle"})
    assert len(one.requests) == 1
    assert gateway.status().traffic.totals.errors == 1


def test_a_client_that_does_not_read_does_not_hold_a_drain(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", tokens=400_000)
    client.event()
    assert gateway.admin.drain("one-g1", 0.3, True) == 1
    assert gateway.status().traffic.backends["one-g1"].in_flight == 0
