"""What plan and run rely on of the gateway's admin door; the fake one and a real process."""

from __future__ import annotations

import threading

import pytest
from benches import GatewayBench, wait_until

from orchestrator.core.gateway_status import Phase
from orchestrator.core.keys import ApiKey, KeyRing, digest_of
from orchestrator.core.launch import InstanceState
from orchestrator.core.progress import silent
from orchestrator.core.routes import Backend, Route
from orchestrator.errors import HostError, Interrupted, OrchError, PlanRefused


def route(name: str, owner: str = "tiny", backend: str = "tiny-llamacpp-g1", **more: object) -> Route:
    return Route(name, owner, (Backend(backend, "http://127.0.0.1:9", "local"),), **more)  # type: ignore[arg-type]


def test_it_says_where_it_listens(gateway: GatewayBench) -> None:
    status = gateway.gateway.status()
    assert status is not None
    assert (status.listen, tuple(status.routes), status.traffic.held) == (gateway.listen, (), 0)
    assert status.pid == gateway.target.observe()[0].pid


def test_all_routes_of_an_owner_are_replaced_at_once(gateway: GatewayBench) -> None:
    admin = gateway.gateway
    admin.set_routes("tiny", (route("a", patch={"lora": []}), route("b", upstream="tiny")))
    admin.set_routes("other", (route("x", "other"),))
    later = (route("b", backend="tiny-vllm-g2"), route("c", backend="tiny-vllm-g2"))
    admin.set_routes("tiny", later)
    assert gateway.table == (*later, route("x", "other"))


def test_what_was_set_is_what_is_seen(gateway: GatewayBench) -> None:
    given = (route("a", patch={"lora": [{"id": 0, "scale": 1.0}]}), route("b", upstream="tiny"))
    gateway.gateway.set_routes("tiny", given)
    assert gateway.table == given


def test_a_foreign_name_is_refused_and_nothing_changes(gateway: GatewayBench) -> None:
    gateway.gateway.set_routes("other", (route("taken", "other"),))
    gateway.gateway.set_routes("tiny", (route("mine"),))
    before = gateway.table
    with pytest.raises(PlanRefused, match="taken"):
        gateway.gateway.set_routes("tiny", (route("new"), route("taken")))
    assert gateway.table == before


def test_removing_is_idempotent_and_leaves_others(gateway: GatewayBench) -> None:
    gateway.gateway.set_routes("other", (route("x", "other"),))
    gateway.gateway.set_routes("tiny", (route("a"),))
    for _ in range(2):
        gateway.gateway.remove_routes("tiny")
        assert gateway.table == (route("x", "other"),)


def test_nothing_is_in_flight_on_an_unknown_backend(gateway: GatewayBench) -> None:
    assert gateway.gateway.drain("nobody", 5.0, True, silent) == 0


def test_a_silent_one_takes_nothing_and_its_table_comes_back_with_it(gateway: GatewayBench) -> None:
    admin = gateway.gateway
    admin.set_routes("tiny", (route("a"),))
    gateway.target.stop("gateway", silent)
    assert admin.status() is None
    with pytest.raises(HostError):
        admin.set_routes("tiny", ())
    with pytest.raises(HostError):
        admin.remove_routes("tiny")
    with pytest.raises(HostError):
        admin.drain("tiny-llamacpp-g1", 1.0, True, silent)
    gateway.start()
    assert gateway.table == (route("a"),)


def test_its_table_goes_with_its_directory(gateway: GatewayBench) -> None:
    gateway.gateway.set_routes("tiny", (route("a"),))
    gateway.target.stop("gateway", silent)
    gateway.target.remove("gateway")
    gateway.start()
    assert gateway.table == ()


KEY = "the key"
RING = KeyRing((ApiKey("one", digest_of(KEY), "2026-01-31T12:00:00Z"),))


def said(gateway: GatewayBench, key: str) -> int:
    reply = gateway.http.post(f"http://{gateway.listen}/v1/chat/completions", {"model": "nobody"}, 5.0, key=key)
    return reply.status if reply is not None else 0


def test_keys_are_in_force_once_they_are_read(gateway: GatewayBench) -> None:
    gateway.keys.write(RING)
    assert said(gateway, "") == 404
    assert gateway.gateway.read_keys() == RING.mark
    status = gateway.gateway.status()
    assert status is not None
    assert (status.keys, status.keys_mark) == (True, RING.mark)
    assert [said(gateway, key) for key in ("", "another", KEY)] == [401, 401, 404]
    gateway.keys.write(RING.removed("one"))
    assert gateway.gateway.read_keys() == ""
    assert said(gateway, "") == 404


def test_a_gateway_that_starts_has_the_keys(gateway: GatewayBench) -> None:
    gateway.keys.write(RING)
    gateway.target.stop("gateway", silent)
    gateway.start()
    assert [said(gateway, key) for key in ("", KEY)] == [401, 404]


def test_a_credential_opens_the_door_that_keys_close(gateway: GatewayBench) -> None:
    gateway.keys.write(RING)
    gateway.gateway.read_keys()
    assert said(gateway, gateway.gateway.credential()) == 404


def test_a_name_without_a_route_is_not_served(gateway: GatewayBench) -> None:
    gateway.gateway.set_routes("tiny", (route("a"),))
    url = f"http://{gateway.listen}/v1/chat/completions"
    reply = gateway.http.post(url, {"model": "nobody", "messages": [], "max_tokens": 1}, 5.0)
    assert reply is not None
    assert reply.status == 404
    assert "nobody" in reply.text


def test_where_nobody_listens_nothing_answers(gateway: GatewayBench) -> None:
    gateway.target.stop("gateway", silent)
    url = f"http://{gateway.listen}/v1/chat/completions"
    assert gateway.http.post(url, {"model": "a"}, 5.0) is None
    assert gateway.http.get(url, 5.0) is None


def test_waiting_for_an_answer_can_be_ended(gateway: GatewayBench) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    url = f"http://{gateway.listen}/v1/chat/completions"
    with pytest.raises(Interrupted):
        gateway.http.post(url, {"model": "a", "messages": []}, 5.0, stop)
    # Given up means that nobody waits for it; here the client must not be closed under it.
    for thread in threading.enumerate():
        if thread.name == "asking":
            thread.join(10.0)


def test_a_second_gateway_waits_until_it_is_given_what_the_first_has(gateway: GatewayBench) -> None:
    admin = gateway.gateway
    admin.set_routes("tiny", (route("a"), route("b", upstream="tiny")))
    before = gateway.table
    assert admin.serving() == "gateway"
    gateway.start("gateway-g2", take_over=True)
    waiting = admin.status_of("gateway-g2")
    assert waiting is not None
    assert (waiting.phase, tuple(waiting.routes), admin.serving()) == (Phase.WAITING, (), "gateway")
    gateway.target.release("gateway")
    admin.hand_over("gateway", "gateway-g2")
    status = admin.status()
    assert status is not None
    assert (admin.serving(), status.phase, status.listen) == ("gateway-g2", Phase.SERVING, gateway.listen)
    assert gateway.table == before
    # What comes now is told to the one that serves.
    admin.set_routes("other", (route("x", "other"),))
    assert gateway.table == (*before, route("x", "other"))
    wait_until(lambda: {one.name: one.state for one in gateway.target.observe()}["gateway"] is InstanceState.STOPPED)
    assert admin.status_of("gateway") is None
    assert admin.drain("nobody", 1.0, True, silent) == 0


def test_what_nobody_takes_over_stays(gateway: GatewayBench) -> None:
    admin = gateway.gateway
    admin.set_routes("tiny", (route("a"),))
    with pytest.raises(HostError, match="did not take over"):
        admin.hand_over("gateway", "gateway-g2")
    assert (admin.serving(), [one.name for one in gateway.table]) == ("gateway", ["a"])
    gateway.start("gateway-g2", take_over=True)
    with pytest.raises(OrchError):
        admin.hand_over("gateway-g2", "gateway-g2")
    assert admin.serving() == "gateway"
