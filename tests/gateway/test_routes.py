"""Routes and tables as values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from orchestrator.core.gateway_status import (
    BackendLoad,
    Counts,
    GatewayState,
    GatewayStatus,
    HeldLoad,
    Listener,
    Phase,
    Traffic,
    gateway_label,
    generation_of,
    is_gateway,
    listeners_of,
    successor_of,
)
from orchestrator.core.routes import PROTOCOL, Backend, Route, RouteTable
from orchestrator.errors import PlanRefused


def route(name: str, owner: str = "one", **more: object) -> Route:
    return Route(**{"name": name, "owner": owner, "backends": (Backend(f"{owner}-g1", "http://127.0.0.1:1"),), **more})


def test_routes_are_equal_by_value():
    patch = {"b": [1], "a": 2}
    one, same = route("x", patch=patch), route("x", patch={"a": 2, "b": [1]})
    assert one == same
    assert hash(one) == hash(same)
    assert {one, same, route("x"), route("x", patch={"a": 2, "b": [2]})} == {
        one,
        route("x"),
        route("x", patch=patch | {"b": [2]}),
    }
    patch["b"].append(2)
    assert one == same


def test_json_both_ways():
    table = RouteTable([route("b"), route("a/ä", patch={"lora": [{"id": 0}]}, upstream="b")])
    assert table.names == ("a/ä", "b")
    assert RouteTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_patch_must_be_json():
    for patch in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(ValueError, match=r"patch|JSON"):
            route("x", patch=patch)


def test_where_a_patch_reaches_the_engine():
    chat, messages = "/v1/chat/completions", "/v1/messages"
    some = route("x", patch={"lora": []}, patch_paths=(chat,))
    assert (some.takes_patch(chat), some.takes_patch(messages)) == (True, False)
    for always in (route("x"), route("x", patch_paths=(chat,)), route("x", patch={"lora": []})):
        assert always.takes_patch(messages)
    read = Route.from_json(json.loads(json.dumps(some.to_json())))
    assert (read, read.patch_paths) == (some, (chat,))
    # What an earlier version has written does not say it.
    said = some.to_json()
    del said["patch_paths"]
    assert Route.from_json(said).takes_patch(messages)
    for wrong in ("x", [1], {}):
        with pytest.raises(ValueError, match="patch_paths: a list of strings"):
            Route.from_json({**some.to_json(), "patch_paths": wrong})


def test_replacing_the_routes_of_an_owner():
    table = RouteTable().replaced("one", [route("a"), route("b")]).replaced("two", [route("c", "two")])
    moved = table.replaced("one", [route("b", upstream="x"), route("d")])
    assert table.names == ("a", "b", "c")
    assert moved.names == ("b", "c", "d")
    assert moved.owned_by("one") == (route("b", upstream="x"), route("d"))
    assert moved.find("c") is table.find("c")
    assert moved.replaced("one", []).names == ("c",)
    assert table.find("d") is None


def test_what_a_table_refuses():
    table = RouteTable([route("a")])
    with pytest.raises(PlanRefused, match="'a' is already served by 'one'"):
        table.replaced("two", [route("a", "two")])
    with pytest.raises(ValueError, match="occurs twice"):
        table.replaced("one", [route("x"), route("x")])
    with pytest.raises(ValueError, match="belongs to 'two'"):
        table.replaced("one", [route("x", "two")])


STATUS = GatewayStatus(1, "1", (Listener("127.0.0.1:1"),), "2026-01-01T00:00:00+00:00", RouteTable(), keys=True)


def test_a_status_both_ways():
    load = BackendLoad(2, 1, {"a": Counts(3, 1, 2), "b": Counts(1, 0, 0)}, {"a": 2})
    status = replace(
        STATUS,
        routes=RouteTable([route("a")]),
        traffic=Traffic({"one-g1": load}, Counts(4, 1, 2), {"one": HeldLoad(1, 70, 0.5)}, turned_away={"unread": 2}),
        paused={"one": 1.5},
        origins=("https://a.example",),
        limits=("idle_s=60",),
        phase=Phase.LEAVING,
    )
    assert GatewayStatus.from_json(json.loads(json.dumps(status.to_json()))) == status
    assert load.counts == Counts(4, 1, 2)
    assert status.traffic.in_flight == 3


def test_what_other_protocols_say():
    said = json.loads(json.dumps(STATUS.to_json()))
    # Protocol 1 said neither, and one address only.
    for key in ("protocol", "phase", "listeners", "keys", "origins", "limits", "turned_away", "holds"):
        del said[key]
    first = GatewayStatus.from_json({**said, "listen": "127.0.0.1:7", "held": 3})
    assert first.traffic.held == 3
    assert (first.protocol, first.phase, first.listen) == (1, Phase.SERVING, "127.0.0.1:7")
    assert (first.keys, first.origins) == (False, ())
    later = {
        **STATUS.to_json(),
        "protocol": PROTOCOL + 1,
        "listeners": [{"address": "[::1]:7", "speaks": "x"}],
        "new": 1,
    }
    assert GatewayStatus.from_json(later).listen == "[::1]:7"
    for wrong, match in (
        ({"origins": "x"}, "origins: a list"),
        ({"keys": 1}, "keys: true or false"),
        ({"listeners": []}, "address: a non-empty string"),
        ({"phase": "?"}, "Phase"),
        ({"protocol": None}, "protocol: a whole number"),
    ):
        with pytest.raises(ValueError, match=match):
            GatewayStatus.from_json({**STATUS.to_json(), **wrong})


def test_routes_of_other_protocols():
    old = {"name": "a", "owner": "one", "backend": "one-g1", "url": "http://127.0.0.1:1", "upstream": None, "patch": {}}
    assert Route.from_json(old) == route("a")
    place = Backend("one-g1", "http://127.0.0.1:1", "local")
    new = route("a", backends=(place,), speaks=("openai", "anthropic"))
    assert new != route("a")
    assert new.known_to(1) == route("a")
    assert new.known_to(PROTOCOL) == new
    later = {**new.to_json(), "weight": 3, "backends": [{**new.to_json()["backends"][0], "weight": 1}]}
    assert Route.from_json(later) == new
    # Left out, it would let an adapter be lost.
    patched = route("a", patch={"lora": []}, patch_paths=("/v1/completions",))
    assert patched.known_to(1) == patched
    for wrong, match in (({"backends": []}, "backends: none"), ({"backends": [{}]}, "url: a non-empty string")):
        with pytest.raises(ValueError, match=match):
            Route.from_json({**new.to_json(), **wrong})
    with pytest.raises(ValueError, match="http://HOST:PORT is needed"):
        Route.from_json({**old, "url": "https://x/y"})


def test_what_a_gateway_keeps():
    table = RouteTable([route("a")])
    state = GatewayState(table, "/x/gateway.sock")
    assert GatewayState.from_json(json.loads(json.dumps(state.to_json()))) == state
    # Protocol 1 kept the routes alone.
    assert GatewayState.from_json(table.to_json()) == GatewayState(table)
    with pytest.raises(ValueError, match="predecessor: a path"):
        GatewayState.from_json({**state.to_json(), "predecessor": 1})


def test_traffic_of_two_gateways():
    one = Traffic(
        {"g1": BackendLoad(1, 1, {"a": Counts(2, 1, 1)}, {"a": 1})}, Counts(2, 1, 1), {"one": HeldLoad(1, 70, 2.5)}
    )
    two = Traffic({"g1": BackendLoad(2, 0, {"b": Counts(1)}, {"a": 1, "b": 1}), "g2": BackendLoad(1)}, Counts(3))
    both = one + two
    assert both.backends["g1"] == BackendLoad(3, 1, {"a": Counts(2, 1, 1), "b": Counts(1)}, {"a": 2, "b": 1})
    assert (both.totals, both.held, both.in_flight) == (Counts(5, 1, 1), 1, 5)
    over = both.over()
    assert (over.in_flight, over.totals, over.backends["g1"].counts) == (0, Counts(5, 1, 1), Counts(3, 1, 1))


def test_names_and_labels_of_gateways():
    names = ["gateway", "gateway-g2", "gateway-g10"]
    assert all(map(is_gateway, names))
    assert not any(map(is_gateway, ("gateway-llamacpp-g1", "gateway-g", "mygateway")))
    assert max(names, key=generation_of) == "gateway-g10"
    assert [successor_of(name) for name in names] == ["gateway-g2", "gateway-g3", "gateway-g11"]
    listeners = (Listener("127.0.0.1:8484"), Listener("[::1]:11434"))
    assert listeners_of(gateway_label(listeners)) == listeners
    # The first version's label was the address.
    assert listeners_of("127.0.0.1:8484") == listeners[:1]
    assert [listeners_of(odd) for odd in ("", "{", '{"listeners": 1}')] == [()] * 3
