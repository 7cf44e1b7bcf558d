"""A gateway is replaced by one of another version, under load, with whatever happens meanwhile."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, wait_until
from other_program import BEFORE_DIGESTS, BEFORE_HANDOVER, another, of_commit, with_protocol

from orchestrator.core.routes import PROTOCOL

pytestmark = pytest.mark.llamacpp

ALPHA = ("alpha", str(ASSETS / "lora-a"))
FIRST, SECOND = "gateway", "gateway-g2"
# How long the replacement of an idle gateway takes at most; kills are spread over it.
REPLACED_S = 1.5
KILLS = 20
HELLO = {"messages": [{"role": "user", "content": "Who are you?"}]}


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of this program with the next protocol."""
    return with_protocol(tmp_path_factory.mktemp("later"), PROTOCOL + 1, "99")


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of this program, but of another version."""
    return with_protocol(tmp_path_factory.mktemp("newer"), PROTOCOL, "98")


def gateways(orch: Orch) -> list[str]:
    """Those that there are, running or not."""
    gateway = orch.status(code=None).document["gateway"]
    left = [one["instance"] for one in gateway["leaving"]] if gateway is not None else []
    place = orch.home / ("processes" if orch.target == "local" else "containers")
    return sorted({*left, *(path.name for path in place.glob("gateway*"))})


def connection(orch: Orch) -> httpx.Client:
    """A client that asks on one connection, however long it was idle."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    return httpx.Client(base_url=f"http://{orch.listen}", timeout=60, limits=limits)


class KeepAlive:
    """Clients that keep one connection each and ask again and again on it."""

    def __init__(self, orch: Orch, count: int) -> None:
        self._clients = [connection(orch) for _ in range(count)]
        self.answers = 0

    def ask(self) -> None:
        for client in self._clients:
            assert client.get("/v1/models").status_code == 200
            reply = client.post("/v1/chat/completions", json={"model": "tiny", "max_tokens": 1, **HELLO})
            assert reply.status_code == 200, reply.text
            self.answers += 1

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def kept(either: Orch) -> Iterator[Callable[[int], KeepAlive]]:
    """Connections that are closed at the end."""
    made: list[KeepAlive] = []

    def keep(count: int) -> KeepAlive:
        made.append(KeepAlive(either, count))
        return made[-1]

    yield keep
    for one in made:
        one.close()


@pytest.mark.rotated
def test_another_version_takes_over_under_load(either: Orch, newer: Path, kept: Callable[[int], KeepAlive]) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    before = either.gateway_status()
    load, idle = either.load("tiny", clients=3, tokens=60), kept(4)
    idle.ask()
    wait_until(lambda: load.open_now() >= 2, what="open streams")
    other = another(either, newer)
    assert any("orch up --gateway" in line for line in other.status().document["upgrades"])
    assert other.actions("up") == []
    replaced = other.run("up", "--gateway", "--json")
    assert "ReplaceGateway" in replaced.steps("started")
    wait_until(lambda: len(load.streams) > 12, what="streams after it", seconds=120)
    idle.ask()
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    idle.ask()
    wait_until(lambda: gateways(other) == [SECOND] or not other.run("up"), 150, what="the old one's end")
    other.run("up")
    assert gateways(other) == [SECOND]
    after = other.gateway_status()
    assert (after["version"], after["phase"], before["version"] != "98") == ("98", "serving", True)
    # What the old one has counted counts on.
    assert after["totals"]["requests"] >= before["totals"]["requests"] + len(streams) + idle.answers
    assert after["totals"]["errors"] == 0
    other.status()
    assert other.says() == ANSWER


@pytest.mark.rotated
def test_a_later_protocol_is_taken_by_a_plan_that_needs_it(either: Orch, later: Path) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    load = either.load("tiny", clients=2, tokens=200)
    wait_until(lambda: load.open_now() == 2, what="open streams")
    other = another(either, later)
    other.status()
    assert other.actions("up") == []
    steps = other.run("lora", "add", *ALPHA, "--json").steps("started")
    assert steps.index("ReplaceGateway") < steps.index("SetRoute")
    wait_until(lambda: sum(stream.ended is not None for stream in load.streams) > 4, 120, what="streams after it")
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    # Not under load for another name, which llama.cpp would go on with.
    assert other.says("alpha") != ""
    assert other.gateway_status()["protocol"] == PROTOCOL + 1
    # This program is told of nothing that it could not take.
    either.status()
    either.run("lora", "rm", "alpha")
    assert either.says() == ANSWER


def test_a_stream_on_the_old_one_is_drained_with_the_engine(orch: Orch, newer: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    load = orch.load("tiny", clients=1, tokens=450)
    wait_until(lambda: load.open_now() == 1, what="a stream")
    other = another(orch, newer)
    other.run("up", "--gateway")
    (long,) = load.streams[:1]
    # Another generation: the engine of the stream ends only when it has ended, although it is the old gateway's.
    other.run("up", "--fresh")
    assert list(other.engines()) == ["tiny-llamacpp-g2"]
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    assert long.tokens > 0
    other.status()


def in_service(orch: Orch) -> bool:
    try:
        return orch.says() == ANSWER
    except httpx.TransportError:
        return False


def assert_healed(orch: Orch) -> None:
    """One command puts right what a kill has left, and nothing was lost of what clients see."""
    assert in_service(orch)
    orch.run("up", "--gateway", timeout=120)
    wait_until(lambda: not orch.run("up") or len(gateways(orch)) == 1, 150, what="one gateway")
    assert len(gateways(orch)) == 1
    orch.status()


@pytest.mark.rotated
@pytest.mark.sampled
def test_killed_at_every_step_and_any_moment_it_serves_and_the_next_command_finishes(
    either: Orch, newer: Path, thorough: bool, chance: random.Random
) -> None:
    either.run("up", either.engine, "-p", str(either.profile))
    load = either.load("tiny", clients=2)
    # From one version to the other and back.
    sides = itertools.cycle([another(either, newer), either])
    steps = another(either, newer).actions("up", "--gateway")
    assert "ReplaceGateway" in steps
    for number, step in enumerate(steps):
        orch = next(sides)
        killed = orch.signal_at(number, signal.SIGKILL, "up", "--gateway")
        # The last step may be over before the signal comes.
        assert killed.code == -signal.SIGKILL or step == steps[-1], f"{step}: {killed.out}"
        assert_healed(orch)
    spread = REPLACED_S * (1 if either.target == "local" else 3)
    moments = [spread * share / KILLS for share in range(KILLS)]
    for moment in moments if thorough else chance.sample(moments, 1):
        orch = next(sides)
        process = orch.start("up", "--gateway")
        time.sleep(0.5 + moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert_healed(orch)
    assert [stream.problem for stream in load.stop() if stream.problem] == []


def test_a_successor_that_dies_before_it_has_taken_over_changes_nothing(orch: Orch, newer: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    other = another(orch, newer)
    broken = other.home / "processes" / SECOND / "files" / "routes.json"
    process = other.start("up", "--gateway")
    wait_until(lambda: broken.parent.is_dir(), what="the successor")
    # It is made to fail: with a state of its own it binds the address, which the other one has.
    broken.write_text("[]")
    _, err = process.communicate(timeout=120)
    broken.unlink(missing_ok=True)
    assert process.returncode in (0, 4, 6), err
    assert_healed(other)


def test_a_successor_that_crashes_comes_back_with_everything(orch: Orch, newer: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    other = another(orch, newer)
    with connection(orch) as idle:
        assert idle.get("/v1/models").status_code == 200
        other.run("up", "--gateway")
        os.kill(other.record(SECOND)["engine"][0], signal.SIGKILL)
        wait_until(lambda: in_service(other), what="the successor")
        # The connection to the old one, which leaves, is answered once more.
        assert idle.get("/v1/models").headers["Connection"] == "close"
    assert_healed(other)


def test_what_is_changed_meanwhile_is_changed_on_the_old_one_too(orch: Orch, newer: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    other = another(orch, newer)
    with connection(orch) as idle:
        assert len(idle.get("/v1/models").json()["data"]) == 3
        other.run("up", "--gateway")
        other.run("lora", "add", *ALPHA)
        # The engine of before is gone; what comes in on this connection is answered by the one that took its place.
        asked = {"model": "alpha", "max_tokens": 4, **HELLO}
        reply = idle.post("/v1/chat/completions", json=asked)
        assert (reply.status_code, reply.headers["Connection"]) == (200, "close")
    other.status()


def test_both_are_taken_down(orch: Orch, newer: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    other = another(orch, newer)
    with connection(orch) as idle:
        idle.get("/v1/models")
        other.run("up", "--gateway")
        assert gateways(other) == [FIRST, SECOND]
        told = other.run("status")
        assert f"{FIRST} was replaced; it answers 0 requests." in told.out
        other.run("down", "--all")
    assert gateways(other) == []
    assert other.processes() == []


def test_origins_stay_until_others_are_named(orch: Orch, newer: Path) -> None:
    site = "https://chat.example.org"
    orch.env["ORCH_ORIGINS"] = site
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    del orch.env["ORCH_ORIGINS"]
    other = another(orch, newer)
    other.run("up", "--gateway")
    assert other.gateway_status()["origins"] == [site]
    assert httpx.get(f"http://{orch.listen}/v1/models", headers={"Origin": site}).status_code == 200
    line = other.run("logs", "gateway", "-n", "1").out
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ INFO ", line), line
    # Said to be none, they are none.
    other.env["ORCH_ORIGINS"] = ""
    assert "ORCH_ORIGINS says none" in other.run("up", "--json", code=5).lines[-1]["error"]
    other.run("up", "--gateway")
    assert other.gateway_status()["origins"] == []
    assert httpx.get(f"http://{orch.listen}/v1/models", headers={"Origin": site}).status_code == 403


def made_of(place: Path, commit: str) -> Path:
    try:
        return of_commit(place, commit)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no history in this clone: {error.stderr.decode().strip()}")


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the program before gateways could hand over."""
    return made_of(tmp_path_factory.mktemp("earlier"), BEFORE_HANDOVER)


@pytest.fixture(scope="session")
def with_plain_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the program before keys were kept as digests, and before engines asked for a secret."""
    return made_of(tmp_path_factory.mktemp("plain"), BEFORE_DIGESTS)


@pytest.mark.rotated
def test_keys_as_plain_text_are_taken_over_under_load(either: Orch, with_plain_keys: Path) -> None:
    before = another(either, with_plain_keys)
    before.env = {**either.env, "ORCH_API_KEY": "old-key"}
    before.run("up", either.engine, "-p", str(either.profile))
    pids = {name: engine["pid"] for name, engine in either.engines().items()}
    either.key = "old-key"
    load = either.load("tiny", clients=3)
    wait_until(lambda: load.open_now() >= 2, what="open streams")
    assert either.actions("up") == []
    assert either.actions("keys", "add", "web") == ["WriteKeys", "ReplaceGateway", "ClearGateway", "DropOldKeyFile"]
    either.run("keys", "add", "web")
    wait_until(lambda: len(load.streams) > 12, what="streams after it", seconds=120)
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    assert not (either.home / "keys" / "api-keys").exists()
    assert either.says() == ANSWER
    either.key = ""
    assert either.chat().status_code == 401
    # What serves is as it was; what is started from now on asks for a secret.
    assert {name: engine["pid"] for name, engine in either.engines().items()} == pids
    either.status()


def test_the_program_before_is_taken_over_with_a_gap_that_the_plan_names(orch: Orch, earlier: Path) -> None:
    before = another(orch, earlier)
    before.run("up", "llamacpp", "-p", str(orch.profile))
    before.run("lora", "add", *ALPHA)
    engines = orch.engines()
    assert any("(protocol 1)" in line for line in orch.status(code=None).document["upgrades"])
    (plan,) = (line for line in orch.run("up", "--gateway", "--plan", "--json").lines if "plan" in line)
    assert any("it cannot hand over, and is gone for a second" in item.get("what", "") for item in plan["items"])
    # It waits for what is in flight, and cuts nothing.
    load = orch.load("tiny", clients=1, tokens=300)
    wait_until(lambda: load.open_now() == 1, what="a stream")
    process = orch.start("up", "--gateway", "--json")
    time.sleep(1.0)
    streams = load.stop()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert streams[0].problem == ""
    assert gateways(orch) == [SECOND]
    assert orch.says("alpha") == "Ahoy! The answer is alpha."
    # It recorded no more than what was asked for: what that comes to by now is another generation.
    assert not engines.keys() & orch.engines().keys()
    orch.status()
    assert orch.actions("up") == []
