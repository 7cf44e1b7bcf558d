"""The keeper: one small supervisor per process.

`python -m orchestrator.drivers.local.keeper INSTANCE_DIR [--adopt]` puts itself into the background and returns once
the engine is started (0), cannot be started (1, why on stderr) or is kept by another keeper already (3).

The engine writes to its log itself and lives in its own session, so it outlives its keeper; `--adopt` takes such a
one over. Every exit that nobody asked for is a crash, code 0 included: vLLM exits 0 when its engine dies.
A keeper whose directory was deleted or made anew ends its engine and itself: what is there now has its own.
Standard library only: it stays in memory for as long as its engine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.drivers import cgroups
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.records import BACKOFF, RUNNING, STOPPED, Ended, Spec, State

KEPT_ALREADY = 3
FIRST_DELAY_S, LONGEST_DELAY_S, SOUND_AFTER_S = 0.5, 30.0, 60.0
LOOK_S = 2.0
# What ends within so many seconds after memory ran out has ended of it: giving much memory back takes a while, and so
# does seeing that a process of one's own is gone.
MEMORY_S = 30.0
OLD_LOGS = 2


class Keeper:
    """Starts, watches, restarts and ends the process of one instance; `announce` is called once, with "" or a problem.

    `lock` is the descriptor that holds keeper.lock. It writes state.json; the spec is read anew at every start.
    """

    def __init__(self, instance: Path, spec: Spec, lock: int, announce: Callable[[str], None]) -> None:
        self._instance, self._spec, self._lock, self._announce = instance, spec, lock, announce
        self._child: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._kills = cgroups.Kills(os.getpid())
        self._memory_ran_out = -math.inf
        me = proc.stat(os.getpid())
        self._state = State(BACKOFF, records.utc_now(), proc.boot_id(), me.identity if me else None)
        self._asked_to_stop = False
        self._wake, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer)
        signal.signal(signal.SIGTERM, self._on_stop)
        # Not SIG_IGN, which the engine would inherit.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._asked_to_stop = True

    def _must_stop(self) -> bool:
        return self._asked_to_stop or not self._is_at_home()

    def _starts_again(self) -> bool:
        """Whether the process is to be started again when it has ended, by its spec as it is now."""
        with contextlib.suppress(ValueError, OSError):
            self._spec = records.read_spec(self._instance) or self._spec
        return self._spec.restart

    def _is_at_home(self) -> bool:
        """Whether the lock that is held is still that of this directory."""
        held = os.fstat(self._lock)
        try:
            there = (self._instance / records.LOCK).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a disk that does not answer tells nothing
            return True
        return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)

    def run(self, adopt: bool) -> int:
        """Keep the process until SIGTERM; returns the keeper's exit code."""
        if not (adopt and self._adopt()):
            try:
                if not self._is_at_home():
                    raise FileNotFoundError(errno.ENOENT, "was removed while it was started", str(self._instance))
                self._start()
            except OSError as error:
                records.remove_tmp(self._spec)
                self._become(
                    self._state._replace(state=STOPPED, engine=None, last_exit=Ended(127, None, records.utc_now()))
                )
                self._announce(f"{error.filename or self._command()[0]}: {error.strerror}")
                return 1
        self._announce("")
        crashes = 0
        while True:
            self._watch()
            if self._must_stop() or not self._starts_again():
                return self._stop()
            if time.monotonic() - self._started > SOUND_AFTER_S:
                crashes = 0
            self._record_crash()
            self._rest(min(FIRST_DELAY_S * 2**crashes, LONGEST_DELAY_S))
            crashes = min(crashes + 1, 10)
            if self._must_stop():
                return self._stop()
            try:
                self._start()
            except OSError as error:
                self._log(f"--- cannot be started: {error} ---")

    def _command(self) -> list[str]:
        return records.command(self._spec, self._instance, self._spec.argv)

    def _become(self, state: State) -> None:
        self._record(state._replace(since=records.utc_now()))

    def _record(self, state: State) -> None:
        self._state = state
        if not self._is_at_home():
            return
        try:
            records.write_state(self._instance, self._state)
        except OSError as error:  # a full disk must not take the supervision away too
            _say(f"state not written: {error}")

    def _adopt(self) -> bool:
        state = records.read_state(self._instance)
        if state is None or state.boot != proc.boot_id() or not proc.alive(state.engine):
            return False
        self._log(f"--- adopted {records.utc_now()} pid {state.engine.pid if state.engine else 0} ---")
        self._record(state._replace(state=RUNNING, keeper=self._state.keeper))
        if self._state.engine is not None:
            self._kills = cgroups.Kills(self._state.engine.pid)
        return True

    def _start(self) -> None:
        """Start the engine in its own session. OSError when it cannot be."""
        try:
            self._spec = records.read_spec(self._instance) or self._spec
        except ValueError as error:
            _say(f"the spec of the last start is used: {error}")
        self._kills, self._memory_ran_out = cgroups.Kills(os.getpid()), -math.inf
        # An engine that cannot be recorded, on a full disk, must not be started.
        records.write_state(self._instance, self._state)
        files = self._instance / records.FILES
        files.mkdir(exist_ok=True)
        records.make_places(self._spec)
        taken = _who_has(self._spec.port)
        log = os.open(self._spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

        def mark() -> None:
            with contextlib.suppress(OSError):  # a full disk
                os.write(log, f"--- started {records.utc_now()} pid {os.getpid()} ---\n{taken}".encode())

        try:
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=files,
                env=records.environ(self._spec, self._instance, dict(os.environ)),
                start_new_session=True,
                preexec_fn=mark,  # the keeper has one thread, and the line must come before the engine's first
            )
        finally:
            os.close(log)
        self._started = time.monotonic()
        now = proc.stat(self._child.pid)
        engine = now.identity if now else None
        self._become(
            self._state._replace(state=RUNNING, engine=engine, port=self._spec.port, starts=self._state.starts + 1)
        )

    def _watch(self) -> None:
        """Return when the engine is gone or the keeper is asked to stop."""
        engine = self._state.engine
        if engine is None:
            return
        try:
            descriptor = os.pidfd_open(engine.pid)
        except ProcessLookupError:
            return
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            while not self._must_stop():
                # A child is a zombie until it is reaped and so cannot be a stranger; an adopted one can.
                if self._child is None and not proc.alive(engine):
                    return
                ready = {fd for fd, _ in poll.poll(LOOK_S * 1000)}
                if self._wake in ready:
                    os.read(self._wake, 512)
                if descriptor in ready:
                    return
                self._look_at_memory()
                self._rotate_log()
        finally:
            os.close(descriptor)

    def _members(self) -> list[proc.Identity]:
        if not self._is_at_home():
            return proc.members_of_deleted(self._instance, self._state.engine)
        return proc.members(self._instance, self._state.engine)

    def _look_at_memory(self) -> None:
        if not self._kills.more():
            return
        self._memory_ran_out = time.monotonic()
        if self._kills.of_group:
            # An engine may live on without a process of its own, and know no more than that it is gone.
            self._log(f"--- memory ran out {records.utc_now()}, and the kernel has ended a process ---")

    def _reap(self) -> Ended:
        """The exit of the engine that is gone; reaped last, since until then its session's number is its own."""
        code = self._child.wait() if self._child else None
        self._child = None
        if code is not None and code < 0:
            return Ended(None, -code, records.utc_now())
        return Ended(code, None, records.utc_now())

    def _record_crash(self) -> None:
        if self._state.engine is None:  # it could not even be started
            self._become(self._state._replace(state=BACKOFF, last_exit=Ended(127, None, records.utc_now())))
            return
        self._look_at_memory()
        lately = time.monotonic() - self._memory_ran_out < MEMORY_S
        if self._members():
            self._log("--- the process is gone, what it left behind is ended ---")
            proc.end(self._members, self._spec.stop_grace_s)
        ended = self._reap()
        how = f"signal {ended.signal}" if ended.signal else f"code {'unknown' if ended.code is None else ended.code}"
        # Where the whole machine is counted, whatever was ended has nothing to do with what ended by itself.
        by_kernel = ended.code is None and ended.signal in (None, signal.SIGKILL)
        if lately and (by_kernel or self._kills.of_group):
            ended, how = ended._replace(memory_limit=self._kills.limit), f"{how} for want of memory"
        self._log(f"--- ended {ended.at} {how}, nobody asked for it ---")
        self._become(self._state._replace(state=BACKOFF, engine=None, last_exit=ended))

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._must_stop() and (left := until - time.monotonic()) > 0:
            if select.select([self._wake], [], [], min(left, LOOK_S))[0]:
                os.read(self._wake, 512)

    def _stop(self) -> int:
        clean = proc.end(self._members, self._spec.stop_grace_s)
        if clean and self._state.engine is not None:
            self._reap()
        if not self._is_at_home():  # its log and its {tmp} belong to what may be there now, too
            if not self._instance.exists():
                records.remove_tmp(self._spec)
            return 1
        records.remove_tmp(self._spec)
        self._log(f"--- stopped {records.utc_now()} ---")
        self._become(self._state._replace(state=STOPPED, engine=None if clean else self._state.engine))
        return 0 if clean else 1

    def _log(self, line: str) -> None:
        try:
            with Path(self._spec.log).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            _say(f"{line} (log: {error})")

    def _rotate_log(self) -> None:
        """Copy a long log aside and empty it; the engine goes on writing to the same file (O_APPEND)."""
        log = Path(self._spec.log)
        try:
            if log.stat().st_size <= self._spec.log_limit:
                return
            for number in range(OLD_LOGS, 1, -1):
                older = Path(f"{log}.{number - 1}")
                if older.exists():
                    older.replace(f"{log}.{number}")
            with log.open("rb+") as source, Path(f"{log}.1").open("wb") as copy:
                while block := source.read(1 << 20):
                    copy.write(block)
                source.truncate(0)
        except OSError as error:
            _say(f"log not rotated: {error}")


def _who_has(port: int) -> str:
    """A line for the log when somebody else has the port, for else the engine's own complaint names nobody."""
    if proc.port_is_free(port):
        return ""
    owner = proc.port_owner(port)
    who = f"pid {owner.pid}: {proc.command_line(owner.pid)[:200]}" if owner else "a process of another user"
    return f"--- port {port} is taken by {who} ---\n"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _lock(instance: Path) -> int | None:
    """The descriptor that holds keeper.lock; None when another keeper holds it. Engines do not inherit it."""
    descriptor = os.open(instance / records.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _keep(instance: Path, spec: Spec, lock: int, adopt: bool, writer: int) -> int:

    def announce(problem: str) -> None:
        os.write(writer, problem.encode() or b"ok")
        os.close(writer)

    return Keeper(instance, spec, lock, announce).run(adopt)


def main(arguments: list[str]) -> int:
    """Fork the keeper and wait for what it announces."""
    instance = Path(arguments[0])
    lock = _lock(instance)
    if lock is None:
        _say(f"{instance} has a keeper already")
        return KEPT_ALREADY
    spec = records.read_spec(instance)
    if spec is None:
        _say(f"{instance / records.SPEC} is missing")
        return 1
    reader, writer = os.pipe()
    if os.fork() == 0:
        stderr = os.open(instance / records.KEEPER_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(stderr, 2)
        os.dup2(stderr, 1)
        os.close(stderr)
        os.close(reader)
        return _keep(instance, spec, lock, "--adopt" in arguments, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode(errors="replace")
    if answer != "ok":
        _say(answer or f"the keeper died, see {instance / records.KEEPER_LOG}")
    return 0 if answer == "ok" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
