"""The client that measures, on a server whose times are known: what it says is what was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, scripted

from orchestrator.bench.client import Ask, Load, make
from orchestrator.bench.metrics import Level, Measured

# What a machine that has other work to do may add to a time, in seconds.
NOISE = 0.25


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


def asked(server: Scripted, *scripts: dict[str, Any], users: int = 0, due: float | None = None, **more: Any) -> Load:
    asks = tuple(Ask({"script": script}, due if due is None else due * n) for n, script in enumerate(scripts))
    return Load(server.url, asks, users, **more)


def measured(load: Load) -> tuple[list[Measured], float]:
    found: dict[int, Measured] = {}
    seconds = asyncio.run(make(load, found.__setitem__))
    return [found[place] for place in sorted(found)], seconds


def within(value: float, exact: float, most: float = NOISE) -> bool:
    """A little less is the clock's; more is the machine's."""
    return exact - 0.002 <= value <= exact + most


def test_every_time_is_what_the_server_did(server: Scripted) -> None:
    (one,), _ = measured(asked(server, {"first": 0.3, "gaps": [0.1, 0.2, 0.1]}))
    assert (one.input_tokens, one.output_tokens, one.error) == (7, 4, "")
    # A piece that comes late makes the gap after it shorter: it is their sums that are never less.
    came = accumulate((one.ttft, *one.itl))
    assert [within(at, exact) for at, exact in zip(came, (0.3, 0.4, 0.6, 0.7), strict=True)] == [True] * 4
    assert one.e2el == pytest.approx(one.ttft + sum(one.itl))
    assert one.tpot == pytest.approx(sum(one.itl) / 3)


def test_a_role_is_no_token(server: Scripted) -> None:
    (one,), _ = measured(asked(server, {"opens": True, "first": 0.3}))
    assert within(one.ttft, 0.3)
    assert (one.itl, one.tpot) == ((), None)


def test_a_piece_may_be_several_tokens(server: Scripted) -> None:
    (one,), _ = measured(asked(server, {"first": 0.1, "gaps": [0.3], "tokens": 7}))
    assert (one.output_tokens, len(one.itl)) == (7, 1)
    assert one.tpot == pytest.approx(one.itl[0] / 6)


def test_so_many_are_in_flight_and_no_more(server: Scripted) -> None:
    server.most = 0
    every, seconds = measured(asked(server, *({"first": 0.2},) * 9, users=3))
    assert (server.most, len(every)) == (3, 9)
    assert within(seconds, 0.6, 3 * NOISE)
    level = Level.of(every, seconds)
    assert level.request_throughput == pytest.approx(9 / seconds)


def test_an_open_loop_waits_for_nobody(server: Scripted) -> None:
    """Ten a second, each of which takes a second: a closed loop would hide how many wait."""
    server.most = 0
    every, seconds = measured(asked(server, *({"first": 1.0},) * 10, due=0.1))
    assert server.most >= 8
    assert [one.due for one in every] == pytest.approx([0.1 * n for n in range(10)])
    assert all(within(one.started, one.due) for one in every)
    assert within(seconds, 1.9)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"status": 503}, "HTTP 503"),
        ({"gaps": [0, 0], "cut": 2}, "ClientPayloadError"),
        ({"gaps": [0, 0], "tokens": None}, "its tokens are not told"),
        ({"gaps": [0, 0], "tokens": 2}, "it counts fewer tokens than pieces came"),
        ({"hangs": True}, "no end after 1 s"),
    ],
    ids=["refused", "cut", "without usage", "lies", "stalls"],
)
def test_what_is_no_answer_is_counted_as_what_it_is(server: Scripted, script: dict[str, Any], error: str) -> None:
    (bad, good), _ = measured(asked(server, script, {}, timeout_s=1.0))
    assert bad.error.startswith(error)
    assert good.error == ""


def test_in_a_process_of_its_own_it_tells_each_as_it_ends(server: Scripted, tmp_path: Path) -> None:
    load = asked(server, {"first": 0.5}, {"first": 0.0}, users=2)
    file = tmp_path / "load.json"
    file.write_text(json.dumps(asdict(load)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.bench.client", str(file)], capture_output=True, text=True, check=True
    )
    first, second, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["place"], second["place"]) == (1, 0)
    assert within(last["duration"], 0.5)


def test_its_own_work_is_small_beside_the_servers(server: Scripted) -> None:
    """One core of it takes in thousands of tokens a second, while the fastest engines give hundreds to a user."""
    every, seconds = measured(asked(server, *({"gaps": [0.0] * 255},) * 16, users=8))
    assert {one.error for one in every} == {""}
    assert sum(one.output_tokens for one in every) / seconds > 2000


def test_who_comes_too_late_hides_nothing(server: Scripted) -> None:
    """The client is kept from sending until 0.3 s after its time: the waiting is in what it tells."""

    async def busy() -> tuple[list[Measured], float]:
        found: list[Measured] = []
        load = asked(server, {"first": 0.1}, {"first": 0.1}, due=0.05)
        making = asyncio.create_task(make(load, lambda _, one: found.append(one)))
        await asyncio.sleep(0)
        time.sleep(0.35)  # as a client does that has too much to do
        return found, await making

    found, _ = asyncio.run(busy())
    late = max(found, key=lambda one: one.due)
    assert late.due == pytest.approx(0.05)
    assert late.started >= 0.3
    assert late.ttft >= 0.3 - 0.05 + 0.1


def test_the_client_alone_is_fast() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "orchestrator.bench.ceiling", "8", "64"], capture_output=True, text=True, check=True
    )
    # Some 40,000 where nothing else is at work; an engine on a CPU gives a hundred or two.
    assert json.loads(told.stdout)["output_throughput"] > 2000
