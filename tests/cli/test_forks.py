"""A command in a fork is as good as one in a process of its own: the same programs, run both ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Forked

# What a program finds when it starts.
FOUND = """
import json, os, signal, sys, threading
handlers = {n: str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()}
blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
three = (sys.stdin, sys.stdout, sys.stderr)
streams = [(s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno()) for s in three]
open_now = sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd < 20)
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "environ": dict(os.environ), "name": __name__,
    "c": os.popen("echo $SHOWN").read(), "handlers": handlers, "blocked": blocked, "streams": streams,
    "fds": open_now, "threads": threading.active_count(), "read": sys.stdin.read(), "umask": os.umask(0),
    "group": os.getpgid(0), "session": os.getsid(0), "flags": str(sys.flags), "main": sys.modules["__main__"].__name__,
}))
"""
AT_THE_END = """
import atexit, sys, threading, time
atexit.register(lambda: print("at the end"))
def late():
    time.sleep(0.3)
    print("late")
threading.Thread(target=late).start()
sys.stdout.write("first\\n")
"""
# Whether an interrupt is ignored is inherited.
INTERRUPTED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
time.sleep(60)
"""
Started = Callable[..., Any]


def execed(module: str, *args: str, env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=[execed, Forked])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Started:
    """Runs a text as a module: in a process of its own, or in a fork."""

    def started(text: str, *args: str, **env: str) -> Any:
        (tmp_path / "program.py").write_text(text)
        return request.param("program", *args, env=os.environ | env, cwd=tmp_path)

    return started


def test_it_finds_what_a_new_process_finds(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FOUND)
    env = {"PATH": os.environ["PATH"], "SHOWN": "to C too"} | {k: v for k, v in os.environ.items() if k[:3] == "PYT"}
    found = []
    for way in (execed, Forked, Forked):
        process = way("program", "one", "two", env=env, cwd=tmp_path)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        found.append(json.loads(out))
        found[-1]["fds"] = len(found[-1]["fds"])
    new, first, second = found
    assert first == new
    assert second == new
    assert new["c"] == "to C too\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('said')", 1), ("raise SystemExit(256 + 7)", 7),
     ("1 / 0", 1), ("raise KeyboardInterrupt", -2), ("import os; os._exit(9)", 9), ("import os; os.abort()", -6)],
)  # fmt: skip
def test_its_exit_status_is_what_it_would_be(start: Started, text: str, code: int) -> None:
    process = start(text)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert ("said" in err, "Traceback" in err) == ("said" in text, "1 /" in text or "Keyboard" in text)


def test_what_has_to_be_done_at_its_end_is_done(start: Started) -> None:
    process = start(AT_THE_END)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "first\nlate\nat the end\n", "")


def test_what_it_cannot_write_any_more_is_its_exit_status(start: Started) -> None:
    # It writes once nobody reads any more.
    text = "import select; p = select.poll(); p.register(1, 0); p.poll(30_000); print('x' * 10)"
    process = start(text, PYTHONUNBUFFERED="")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 120
    assert "BrokenPipeError" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_gets_the_signals(start: Started, number: signal.Signals) -> None:
    process = start(INTERRUPTED)
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in err) is (number == signal.SIGINT)
    process.send_signal(number)


def test_a_command_leaves_nothing_to_the_next_one(start: Started, tmp_path: Path) -> None:
    (tmp_path / "kept.py").write_text("from functools import cache\nfilled = []\n@cache\ndef f(): return len(filled)\n")
    text = "import kept, os; print(kept.f(), os.environ.get('LEFT'));"
    text += "kept.filled.append(1); kept.f.cache_clear(); kept.f(); os.environ['LEFT'] = '1'"
    said = [start(text, PYTHONPATH=str(tmp_path)).communicate(timeout=60)[0] for _ in range(3)]
    assert said == ["0 None\n"] * 3


def test_what_was_read_of_the_environment_at_an_import_is_not_another_ones(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text("import os; SEEN = os.environ.get('ORCH_SHOWN')")
    (tmp_path / "program.py").write_text("import reader; print(reader.SEEN)")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert Forked("program", env=env | {"ORCH_SHOWN": "one"}, cwd=tmp_path).communicate(60)[0] == "one\n"
    with pytest.raises(RuntimeError, match=r"ORCH_SHOWN \(reader\)"):
        Forked("program", env=env | {"ORCH_SHOWN": "two"}, cwd=tmp_path)


def test_what_starts_a_thread_when_it_is_imported_is_not_forked(tmp_path: Path) -> None:
    text = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (tmp_path / "starter.py").write_text(text)
    (tmp_path / "program.py").write_text("import starter")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    with Forked("program", env=env, cwd=tmp_path) as process:
        assert process.wait(60) == 0
    with pytest.raises(RuntimeError, match="starts a thread"):
        Forked("program", env=env, cwd=tmp_path)


def test_several_at_once_are_waited_for_each_by_itself(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))")
    codes = []

    def one(seconds: str, code: int) -> None:
        with Forked("program", seconds, str(code), env=os.environ, cwd=tmp_path) as process:
            codes.append(process.wait(60))

    threads = [threading.Thread(target=one, args=case) for case in (("1.5", 9), *(("0", code) for code in range(5)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes[:-1]) == list(range(5))
    assert codes[-1] == 9
    with Forked("program", "60", "0", env=os.environ, cwd=tmp_path) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(0.1)
        process.kill()
