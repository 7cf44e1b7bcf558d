"""What clients did, on disk beside a real gateway: over its end, a kill, half a line, a full disk, and a successor."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_process import Gateway, Stream, wait_until
from upstream import Upstream

from orchestrator.app.live import live_load
from orchestrator.core.routes import Route
from orchestrator.core.traffic_window import DIRECTORY, Line, file_name, read
from orchestrator.drivers.traffic import read_lines
from orchestrator.gateway.measures import Measures
from orchestrator.gateway.window import Window

CHAT = "/v1/chat/completions"
OFTEN = ("--window", "0.5")


def lines_at(home: Path) -> list[Line]:
    """All lines that can be read there."""
    directory = home / DIRECTORY
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return read(read_lines(directory, names))


def requests(home: Path, name: str = "tiny") -> int:
    return sum(line.requests for line in lines_at(home) if line.route == name)


def load(home: Path, profile: str = "one") -> Any:
    """What `orch advise --live` reads."""
    orch: Any = SimpleNamespace(settings=SimpleNamespace(admin=home))
    return live_load(orch, profile, 1)


def test_what_clients_did_is_written_by_the_minute(
    idle_gateway: Gateway, home: Path, engine: Callable[..., Upstream]
) -> None:
    one = engine("one-vllm-g1")
    idle_gateway.start(*OFTEN)
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    own = {"Authorization": f"Bearer {idle_gateway.admin.credential()}"}
    assert idle_gateway.ask(CHAT, {"model": "tiny"}, headers=own)[0] == 200
    streams = [Stream(idle_gateway, model="tiny", wait="middle") for _ in range(3)]
    for stream in streams:
        stream.event()
    # They are there for more than one period.
    wait_until(lambda: sum(line.users.seconds.get(3, 0) for line in lines_at(home) if line.route) > 0.4)
    one.gate.set()
    for stream in streams:
        stream.rest()
        stream.close()
    assert idle_gateway.ask(CHAT, {"model": "tiny", "status": 500})[0] == 500
    wait_until(lambda: sum(line.errors for line in lines_at(home)) == 1)
    assert requests(home) == 4, "orch's own is not among them"
    named = [line for line in lines_at(home) if line.route]
    assert {(line.profile, line.route, line.engine, line.adapter) for line in named} == {("one", "tiny", "vllm", False)}
    assert sum(count for line in named for count in line.ttft.values()) == 3
    assert max(line.users.most for line in lines_at(home)) == 3
    assert all(line.minute % 60 == 0 and abs(line.minute - time.time()) < 130 for line in named)
    found = load(home)
    assert (found.requests, found.errors, found.users_max) == (4, 1, 3)
    assert 0 < found.ttft_p50_ms <= found.ttft_p95_ms < 5000
    assert load(home, "two") is None
    # Nothing comes, nothing is written.
    idle_gateway.end()
    before = lines_at(home)
    idle_gateway.start(*OFTEN)
    time.sleep(1.2)
    assert lines_at(home) == before


def test_it_survives_an_end_a_kill_and_half_a_line(
    idle_gateway: Gateway, home: Path, engine: Callable[..., Upstream]
) -> None:
    one = engine("one-vllm-g1")
    # At a stop all is written, whatever the time.
    idle_gateway.start()
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    assert idle_gateway.ask(CHAT, {"model": "tiny"})[0] == 200
    assert lines_at(home) == []
    assert idle_gateway.end() == 0
    assert requests(home) == 1
    # At a kill what is older than a period is there.
    idle_gateway.start(*OFTEN)
    for _ in range(2):
        assert idle_gateway.ask(CHAT, {"model": "tiny"})[0] == 200
    wait_until(lambda: requests(home) == 3)
    idle_gateway.end(signal.SIGKILL)
    assert requests(home) == 3
    # Half a line takes neither the one before with it, nor the one behind.
    path = home / DIRECTORY / file_name(time.time())
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[-1][:40])
    idle_gateway.start(*OFTEN)
    assert idle_gateway.ask(CHAT, {"model": "tiny"})[0] == 200
    wait_until(lambda: requests(home) == 4)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert load(home).requests == 4


def test_two_gateways_write_while_one_follows_the_other(
    idle_gateway: Gateway, home: Path, engine: Callable[..., Upstream]
) -> None:
    one = engine("one-vllm-g1")
    idle_gateway.start(*OFTEN)
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    stream = Stream(idle_gateway, model="tiny", wait="middle")
    stream.event()
    successor = Gateway(home)
    successor.socket, successor.state = home / "gateway-g2.sock", home / "routes-g2.json"
    successor.admin = type(successor.admin)(successor.socket)
    try:
        successor.start(*OFTEN, "--take-over", str(home / "over.sock"))
        idle_gateway.admin.hand_over(home / "over.sock")
        successor.port = idle_gateway.port
        assert successor.ask(CHAT, {"model": "tiny"})[0] == 200
        wait_until(lambda: requests(home) == 2)
        one.gate.set()
        stream.rest()
        stream.close()
        assert successor.ask(CHAT, {"model": "tiny"})[0] == 200
        wait_until(lambda: requests(home) == 3)
        wait_until(lambda: sum(sum(line.ttft.values()) for line in lines_at(home)) == 1)
    finally:
        successor.close()


@pytest.fixture
def route() -> Route:
    return Route.from_json(
        {"name": "tiny", "owner": "one", "backends": [{"instance": "one-vllm-g1", "url": "http://127.0.0.1:1"}]}
    )


def counted(measures: Measures, route: Route) -> None:
    with measures.passage(route, "chat", own=False):
        pass


def test_a_full_disk_costs_lines_and_is_told_once(
    tmp_path: Path, route: Route, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchestrator.gateway")
    measures = Measures()
    window = Window(tmp_path / DIRECTORY, measures)
    (tmp_path / DIRECTORY).mkdir()
    path = tmp_path / DIRECTORY / file_name(time.time())
    path.symlink_to("/dev/full")
    for _ in range(3):
        counted(measures, route)
        window.write()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left" in caplog.text
    # What was not written is gone: it would only grow.
    path.unlink()
    for _ in range(2):
        counted(measures, route)
        window.write()
    assert requests(tmp_path) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_what_is_older_than_eight_days_goes(tmp_path: Path, route: Route) -> None:
    directory = tmp_path / DIRECTORY
    directory.mkdir()
    now = time.time()
    days = [file_name(now - 86400 * day) for day in (7, 8, 9, 40)]
    for name in (*days, "notes.txt"):
        (directory / name).touch()
    measures = Measures()
    counted(measures, route)
    Window(directory, measures).write()
    assert {path.name for path in directory.iterdir()} == {*days[:2], file_name(now), "notes.txt"}


def test_how_many_there_are_at_a_time(route: Route) -> None:
    """By a clock that a test sets."""
    now = [100.0]
    measures = Measures(lambda: now[0])
    first = measures.passage(route, "chat", own=False)
    now[0] += 10
    with measures.passage(route, "chat", own=False):
        measures.waits(route, 1)
        measures.queued("one", "one-vllm-g1", 1)
        now[0] += 5
        measures.waits(route, -1)
        now[0] += 1
    now[0] += 2
    with measures.passage(route, "chat", own=True):
        now[0] += 2
    lines = {line.route: line for line in measures.lines(1_000_000_000.5)}
    assert lines.keys() == {None, "tiny"}
    assert {line.minute for line in lines.values()} == {999_999_960}
    for line in lines.values():
        assert (line.users.most, line.users.seconds) == (2, {0: 0.0, 1: 14.0, 2: 6.0})
    assert (lines["tiny"].waiting.most, lines["tiny"].waiting.seconds) == (1, {0: 15.0, 1: 5.0})
    assert lines[None].waiting.seconds == {0: 10.0, 1: 5.0, 2: 5.0}
    now[0] += 60
    # One is still there, and nothing else has happened.
    again = {line.route: line for line in measures.lines(1_000_000_060)}
    assert again["tiny"].users.seconds == {1: 60.0}
    assert (again["tiny"].requests, again[None].waiting.most) == (0, 1)
    with first:
        pass
    assert len(measures.lines(1_000_000_120)) == 2
    assert measures.lines(1_000_000_180) == []
