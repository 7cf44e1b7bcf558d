"""A gateway in front of engines whose names take turns."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_process import Gateway, wait_until
from upstream import Upstream

from orchestrator.core.routes import ANTHROPIC, LLAMA_SERVER, OLLAMA, OPENAI, VLLM, Route

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
BATCHES, PROCESSES, TOGETHER = (OPENAI, ANTHROPIC, LLAMA_SERVER), (OPENAI, ANTHROPIC, OLLAMA), (OPENAI, VLLM)


def patch(*scales: float) -> dict[str, object]:
    return {"lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)]}


def names(gateway: Gateway, engine: Upstream, speaks: tuple[str, ...] = BATCHES, at_once: int = 2) -> list[Route]:
    """A base under two names, and two adapters."""
    of = {"tiny": patch(0, 0), "tiny:latest": patch(0, 0), "alpha": patch(1, 0), "bravo": patch(0, 1)}
    patched = speaks != PROCESSES
    return [
        gateway.route(
            name,
            engine,
            speaks=speaks,
            upstream="tiny" if name == "tiny:latest" else None,
            patch=scales if patched else {},
            at_once=at_once,
        )
        for name, scales in of.items()
    ]


def waiting(gateway: Gateway) -> dict[str, int]:
    return dict(gateway.status().traffic.waiting)


def served(engine: Upstream) -> list[str]:
    """The names of what the engine was sent, in order."""
    return [json.loads(body.replace(b',"model"', b',"as"'))["model"] for _, _, body in engine.requests]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(40) as made:
        yield made


@pytest.fixture
def shared(gateway: Gateway, engine: Callable[..., Upstream]) -> Upstream:
    """An engine that computes one set of adapters at a time, two requests at once."""
    one = engine("one-g1")
    gateway.admin.set_routes("one", names(gateway, one))
    return one


@pytest.mark.parametrize("speaks", [BATCHES, PROCESSES])
def test_other_adapters_wait_for_what_is_in_flight(gateway, engine, stream, pool, speaks) -> None:
    one = engine("one-g1")
    gateway.admin.set_routes("one", names(gateway, one, speaks))
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    # Another name of the same adapters is the same turn.
    assert gateway.ask(CHAT, {**HI, "model": "tiny:latest"})[0] == 200
    other = pool.submit(gateway.ask, CHAT, {**HI, "model": "alpha"})
    wait_until(lambda: waiting(gateway) == {"alpha": 1})
    load = gateway.status().traffic.backends["one-g1"]
    assert (load.in_flight, len(one.requests)) == (1, 2), "who waits has no claim"
    assert gateway.status().traffic.in_flight == 2
    told = gateway.ask("/metrics", verb="GET")[2].decode()
    assert 'orch_gateway_waiting_requests{model="alpha"} 1.0' in told
    one.gate.set()
    assert other.result()[0] == 200
    assert begun.rest()[-1] == "[DONE]"
    assert waiting(gateway) == {}


def test_what_is_computed_together_never_waits(gateway, engine, stream) -> None:
    one, two = engine("one-g1"), engine("two-g1")
    gateway.admin.set_routes("one", names(gateway, one, TOGETHER, at_once=1))
    # Nor does an engine without adapters, however many it is asked.
    bare = [gateway.route(name, two, owner="two", speaks=BATCHES, at_once=1) for name in ("bare", "bare:latest")]
    gateway.admin.set_routes("two", bare)
    streams = [
        stream(**HI, model=name, wait="middle") for name in ("tiny", "alpha", "bravo", "bare", "bare:latest", "bare")
    ]
    for begun in streams:
        begun.event()
    assert waiting(gateway) == {}
    for each in (one, two):
        each.gate.set()
    assert [begun.rest()[-1] for begun in streams] == ["[DONE]"] * 6


def test_a_full_load_for_one_name_does_not_keep_another_waiting(gateway, shared, pool) -> None:
    over = threading.Event()

    def client() -> int:
        count = 0
        while not over.is_set():
            assert gateway.ask(CHAT, {**HI, "model": "tiny", "stream": True, "tokens": 4, "pace": 0.05})[0] == 200
            count += 1
        return count

    clients = [pool.submit(client) for _ in range(6)]
    time.sleep(2.5)
    waited = []
    for name in ("alpha", "bravo", "alpha"):
        began = time.monotonic()
        assert gateway.ask(CHAT, {**HI, "model": name})[0] == 200
        waited.append(time.monotonic() - began)
    over.set()
    assert sum(one.result() for one in clients) > 20
    # A turn of two seconds and an answer of 0.2: the first came when the turn had lasted for longer.
    assert waited[0] < 1.0
    assert max(waited) < 2.0 + 1.0
    assert gateway.status().traffic.totals.errors == 0


def test_never_more_at_once_than_the_engine_computes_and_first_come_first_served(gateway, shared, pool) -> None:
    asked = []
    for number in range(6):
        asked.append(pool.submit(gateway.ask, CHAT, {**HI, "model": "tiny", "wait": "head", "number": number}))
        wait_until(lambda number=number: gateway.status().traffic.in_flight == number + 1)
    assert len(shared.requests) == 2
    assert waiting(gateway) == {"tiny": 4}
    shared.gate.set()
    assert [one.result()[0] for one in asked] == [200] * 6
    numbers = [json.loads(body)["number"] for _, _, body in shared.requests]
    # Two are sent at a time, over connections of their own.
    assert [sorted(numbers[at : at + 2]) for at in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]


def test_a_client_that_leaves_has_no_turn(gateway, shared, stream, pool) -> None:
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    connection = gateway.connect()
    connection.request("POST", CHAT, json.dumps({**HI, "model": "alpha"}))
    wait_until(lambda: waiting(gateway) == {"alpha": 1})
    other = pool.submit(gateway.ask, CHAT, {**HI, "model": "bravo"})
    wait_until(lambda: waiting(gateway) == {"alpha": 1, "bravo": 1})
    connection.close()
    wait_until(lambda: waiting(gateway) == {"bravo": 1})
    shared.gate.set()
    assert other.result()[0] == 200
    assert served(shared) == ["tiny", "bravo"]


@pytest.mark.parametrize("speaks", [TOGETHER, BATCHES])
def test_a_switch_sends_who_waits_straight_on(gateway, shared, engine, stream, pool, speaks) -> None:
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    asked = [pool.submit(gateway.ask, CHAT, {**HI, "model": name}) for name in ("alpha", "bravo", "alpha", "bravo")]
    wait_until(lambda: waiting(gateway) == {"alpha": 2, "bravo": 2})
    two = engine("one-g2")
    gateway.admin.set_routes("one", names(gateway, two, speaks))
    assert [json.loads(one.result()[2])["from"] for one in asked] == ["one-g2"] * 4
    assert waiting(gateway) == {}
    # A drain need not wait for them.
    shared.gate.set()
    assert gateway.admin.drain("one-g1", 5, False) == 0
    assert begun.rest()[-1] == "[DONE]"
    assert served(shared) == ["tiny"]


def test_a_name_that_goes_while_requests_wait_for_it(gateway, shared, stream, pool) -> None:
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    asked = [pool.submit(gateway.ask, CHAT, {**HI, "model": name}) for name in ("alpha", "bravo")]
    wait_until(lambda: waiting(gateway) == {"alpha": 1, "bravo": 1})
    left = [route for route in names(gateway, shared) if route.name != "alpha"]
    gateway.admin.set_routes("one", left)
    assert asked[0].result()[0] == 404
    assert waiting(gateway) == {"bravo": 1}
    shared.gate.set()
    assert asked[1].result()[0] == 200
    assert begun.rest()[-1] == "[DONE]"


def test_adapters_that_come_while_the_engine_serves(gateway, engine, stream, pool) -> None:
    one = engine("one-g1")
    base = [route for route in names(gateway, one, PROCESSES) if route.name.startswith("tiny")]
    gateway.admin.set_routes("one", base)
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    gateway.admin.set_routes("one", names(gateway, one, PROCESSES))
    other = pool.submit(gateway.ask, CHAT, {**HI, "model": "alpha"})
    wait_until(lambda: waiting(gateway) == {"alpha": 1})
    # Without adapters there are no turns any more.
    gateway.admin.set_routes("one", base)
    assert other.result()[0] == 404
    one.gate.set()
    assert begun.rest()[-1] == "[DONE]"
    assert gateway.ask(CHAT, {**HI, "model": "tiny"})[0] == 200


def test_a_pause_holds_those_that_wait_for_their_turn_too(gateway, shared, stream, pool) -> None:
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    asked = [pool.submit(gateway.ask, CHAT, {**HI, "model": name}) for name in ("alpha", "bravo")]
    wait_until(lambda: waiting(gateway) == {"alpha": 1, "bravo": 1})
    gateway.admin.pause("one", 60)
    wait_until(lambda: gateway.status().traffic.held == 2)
    assert waiting(gateway) == {}
    shared.gate.set()
    assert begun.rest()[-1] == "[DONE]"
    assert gateway.admin.drain("one-g1", 5, False) == 0
    assert served(shared) == ["tiny"]
    gateway.admin.resume("one")
    assert [one.result()[0] for one in asked] == [200] * 2


def test_what_waits_is_answered_when_the_gateway_stops(idle_gateway, engine, pool) -> None:
    one = engine("one-g1")
    idle_gateway.start("--grace", "0.3")
    idle_gateway.admin.set_routes("one", names(idle_gateway, one))
    begun = pool.submit(idle_gateway.ask, CHAT, {**HI, "model": "tiny", "stream": True, "wait": "middle"})
    one.wait_for_requests(1)
    asked = pool.submit(idle_gateway.ask, CHAT, {**HI, "model": "alpha"})
    wait_until(lambda: waiting(idle_gateway) == {"alpha": 1})
    assert idle_gateway.end() == 0
    status, headers, body = asked.result()
    assert (status, headers["retry-after"]) == (503, "2"), body
    assert b"stream_interrupted" in begun.result()[2]
    assert len(one.requests) == 1


def test_an_engine_that_is_lost_gives_its_turn_to_others(gateway, shared, stream, pool) -> None:
    begun = stream(**HI, model="tiny", wait="middle", die="middle")
    begun.event()
    asked = [pool.submit(gateway.ask, CHAT, {**HI, "model": "alpha"}) for _ in range(2)]
    wait_until(lambda: waiting(gateway) == {"alpha": 2})
    shared.gate.set()
    assert [one.result()[0] for one in asked] == [200] * 2
    assert "stream_interrupted" in begun.rest()[-1]
    # One that never answers is tried again in its own turn, and the others are not kept from theirs.
    dying = pool.submit(gateway.ask, CHAT, {**HI, "model": "bravo", "die": "head"})
    assert [gateway.ask(CHAT, {**HI, "model": name})[0] for name in ("alpha", "tiny")] == [200] * 2
    assert dying.result()[0] == 503
    assert waiting(gateway) == {}


@pytest.mark.long
def test_a_try_again_is_not_given_up_because_its_request_has_waited(gateway, engine, stream, pool) -> None:
    one = engine("one-g1")
    gateway.admin.set_routes("one", names(gateway, one))
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    asked = pool.submit(gateway.ask, CHAT, {**HI, "model": "alpha"})
    wait_until(lambda: waiting(gateway) == {"alpha": 1})
    # Longer than tries and pauses may take together.
    time.sleep(6.5)
    one.loading = True
    one.gate.set()
    one.wait_for_requests(3)
    one.loading = False
    assert asked.result()[0] == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", CHAT])
def test_every_api_takes_turns(gateway, engine, stream, pool, path) -> None:
    one = engine("one-g1")
    gateway.admin.set_routes("one", names(gateway, one, PROCESSES))
    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    asked = pool.submit(gateway.ask, path, {**HI, "model": "alpha", "max_tokens": 1, "stream": False})
    wait_until(lambda: waiting(gateway) == {"alpha": 1})
    assert len(one.requests) == 1
    one.gate.set()
    assert asked.result()[0] == 200


def test_too_many_that_wait_are_told_to_come_again(gateway, shared, stream) -> None:
    from orchestrator.gateway.turns import MOST_WAITING

    begun = stream(**HI, model="tiny", wait="middle")
    begun.event()
    connections = []
    for _ in range(MOST_WAITING):
        connection = gateway.connect()
        connection.request("POST", CHAT, json.dumps({**HI, "model": "alpha"}))
        connections.append(connection)
    wait_until(lambda: waiting(gateway) == {"alpha": MOST_WAITING}, 30)
    status, headers, body = gateway.ask(CHAT, {**HI, "model": "alpha"})
    assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "2", "too_many_waiting")
    for connection in connections:
        connection.close()
    wait_until(lambda: waiting(gateway) == {}, 30)
    shared.gate.set()
    assert gateway.ask(CHAT, {**HI, "model": "alpha"})[0] == 200
