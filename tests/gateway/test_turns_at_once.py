"""Turns when two things happen in the same moment: what was let in is told so only after something else has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orchestrator.core.routes import LLAMA_SERVER, OPENAI, Backend, Route, RouteTable
from orchestrator.gateway.limits import Limits
from orchestrator.gateway.switchboard import Asker, Claim, StoppingError, Switchboard

NAMES = ("a", "b", "c")


def table(instance: str) -> RouteTable:
    """Three adapters on an engine that computes one request at a time."""
    at, speaks = (Backend(instance, "http://127.0.0.1:1"),), (OPENAI, LLAMA_SERVER)
    return RouteTable(Route(name, "one", at, speaks, patch={"lora": [name]}, at_once=1) for name in NAMES)


async def claimed(board: Switchboard, name: str) -> Claim:
    return await board.admit(name, Asker(asyncio.get_running_loop().time()))


async def who_waits(board: Switchboard) -> tuple[Claim, list[asyncio.Task[Claim]]]:
    """A claim of "a", and those that wait for "b" and "c"."""
    first = await claimed(board, "a")
    tasks = [asyncio.create_task(claimed(board, name)) for name in ("b", "c")]
    await asyncio.sleep(0)
    assert board.traffic.waiting == {"b": 1, "c": 1}
    return first, tasks


def end(claim: Claim) -> None:
    with claim:
        pass


async def everybody(board: Switchboard) -> None:
    """Nothing has kept its place."""
    async with asyncio.timeout(5):
        for name in NAMES:
            end(await claimed(board, name))


def instances(board: Switchboard) -> dict[str, int]:
    return {name: load.in_flight for name, load in board.traffic.backends.items() if load.in_flight}


async def switched(board: Switchboard) -> None:
    first, (second, third) = await who_waits(board)
    end(first)
    board.go_by(table("g2"))
    claim = await second
    assert instances(board) == {"g2": 1}
    end(claim)
    end(await third)
    await everybody(board)


async def paused(board: Switchboard) -> None:
    first, (second, third) = await who_waits(board)
    end(first)
    board.pause("one", 60)
    await asyncio.sleep(0.01)
    assert (board.traffic.held, instances(board), +board.traffic.waiting) == (2, {}, {})
    board.holds.end("one")
    end(await second)
    end(await third)
    await everybody(board)


async def left(board: Switchboard) -> None:
    first, (second, third) = await who_waits(board)
    end(first)
    second.cancel()
    async with asyncio.timeout(5):
        end(await third)
    with pytest.raises(asyncio.CancelledError):
        await second
    await everybody(board)


async def stopped(board: Switchboard) -> None:
    first, tasks = await who_waits(board)
    end(first)
    board.stop()
    for task in tasks:
        with pytest.raises(StoppingError):
            await task


@pytest.mark.parametrize("happens", [switched, paused, left, stopped])
def test_somebody_is_let_in_and_in_the_same_moment(happens: Callable[[Switchboard], Coroutine[Any, Any, None]]) -> None:
    board = Switchboard(table("g1"), Limits())
    asyncio.run(happens(board))
    assert (instances(board), board.traffic.waiting) == ({}, {})


async def crowd(board: Switchboard) -> list[str]:
    """Who is answered, in order, when many come at once under three names, each for a moment."""
    order: list[str] = []

    async def one(name: str) -> None:
        with await claimed(board, name):
            assert len(instances(board)) == 1
            await asyncio.sleep(0.001)
            order.append(name)

    await asyncio.gather(*(one(name) for _ in range(20) for name in NAMES))
    return order


def test_many_at_once_change_seldom() -> None:
    order = asyncio.run(crowd(Switchboard(table("g1"), Limits())))
    assert order == ["a"] * 20 + ["b"] * 20 + ["c"] * 20
