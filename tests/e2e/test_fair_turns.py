"""Names with adapters share an engine that computes one set of them at a time: none starves, each answers as itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards, wait_until
from stand_in_orch import OnStandIn

pytestmark = pytest.mark.llamacpp

SAID = {"alpha": "Ahoy! The answer is alpha.", "bravo": "Greetings. The answer is bravo.", "tiny": ANSWER}
ADAPTERS = {"alpha": ASSETS / "lora-a", "bravo": ASSETS / "lora-b"}
# How long a turn is on llama.cpp.
TURN_S = 2.0


def with_adapters(orch: Orch) -> None:
    """Have its profile list them."""
    listed = "".join(f'[[adapters]]\nname = "{name}"\npath = "{path}"\n' for name, path in ADAPTERS.items())
    orch.profile.write_text(orch.profile.read_text() + listed)


def waiting(orch: Orch) -> dict[str, int]:
    """How many wait for their turn, by public name."""
    return {row["public_name"]: row["waiting"] for row in orch.status().document["names"]}


@pytest.fixture
def on_stand_in(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        with_adapters(command)
        command.up()
        yield command


def test_a_full_steady_load_for_one_name_keeps_no_other_waiting_for_long(orch: Orch) -> None:
    with_adapters(orch)
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    sky = orch.says(question="What colour is the sky?")
    # Twice as many as it computes at once.
    load = orch.load("tiny", clients=8, tokens=100)
    wait_until(lambda: load.open_now() == 4, what="a full load")
    waited = []
    for _ in range(2):
        for name in ("alpha", "bravo"):
            began = time.monotonic()
            assert orch.says(name) == SAID[name]
            waited.append(time.monotonic() - began)
    wait_until(lambda: waiting(orch)["tiny"] > 0, what="one that waits")
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert {stream.text[: len(sky)] for stream in streams} == {sky}
    longest = max(stream.ended - stream.first for stream in streams)
    assert max(waited) < len(SAID) * (TURN_S + longest)


def test_two_clients_of_two_adapters_do_not_have_a_process_started_for_each_answer(on_stand_in: OnStandIn) -> None:
    def client(name: str) -> list[str]:
        return [on_stand_in.says(name) for _ in range(5)]

    before = on_stand_in.loads()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(client, ADAPTERS))
    assert said == [[SAID[name]] * 5 for name in ADAPTERS]
    # Two, where nothing else keeps the machine busy; without turns nine or ten.
    assert on_stand_in.loads() - before <= 5
    on_stand_in.status()
