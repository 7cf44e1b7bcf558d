"""The gateway as a process: its sockets, its file, its end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from gateway_process import Gateway, key_ring, wait_until, write_keys

from orchestrator import __version__
from orchestrator.drivers.gateway_admin import GatewayAdmin
from orchestrator.errors import HostError

CHAT = "/v1/chat/completions"


def run(gateway, listen, *more):
    """Start a gateway that is expected to end by itself."""
    return subprocess.run(gateway.command(listen, *more), capture_output=True, text=True, timeout=10)


def test_status(gateway):
    now = gateway.status()
    assert (now.pid, now.version) == (gateway.process.pid, __version__)
    assert now.listen.startswith("127.0.0.1:")
    assert (len(now.routes), now.traffic.backends, now.paused, now.traffic.held) == (0, {}, {}, 0)


def test_no_gateway_is_an_answer(home):
    admin = GatewayAdmin(home / "none.sock")
    assert admin.status() is None
    with pytest.raises(HostError, match="No gateway answers"):
        admin.remove_routes("one")


def test_a_gateway_that_dies_over_an_answer_is_none(home):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home / "s"))
        silent.listen()
        silent.settimeout(5)
        admin = GatewayAdmin(home / "s")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(admin.status)
            connection, _ = silent.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{")
            connection.close()
            assert asked.result() is None


def test_the_table_survives_a_kill(idle_gateway, engine):
    one = engine("one-g1")
    idle_gateway.start()
    routes = [
        idle_gateway.route("tiny", one),
        idle_gateway.route("tiny/ä", one, upstream="tiny", patch={"lora": [{"id": 0, "scale": 0.5}]}),
    ]
    idle_gateway.admin.set_routes("one", routes)
    before = idle_gateway.status().routes
    assert set(before) == set(routes)
    assert idle_gateway.end(signal.SIGKILL) == -signal.SIGKILL
    assert idle_gateway.socket.exists()
    idle_gateway.start()
    assert idle_gateway.status().routes == before
    assert idle_gateway.ask(CHAT, {"model": "tiny/ä"})[0] == 200
    idle_gateway.admin.remove_routes("one")
    idle_gateway.end(signal.SIGKILL)
    idle_gateway.start()
    assert len(idle_gateway.status().routes) == 0


@pytest.mark.parametrize("content", ["", "{", "{}", '[{"name": "tiny"}]', "\0", '[{"name": 3, "owner": "x"}]'])
def test_a_damaged_file_is_moved_aside(idle_gateway, content):
    idle_gateway.state.write_text(content)
    idle_gateway.start()
    assert len(idle_gateway.status().routes) == 0
    assert idle_gateway.state.with_name("routes.json.broken").read_text() == content
    assert "ERROR" in idle_gateway.log.read_text()
    assert "damaged" in idle_gateway.log.read_text()


def test_a_table_that_cannot_be_saved_is_not_put_in_force(gateway, engine):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    gateway.state.unlink()
    gateway.state.mkdir()
    (gateway.state / "x").touch()
    with pytest.raises(HostError, match="Cannot write"):
        gateway.admin.set_routes("one", [gateway.route("other", one)])
    assert gateway.status().routes.names == ("tiny",)
    assert [path.name for path in gateway.state.parent.iterdir() if path.suffix == ".tmp"] == []


def test_sigterm_lets_requests_in_flight_end(gateway, engine, stream):
    one = engine("one-g1")
    gateway.admin.set_routes("one", [gateway.route("tiny", one)])
    client = stream(model="tiny", wait="middle")
    client.event()
    idle = gateway.connect()
    idle.request("GET", "/health")
    idle.getresponse().read()
    gateway.process.terminate()

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", gateway.port)) != 0

    wait_until(refused)
    assert gateway.process.poll() is None
    one.gate.set()
    assert client.rest()[-1] == "[DONE]"
    assert gateway.process.wait(5) == 0
    assert not gateway.socket.exists()
    idle.close()


def test_sigterm_cuts_after_the_grace(idle_gateway, engine):
    one = engine("one-g1")
    idle_gateway.start("--grace", "0.3")
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    idle_gateway.admin.set_routes("two", [idle_gateway.route("other", one, owner="two")])
    idle_gateway.admin.pause("two", 60)
    with ThreadPoolExecutor(3) as pool:
        begun = pool.submit(idle_gateway.ask, CHAT, {"model": "tiny", "stream": True, "wait": "middle"})
        waiting = pool.submit(idle_gateway.ask, CHAT, {"model": "tiny", "wait": "head"})
        one.wait_for_requests(2)
        held = pool.submit(idle_gateway.ask, CHAT, {"model": "other"})
        wait_until(
            lambda: (
                idle_gateway.status().traffic.backends["one-g1"].open_streams == idle_gateway.status().traffic.held == 1
            )
        )
        assert idle_gateway.end(timeout=6) == 0
        status, _, answer = begun.result()
        assert status == 200
        assert b"stream_interrupted" in answer
        assert b"[DONE]" not in answer
        assert (waiting.result()[0], held.result()[0]) == (503, 503)
    assert len(one.requests) == 2


def test_more_connections_than_the_usual_limit_on_open_files(idle_gateway, engine):
    one = engine("one-g1")
    idle_gateway.start(by=("sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh"))
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(contextlib.closing(idle_gateway.connect()))
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status": "ok"}'
        assert idle_gateway.ask(CHAT, {"model": "tiny"})[0] == 200


# ISO 8601, with the offset from UTC: here an hour ahead of it.
TIMED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+01:00) (INFO|WARNING|ERROR|CRITICAL) ")


def test_each_line_of_the_log_begins_with_a_time(idle_gateway, monkeypatch):
    monkeypatch.setenv("TZ", "XXX-1")
    began = datetime.now(UTC)
    idle_gateway.start()
    idle_gateway.end()
    times = [datetime.fromisoformat(TIMED.match(line)[1]) for line in idle_gateway.log.read_text().splitlines()]
    assert len(times) == 2
    assert times == sorted(times)
    assert timedelta(seconds=-1) < times[0] - began < timedelta(seconds=60)


def test_a_traceback_has_a_time_before_each_line():
    code = "from orchestrator.gateway.__main__ import log_to_stderr; log_to_stderr(); 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0].endswith(" CRITICAL This is a bug in orch.")
    assert lines[-1].endswith(" ZeroDivisionError: division by zero")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+ ", line) for line in lines)


def test_an_occupied_port_is_exit_code_4(idle_gateway, home):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = run(idle_gateway, f"127.0.0.1:{other.getsockname()[1]}")
    assert result.returncode == 4
    assert " ERROR The address 127.0.0.1:" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not idle_gateway.socket.exists()


def test_no_two_gateways_at_one_address_or_socket(gateway, home):
    second = Gateway(home / "second")
    result = run(second, gateway.listen)
    assert (result.returncode, "already in use" in result.stderr) == (4, True)
    result = run(gateway, "127.0.0.1:0")
    assert (result.returncode, "Another gateway answers" in result.stderr) == (4, True)
    assert gateway.status().pid == gateway.process.pid


def test_the_address_is_free_again_at_once(idle_gateway, engine):
    one = engine("one-g1")
    idle_gateway.start()
    idle_gateway.admin.set_routes("one", [idle_gateway.route("tiny", one)])
    listen = idle_gateway.listen
    idle_gateway.ask(CHAT, {"model": "tiny"})
    idle_gateway.end()
    idle_gateway.start(listen=listen)
    assert idle_gateway.listen == listen


def test_the_admin_socket_is_this_users_only(gateway):
    assert stat.S_IMODE(gateway.socket.stat().st_mode) == 0o600


def test_unusable_arguments(idle_gateway, home):
    assert run(idle_gateway, "8484").returncode == 2
    keys = home / "keys"
    write_keys(keys, key_ring("k"))
    result = run(idle_gateway, "192.0.2.1:8484", "--key-file", str(keys))
    assert (result.returncode, "Cannot listen" in result.stderr) == (4, True)
    idle_gateway.socket = home / ("x" * 110)
    result = run(idle_gateway, "127.0.0.1:0")
    assert (result.returncode, "longer than" in result.stderr) == (4, True)


def test_a_route_that_is_none_is_refused(gateway):
    route = {"name": "tiny", "owner": "one", "backend": "b", "url": "http://127.0.0.1:1", "upstream": None, "patch": {}}
    wrong = {"url": "https://127.0.0.1:1", "name": "", "owner": "two", "patch": [], "upstream": 2}
    for field, value in [*wrong.items(), ("url", "http://127.0.0.1:1/x"), ("url", "")]:
        assert put(gateway, "one", [{**route, field: value}]).startswith(b"HTTP/1.1 400"), (field, value)
    assert put(gateway, "one", [route, route]).startswith(b"HTTP/1.1 400")
    assert put(gateway, "one", route).startswith(b"HTTP/1.1 400")
    assert len(gateway.status().routes) == 0
    # What a later orch says besides is left alone.
    assert put(gateway, "one", [{**route, "odd": 1}]).startswith(b"HTTP/1.1 200")


def put(gateway, owner, routes):
    """PUT /routes/OWNER without the driver, which sends no nonsense."""
    body = json.dumps(routes).encode()
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(gateway.socket))
        head = f"PUT /routes/{owner} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        admin.sendall(head.encode() + body)
        answer = b""
        while data := admin.recv(4096):
            answer += data
    return answer
