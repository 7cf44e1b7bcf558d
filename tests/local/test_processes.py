"""LocalTarget: what it starts, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from conditions import SLEEP, Seen, only, program, wait_until

from orchestrator.core.launch import InstanceState
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError, Interrupted


def test_ensure_is_idempotent(target: LocalTarget) -> None:
    first = target.ensure("a", SLEEP, '{"g": 1}')
    second = target.ensure("a", SLEEP, '{"g": 1}')
    assert first.state is InstanceState.RUNNING
    assert first.supervised
    assert (first.starts, first.last_exit) == (1, None)
    assert first == second == only(target, "a")
    assert proc.stat(first.pid or 0) is not None


def test_another_launch_of_a_running_instance_is_refused(target: LocalTarget) -> None:
    first = target.ensure("a", SLEEP, "")
    with pytest.raises(HostError, match="other settings"):
        target.ensure("a", program("import time; time.sleep(5)"), "")
    assert only(target, "a").pid == first.pid


def test_placeholders_and_files(target: LocalTarget) -> None:
    target.write_file("a", "settings.json", '{"x": 1}')
    text = "import sys, time; print(*sys.argv[1:]); print(open(sys.argv[2] + '/settings.json').read()); time.sleep(600)"
    seen = target.ensure("a", program(text, "{port}", "{dir}", "{python}", '{"json": "{}"}'), "")
    wait_until(lambda: len(target.log_tail("a", 9).splitlines()) == 2, "the program's output")
    directory = str(target.file_path("a", "settings.json").parent)
    assert target.log_tail("a", 9).splitlines() == [
        f'{seen.port} {directory} {sys.executable} {{"json": "{{}}"}}',
        '{"x": 1}',
    ]


def test_the_environment_is_an_allow_list(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "0")
    text = "import json, os, time; print(json.dumps(dict(os.environ))); time.sleep(600)"
    target.ensure("a", program(text, env=(("EXTRA", "1"),)), "")
    environ = json.loads(wait_until(lambda: target.log_tail("a", 1), "the environment"))
    assert environ["EXTRA"] == "1"
    assert environ["NVIDIA_VISIBLE_DEVICES"] == "0"
    assert environ["PATH"] == os.environ["PATH"]
    assert not {"HF_TOKEN", "PYTHONPATH"} & set(environ)


def test_a_bare_program_comes_from_the_environments_bin_only(tmp_path: Path) -> None:
    bin_directory = tmp_path / "env" / "bin"
    bin_directory.mkdir(parents=True)
    tool = bin_directory / "tool"
    tool.write_text("#!/bin/sh\necho $PATH\nexec sleep 600\n")
    tool.chmod(0o755)
    target = LocalTarget(tmp_path / "p", tmp_path / "l", lambda name: tmp_path / name / "bin", sys.executable)
    launch = program("")
    try:
        target.ensure("a", launch.__class__(("tool",), environment="env", stop_grace_s=1), "")
        path = wait_until(lambda: target.log_tail("a", 1), "the tool's output")
        assert path.split(":")[0] == str(bin_directory)
        with pytest.raises(HostError, match="sh: No such file"):
            target.ensure("b", launch.__class__(("sh",), environment="env"), "")
    finally:
        target.stop("a", silent)


def test_a_missing_program_is_told(target: LocalTarget) -> None:
    with pytest.raises(HostError, match="/nowhere/engine: No such file or directory"):
        target.ensure("a", program("").__class__(("/nowhere/engine",)), "")
    seen = only(target, "a")
    assert seen.state is InstanceState.STOPPED
    assert seen.last_exit is not None
    assert seen.last_exit.code == 127


def test_stop_ends_everything_and_remove_leaves_the_log(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "label")
    wait_until(lambda: target.log_tail("a", 9) == "up", "the program's output")
    seen = Seen(root, "a")
    keeper, engine = seen.keeper, seen.engine
    with pytest.raises(HostError, match="still runs"):
        target.remove("a")
    target.stop("a", silent)
    assert not proc.alive(keeper)
    assert not proc.alive(engine)
    stopped = only(target, "a")
    assert (stopped.state, stopped.supervised, stopped.label) == (InstanceState.STOPPED, False, "label")
    assert stopped.last_exit is None
    target.stop("a", silent)
    target.remove("a")
    target.remove("a")
    assert target.observe() == ()
    assert list(root.iterdir()) == []
    assert target.log_path("a").read_text().startswith("--- started 2")


def test_a_deaf_process_and_its_deaf_grandchild_are_killed(target: LocalTarget) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    text = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-u', '-c', {deaf!r}]); exec({deaf!r})"
    target.ensure("a", program(text, stop_grace_s=0.3), "")
    wait_until(lambda: target.log_tail("a", 9).count("deaf") == 2, "both to be deaf")
    leader = only(target, "a").pid
    group = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _session(int(entry.name)) == leader
    ]
    assert len(group) == 2
    target.stop("a", silent)
    assert [pid for pid in group if _session(pid) == leader] == []


def _session(pid: int) -> int:
    now = proc.stat(pid)
    return now.session if now and not now.dead else 0


@pytest.mark.parametrize("stopped", ["engine", "keeper"])
def test_a_process_that_was_halted_ends_at_once(target: LocalTarget, root: Path, stopped: str) -> None:
    """SIGTERM alone waits in a stopped process until its grace is over."""
    target.ensure("a", replace(SLEEP, stop_grace_s=20.0), "")
    seen = Seen(root, "a")
    halted = seen.engine if stopped == "engine" else seen.keeper
    assert proc.send(halted, signal.SIGSTOP)
    status = Path(f"/proc/{halted.pid}/status")
    wait_until(lambda: "T (stopped)" in status.read_text(), "the halt")
    began = time.monotonic()
    target.stop("a", silent)
    assert time.monotonic() - began < 5
    assert target.log_path("a").read_text().splitlines()[-1].startswith("--- stopped ")


def test_an_interrupted_stop_goes_on(target: LocalTarget, root: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    target.ensure("a", program(deaf, stop_grace_s=0.5), "")
    wait_until(lambda: target.log_tail("a", 9) == "deaf", "the program to be deaf")
    engine = Seen(root, "a").engine

    def interrupt(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        target.stop("a", interrupt)
    assert proc.alive(engine)
    wait_until(lambda: only(target, "a").state is InstanceState.STOPPED, "the keeper to end it")
    assert not proc.alive(engine)


def test_stop_without_a_keeper(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    keeper, engine = seen.keeper, seen.engine
    assert proc.send(keeper, signal.SIGKILL)
    wait_until(lambda: not proc.alive(keeper), "the keeper's end")
    target.stop("a", silent)
    assert not proc.alive(engine)
    assert seen.state.state == records.STOPPED


def test_a_stranger_with_the_same_pid_is_never_signalled(target: LocalTarget, root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as alien:
        try:
            target.ensure("a", SLEEP, "")
            target.stop("a", silent)
            seen = Seen(root, "a")
            true = proc.stat(alien.pid)
            assert true is not None
            reused = proc.Identity(alien.pid, true.identity.start - 1)
            records.write_state(
                seen.directory, seen.state._replace(state=records.RUNNING, keeper=reused, engine=reused)
            )
            assert only(target, "a").state is InstanceState.STOPPED
            target.stop("a", silent)
            records.write_state(
                seen.directory, seen.state._replace(state=records.RUNNING, keeper=reused, engine=reused)
            )
            started = target.ensure("a", SLEEP, "")
            assert started.pid != alien.pid
            target.stop("a", silent)
            assert alien.poll() is None
        finally:
            alien.kill()


def test_records_of_an_earlier_boot_mean_nothing(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    state = seen.state
    records.write_state(seen.directory, state._replace(boot="another"))
    assert only(target, "a").state is InstanceState.STOPPED
    records.write_state(seen.directory, state)
    assert only(target, "a") == first


def test_a_stray_is_ended_before_a_start(target: LocalTarget, root: Path) -> None:
    """A keeper was killed between the spawn and the record of it: only the marker tells whose the process is."""
    marked = os.environ | {proc.MARKER: str(root / "a")}
    other = os.environ | {proc.MARKER: str(root / "ab")}
    argv = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with (
        subprocess.Popen(argv, env=marked, start_new_session=True) as stray,
        subprocess.Popen(argv, env=other, start_new_session=True) as alien,
    ):
        try:
            for child in (stray, alien):
                environ = Path(f"/proc/{child.pid}/environ")
                wait_until(lambda environ=environ: b"ORCH_INSTANCE" in environ.read_bytes(), "the exec")  # type: ignore[misc]
            target.ensure("a", SLEEP, "")
            assert stray.wait(5) == -signal.SIGTERM
            assert alien.poll() is None
        finally:
            stray.kill()
            alien.kill()


def test_the_port_is_kept_unless_a_stranger_took_it(target: LocalTarget) -> None:
    first = target.ensure("a", SLEEP, "")
    target.stop("a", silent)
    again = target.ensure("a", SLEEP, "")
    assert again.port == first.port
    target.stop("a", silent)
    with socket.create_server(("127.0.0.1", first.port or 0)):
        moved = target.ensure("a", SLEEP, "")
        assert moved.port != first.port


@pytest.mark.parametrize(
    ("command_line", "hint"),
    [
        (("the-owner",), "End that program, or choose another address: --listen HOST:PORT."),
        (("-m", "orchestrator.gateway", "the-owner"), "gateway of another orch, with its own ORCH_HOME"),
    ],
)
def test_an_occupied_fixed_port_names_its_owner(target: LocalTarget, command_line: tuple[str, ...], hint: str) -> None:
    text = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", text, *command_line], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        with pytest.raises(HostError, match=rf"Port {port} is taken by pid {owner.pid}: .* the-owner") as caught:
            target.ensure("a", program("", port=port), "")
        assert hint in caught.value.hint
        assert "--listen HOST:PORT" in caught.value.hint
        owner.kill()
    seen = target.ensure("a", program("import time; time.sleep(600)", port=port), "")
    assert seen.port == port


def test_a_followed_log_goes_on_with_what_comes(target: LocalTarget) -> None:
    target.ensure("a", program("import time\nfor n in range(600): print('line', n, flush=True); time.sleep(0.1)"), "")
    lines = wait_until(lambda: target.log("a", 1000, lambda: True), "the log")
    seen = list(islice(lines, 8))
    said = [line for line in seen if line.startswith("line ")]
    assert said == [f"line {n}" for n in range(len(said))]
    assert len(said) >= 7


def test_old_logs_are_pruned_and_those_of_instances_kept(target: LocalTarget) -> None:
    target.ensure("a", SLEEP, "")
    for number in range(30):
        path = target.log_path(f"gone-{number:02}")
        path.write_text("x")
        os.utime(path, (number + 1, number + 1))
    os.utime(target.log_path("a"), (0, 0))
    target.ensure("b", SLEEP, "")
    target.stop("b", silent)
    target.remove("b")
    left = {path.name for path in target.log_path("a").parent.iterdir()}
    assert left == {"a.log", "b.log", *(f"gone-{number}.log" for number in range(11, 30))}


def test_what_the_disk_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = LocalTarget(tmp_path / "file", tmp_path / "logs", Path, sys.executable)
    with pytest.raises(HostError, match="Cannot write x of a: "):
        target.write_file("a", "x", "")
    with pytest.raises(HostError, match="Cannot start a: "):
        target.ensure("a", SLEEP, "")


def test_the_record_is_for_this_user_only(target: LocalTarget, root: Path) -> None:
    target.ensure("a", program("import time; time.sleep(600)", env=(("KEY", "secret"),)), "")
    assert (root / "a").stat().st_mode & 0o077 == 0
    assert target.log_path("a").stat().st_mode & 0o077 == 0
