"""Routes and tables as values."""

from __future__ import annotations

import json

import pytest

from orchestrator.core.routes import Counts, GatewayStatus, Route, RouteTable
from orchestrator.errors import PlanRefused


def route(name: str, owner: str = "one", **more: object) -> Route:
    return Route(name=name, owner=owner, backend=f"{owner}-g1", url="http://127.0.0.1:1", **more)


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
    with pytest.raises(ValueError, match="stands twice"):
        table.replaced("one", [route("x"), route("x")])
    with pytest.raises(ValueError, match="belongs to 'two'"):
        table.replaced("one", [route("x", "two")])


def test_whether_keys_are_demanded_is_said_and_may_be_missing():
    status = GatewayStatus(1, "1", "127.0.0.1:1", "2026-01-01T00:00:00+00:00", RouteTable(), {}, Counts(), {}, 0, True)
    said = status.to_json()
    assert GatewayStatus.from_json(said) == status
    # A gateway of an earlier version does not say it.
    del said["keys"]
    assert GatewayStatus.from_json(said).keys is False
    with pytest.raises(ValueError, match="keys: true or false"):
        GatewayStatus.from_json({**said, "keys": 1})
