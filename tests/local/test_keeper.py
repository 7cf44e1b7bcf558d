"""The keeper: restarts, adoption, complete ends, logs."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conditions import SLEEP, Seen, only, program, wait_until

from orchestrator.core.launch import InstanceState, Launch
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc
from orchestrator.drivers.local.keeper import KEPT_ALREADY
from orchestrator.drivers.local.processes import LocalTarget


def kill_keeper(seen: Seen) -> None:
    keeper = seen.keeper
    assert proc.send(keeper, signal.SIGKILL)
    wait_until(lambda: not proc.alive(keeper), "the keeper's end")


@pytest.mark.parametrize("code", [0, 3])
def test_every_exit_is_a_crash_and_pauses_grow(target: LocalTarget, tmp_path: Path, code: int) -> None:
    times = tmp_path / "times"
    text = (
        f"import sys, time; open({str(times)!r}, 'a').write(f'{{time.time()}}\\n');print('bad luck'); sys.exit({code})"
    )
    target.ensure("a", program(text), "")
    wait_until(lambda: times.exists() and len(times.read_text().splitlines()) == 3, "three starts")
    first, second, third = map(float, times.read_text().splitlines())
    assert second - first >= 0.5
    assert third - second >= 1.0
    wait_until(lambda: target.log_path("a").read_text().count("--- ended") == 3, "the third exit")
    seen = wait_until(lambda: _if(only(target, "a").starts == 3, only(target, "a")), "the record of it")
    assert seen.supervised
    assert (seen.state, seen.pid) == (InstanceState.BACKOFF, None)
    assert seen.last_exit is not None
    assert (seen.last_exit.code, seen.last_exit.signal) == (code, None)
    log = target.log_path("a").read_text()
    assert log.count("--- started") == 3
    tail = target.log_tail("a", 9).splitlines()
    assert tail[0] == "bad luck"
    assert re.fullmatch(rf"--- ended \S+ code {code}, nobody asked for it ---", tail[1])


def _if(condition: bool, value):  # type: ignore[no-untyped-def]
    return value if condition else None


def test_ensure_in_backoff_restarts_now_with_counters_reset(target: LocalTarget, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    text = f"import os, sys, time; os.path.exists({str(gate)!r}) or sys.exit(1); time.sleep(600)"
    launch = program(text)
    target.ensure("a", launch, "")
    wait_until(lambda: only(target, "a").starts == 3 and only(target, "a").pid is None, "the third exit")
    port = only(target, "a").port
    gate.touch()
    seen = target.ensure("a", launch, "")
    assert (seen.state, seen.starts, seen.last_exit) == (InstanceState.RUNNING, 1, None)
    assert seen.port == port


def test_a_killed_engine_is_restarted_on_its_port(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    again = wait_until(
        lambda: _if(only(target, "a").starts == 2 and bool(only(target, "a").pid), only(target, "a")), "the restart"
    )
    assert again.pid != first.pid
    assert again.port == first.port
    assert again.last_exit is not None
    assert (again.last_exit.code, again.last_exit.signal) == (None, signal.SIGKILL)


def test_a_restart_on_a_port_that_a_stranger_took_says_who(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    with socket.create_server(("127.0.0.1", first.port or 0)):
        for starts in (2, 3):
            assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
            wait_until(lambda starts=starts: only(target, "a").starts == starts, "the restart")  # type: ignore[misc]
            assert f"--- port {first.port} is taken by pid {os.getpid()}: " in target.log_tail("a", 9)
    assert target.log_path("a").read_text().count("is taken by") == 2


def test_what_a_dead_leader_leaves_behind_is_ended_before_the_restart(target: LocalTarget, tmp_path: Path) -> None:
    """As vLLM's EngineCore outlives its API server; it ignores SIGTERM and has overwritten its environment."""
    pids = tmp_path / "pids"
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    )
    text = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', {deaf!r}], env={{}})\n"
        f"while not open({str(pids)!r}, 'a+').tell(): time.sleep(0.01)\n"
    )
    target.ensure("a", program(text, stop_grace_s=0.3), "")
    wait_until(lambda: only(target, "a").starts == 2, "the restart")
    orphan = int(pids.read_text().split()[0])
    now = proc.stat(orphan)
    assert now is None or now.dead


def test_a_killed_keeper_leaves_the_engine_and_ensure_adopts_it(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    kill_keeper(seen)
    orphaned = only(target, "a")
    assert (orphaned.state, orphaned.supervised, orphaned.pid) == (InstanceState.RUNNING, False, first.pid)
    adopted = target.ensure("a", SLEEP, "")
    assert (adopted.supervised, adopted.pid, adopted.starts) == (True, first.pid, 1)

    assert proc.send(seen.engine, signal.SIGKILL)
    again = wait_until(
        lambda: _if(only(target, "a").starts == 2 and bool(only(target, "a").pid), only(target, "a")), "the restart"
    )
    assert again.last_exit is not None
    assert (again.last_exit.code, again.last_exit.signal) == (None, None)


def test_an_adopted_engine_is_stopped_completely(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    kill_keeper(seen)
    target.ensure("a", SLEEP, "")
    engine = seen.engine
    target.stop("a", silent)
    assert not proc.alive(engine)
    assert only(target, "a").state is InstanceState.STOPPED


def test_keeper_and_engine_killed(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    kill_keeper(seen)
    engine = seen.engine
    assert proc.send(engine, signal.SIGKILL)
    wait_until(lambda: not proc.alive(engine), "the engine's end")
    assert only(target, "a").state is InstanceState.STOPPED
    again = target.ensure("a", SLEEP, "")
    assert (again.state, again.starts, again.port) == (InstanceState.RUNNING, 1, first.port)


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans become children of this process, which can reap them: a leader that is not reaped keeps its pid."""
    prctl, set_child_subreaper = ctypes.CDLL(None, use_errno=True).prctl, 36
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


@pytest.mark.usefixtures("subreaper")
def test_orphans_of_a_dead_engine_without_keeper_are_ended(target: LocalTarget, root: Path) -> None:
    """Leader and keeper are gone, a child of the session is not; without its marker its directory tells whose it is."""
    child = "import time; print(1); time.sleep(600)"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-u', '-c', {child!r}], env={{}})"
    target.ensure("a", program(text, stop_grace_s=0.5), "")
    seen = Seen(root, "a")
    wait_until(lambda: target.log_tail("a", 1) == "1", "the child's start")
    leader = seen.engine
    (orphan,) = [found for found in proc.members(seen.directory, leader) if found != leader]
    for killed in (seen.keeper, leader):
        assert proc.send(killed, signal.SIGKILL)
        os.waitpid(killed.pid, 0)
    assert proc.stat(leader.pid) is None
    assert proc.alive(orphan)
    target.stop("a", silent)
    assert not proc.alive(orphan)
    os.waitpid(orphan.pid, 0)


def test_relabel_counts_from_the_next_restart(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "one")
    other = Launch((*SLEEP.argv, "--adapter=x"), stop_grace_s=1)
    target.relabel("a", other, "two")
    now = only(target, "a")
    assert (now.pid, now.label, now.launch) == (first.pid, "two", other)
    assert target.ensure("a", other, "two").pid == first.pid
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    wait_until(lambda: only(target, "a").starts == 2, "the restart")
    pid = wait_until(lambda: only(target, "a").pid, "the new process")
    wait_until(lambda: proc.command_line(pid).endswith("--adapter=x"), "the new command line")
    assert only(target, "a").port == first.port


def test_a_second_keeper_gives_way(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    argv = [sys.executable, "-m", "orchestrator.drivers.local.keeper", str(root / "a")]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == KEPT_ALREADY
    assert only(target, "a") == first


def test_a_long_log_is_rotated_and_the_engine_writes_on(target: LocalTarget) -> None:
    """30 kB at once, which is over the limit, then a little at a time."""
    text = "import time\nfor n in range(100000): print(f'line {n} ' + 'x' * 200); time.sleep(0.02 if n > 150 else 0)"
    log = target.log_path("a")
    log.parent.mkdir()
    for number in (1, 2):
        log.with_name(f"a.log.{number}").write_text(f"older {number}")
    target.ensure("a", program(text), "")
    wait_until(lambda: log.with_name("a.log.2").read_text() == "older 1", "a rotation")
    wait_until(lambda: 1500 < log.stat().st_size < 20_000, "more output in the emptied file")
    assert log.with_name("a.log.1").stat().st_size > 20_000
    tail = [int(line.split()[1]) for line in target.log_tail("a", 5).splitlines()]
    assert tail == list(range(tail[0], tail[0] + 5))
    assert not log.with_name("a.log.3").exists()


def test_a_restart_after_a_rotation_shows_the_latest_start_only(target: LocalTarget) -> None:
    log = target.log_path("a")
    log.parent.mkdir()
    log.with_name("a.log.1").write_text("--- started 2026-01-01T00:00:00Z pid 1 ---\nold 1\nold 2\n")
    log.write_text("old 3\n")
    assert target.log_tail("a", 9) == "old 1\nold 2\nold 3"
    with log.open("a") as file:
        file.write("--- started 2026-01-02T00:00:00Z pid 2 ---\nnew\n")
    assert target.log_tail("a", 9) == "new"
    assert target.log_tail("b", 9) == ""


def test_the_engine_is_no_child_of_orch_and_holds_no_lock(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    descriptors = {str(link.readlink()) for link in Path(f"/proc/{seen.engine.pid}/fd").iterdir()}
    assert descriptors == {"/dev/null", str(target.log_path("a"))}
    now = proc.stat(seen.keeper.pid)
    assert now is not None
    assert now.session != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(seen.keeper.pid, os.WNOHANG)


def test_observe_is_fast(target: LocalTarget) -> None:
    for number in range(5):
        target.ensure(f"a{number}", SLEEP, "")
    began = time.perf_counter()
    assert len(target.observe()) == 5
    assert time.perf_counter() - began < 0.5
