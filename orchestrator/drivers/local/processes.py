"""The local target: engines and the gateway as processes of this machine, each with its own keeper."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.core.launch import Exit, Instance, InstanceState, Launch
from orchestrator.core.progress import Progress
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.command import allowed_environ, run_command
from orchestrator.drivers.local.failures import host_errors
from orchestrator.drivers.local.logs import Logs
from orchestrator.drivers.local.records import Spec, State
from orchestrator.errors import HostError

LOG_LIMIT = 20_000_000
_REMOVED = ".removed-"
_KEEPER = "orchestrator.drivers.local.keeper"


class LocalTarget:
    """Processes under `root`, a directory per instance, logs under `logs`.

    `environments` tells the bin directory of an engine environment (HostError when it is not there); `python` is the
    interpreter for `{python}` and for the keepers.
    """

    name = "local"

    def __init__(
        self,
        root: Path,
        logs: Path,
        environments: Callable[[str], Path],
        python: str,
        log_limit: int = LOG_LIMIT,
    ) -> None:
        self._root = root.resolve()
        self._logs = Logs(logs.resolve())
        self._environments = environments
        self._python = python
        self._log_limit = log_limit

    def observe(self) -> tuple[Instance, ...]:
        """Every instance as it is now, by name. Reads only."""
        return tuple(seen for name in self._names() if (seen := self._observe(name)) is not None)

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        """Have it run; returns once it is spawned (not: ready). Decides from what is there now.

        HostError when it runs with another launch, its fixed port is taken, or it cannot be started.
        """
        with host_errors(f"start {name}"):
            directory = self._directory(name)
            spec, state = self._read(directory)
            if spec is not None and state is not None and _engine_lives(state):
                if _launch(spec) != launch:
                    raise HostError(f"{name} runs already, with other settings.", "Stop it first, then start it again.")
                if spec.label != label:
                    records.write_spec(directory, spec._replace(label=label))
                if not _keeper_lives(state):
                    self._start_keeper(name, "--adopt")
            else:
                if state is not None and _keeper_lives(state):  # it waits to restart what crashed: start over instead
                    self._stop_keeper(state, launch.stop_grace_s, lambda: None)
                self._start(name, launch, label, spec)
            seen = self._observe(name)
            if seen is None:
                raise HostError(f"{name} was removed while it was started.", "Run the same command again.")
            return seen

    def relabel(self, name: str, launch: Launch, label: str) -> None:
        """Rewrite what the next restart starts, and the label, without a restart now. The port stays."""
        with host_errors(f"rewrite the record of {name}"):
            directory = self._directory(name)
            spec = self._spec(name)
            records.write_spec(directory, self._make_spec(name, launch, label, launch.port or spec.port))

    def write_file(self, name: str, filename: str, text: str) -> None:
        """Put a file into the instance's directory (`{dir}`); the instance need not exist yet."""
        with host_errors(f"write {filename} of {name}"):
            self._make_directory(name)
            records.write_atomic(self.file_path(name, filename), text)

    def file_path(self, name: str, filename: str) -> Path:
        """Where `write_file` puts it."""
        return self._directory(name) / records.FILES / filename

    def stop(self, name: str, progress: Progress) -> None:
        """End it and everything it started; returns when all of it is gone. Stopped or unknown: nothing to do.

        Interrupted by `progress`, the end goes on by itself where a keeper does it.
        """
        with host_errors(f"stop {name}"):
            directory = self._directory(name)
            spec, state = self._read(directory)
            if spec is None:
                return

            def tick() -> None:
                progress(f"stopping {name}", 0, 0)

            if state is not None and _keeper_lives(state):
                self._stop_keeper(state, spec.stop_grace_s, tick)
            with self._locked(name):
                _, state = self._read(directory)
                self._end_all(name, state, spec.stop_grace_s, tick)
                if state is not None and state.state != records.STOPPED:
                    stopped = state._replace(state=records.STOPPED, since=records.utc_now(), engine=None)
                    records.write_state(directory, stopped)

    def remove(self, name: str) -> None:
        """Delete a stopped instance's directory; its log stays. HostError when it still runs; unknown: nothing."""
        with host_errors(f"remove {name}"):
            directory = self._directory(name)
            if directory.exists():
                _, state = self._read(directory)
                if state is not None and (_engine_lives(state) or _keeper_lives(state)):
                    raise HostError(f"{name} still runs.", "Stop it before it is removed.")
                with self._locked(name):
                    # Renamed first: a directory that is half deleted must not look like an instance.
                    directory.rename(self._root / f"{_REMOVED}{name}-{time.time_ns()}")
            for leftover in self._root.glob(f"{_REMOVED}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._logs.prune(self._names())

    def log_path(self, name: str) -> Path:
        """Where the output of all its starts goes."""
        return self._logs.path(name)

    def log_tail(self, name: str, lines: int) -> str:
        """The last lines of its latest start; empty when there is no log."""
        return "\n".join(self._logs.tail(name, lines))

    def execute(self, name: str, argv: tuple[str, ...], timeout_s: float, progress: Progress) -> str:
        """Run a command beside the instance: its environment, its placeholders. Returns the output.

        HostError when it cannot be started, fails or takes longer than `timeout_s`.
        """
        directory = self._directory(name)
        spec = self._spec(name)
        words = records.command(spec, directory, argv)
        told = " ".join(words[:3])
        try:
            finished = run_command(
                words,
                records.environ(spec, directory, allowed_environ()),
                tick=lambda: progress(told, 0, 0),
                cwd=directory,
                timeout_s=timeout_s,
            )
        except OSError as error:
            raise HostError(f"{words[0]} cannot be started: {error.strerror}.") from error
        tail = "\n".join(finished.lines[-30:])
        if finished.code is None:
            raise HostError(f"{told} did not finish within {timeout_s:.0f} s and was ended.", detail=tail)
        if finished.code != 0:
            raise HostError(f"{told} failed with code {finished.code}.", detail=tail)
        return "\n".join(finished.lines)

    def _directory(self, name: str) -> Path:
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"not an instance's name: {name!r}")
        return self._root / name

    def _make_directory(self, name: str) -> None:
        """The instance's directory and its files/; for this user only, since a launch may hold keys."""
        directory = self._directory(name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / records.FILES).mkdir(exist_ok=True)

    def _names(self) -> list[str]:
        if not self._root.is_dir():
            return []
        return sorted(entry.name for entry in self._root.iterdir() if not entry.name.startswith("."))

    def _read(self, directory: Path) -> tuple[Spec | None, State | None]:
        try:
            state = records.read_state(directory)
            if state is not None and state.boot != proc.boot_id():
                state = state._replace(keeper=None, engine=None)
            return records.read_spec(directory), state
        except ValueError as error:
            raise HostError(
                f"The record of a local process is damaged: {error}.",
                f"Stop what it belongs to and delete {directory}.",
            ) from error

    def _spec(self, name: str) -> Spec:
        spec, _ = self._read(self._directory(name))
        if spec is None:
            raise HostError(f"There is no local process named {name}.")
        return spec

    def _observe(self, name: str) -> Instance | None:
        spec, state = self._read(self._directory(name))
        if spec is None:
            return None
        if state is None:
            return Instance(name, InstanceState.STOPPED, False, _launch(spec), spec.label, spec.port)
        kept, lives = _keeper_lives(state), _engine_lives(state)
        now = InstanceState.RUNNING if lives else InstanceState.BACKOFF if kept else InstanceState.STOPPED
        return Instance(
            name=name,
            state=now,
            supervised=kept,
            launch=_launch(spec),
            label=spec.label,
            port=state.port or spec.port,
            pid=state.engine.pid if lives and state.engine else None,
            since=state.since,
            starts=state.starts,
            last_exit=Exit(*state.last_exit) if state.last_exit else None,
        )

    def _make_spec(self, name: str, launch: Launch, label: str, port: int) -> Spec:
        return Spec(
            argv=launch.argv,
            env=launch.env,
            environment=launch.environment,
            stop_grace_s=launch.stop_grace_s,
            fixed_port=launch.port,
            label=label,
            port=port,
            bin=str(self._environments(launch.environment)) if launch.environment is not None else None,
            python=self._python,
            log=str(self._logs.path(name)),
            log_limit=self._log_limit,
        )

    def _start(self, name: str, launch: Launch, label: str, before: Spec | None) -> None:
        directory = self._directory(name)
        self._make_directory(name)
        self._logs.create(name)
        with self._locked(name):
            _, state = self._read(directory)
            # Strays: a keeper that was killed between the spawn and the record of it, or an engine's orphans.
            self._end_all(name, state, launch.stop_grace_s, lambda: None)
            port = self._choose_port(launch, before)
            records.write_spec(directory, self._make_spec(name, launch, label, port))
        self._start_keeper(name)

    def _choose_port(self, launch: Launch, before: Spec | None) -> int:
        if launch.port is not None:
            if not proc.port_is_free(launch.port):
                raise _port_taken(launch.port)
            return launch.port
        if before is not None and before.fixed_port is None and proc.port_is_free(before.port):
            return before.port
        specs = (self._read(self._directory(name))[0] for name in self._names())
        return proc.free_port(frozenset(spec.port for spec in specs if spec is not None))

    def _start_keeper(self, name: str, *options: str) -> None:
        """Returns when the keeper has written its first state."""
        answer = subprocess.run(
            [self._python, "-I", "-m", _KEEPER, str(self._directory(name)), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=allowed_environ(),
            cwd="/",
            start_new_session=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            why = answer.stderr.strip()
            raise HostError(f"{name} cannot be started: {why}.", "Is the program installed and executable?")

    def _stop_keeper(self, state: State, grace_s: float, tick: Callable[[], None]) -> None:
        keeper = state.keeper
        if keeper is None or not proc.send(keeper, signal.SIGTERM):
            return
        deadline = time.monotonic() + grace_s + 30
        while proc.alive(keeper):
            if time.monotonic() > deadline:
                proc.send(keeper, signal.SIGKILL)
            tick()
            time.sleep(0.02)

    def _end_all(self, name: str, state: State | None, grace_s: float, tick: Callable[[], None]) -> None:
        directory = self._directory(name)
        leader = state.engine if state is not None else None
        if not proc.end(lambda: proc.members(directory, leader), grace_s, tick):
            left = ", ".join(str(identity.pid) for identity in proc.members(directory, leader))
            raise HostError(f"Processes of {name} cannot be ended: {left}.", "They may hang in the kernel: see dmesg.")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """keeper.lock, so that no keeper starts meanwhile."""
        descriptor = os.open(self._directory(name) / records.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise HostError(
                            f"{name} is being started or stopped by somebody else.", "Wait, then run it again."
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _engine_lives(state: State) -> bool:
    return proc.alive(state.engine)


def _keeper_lives(state: State) -> bool:
    """A keeper that has recorded the end of its work is about to exit: it keeps nothing any more."""
    return state.state != records.STOPPED and proc.alive(state.keeper)


def _launch(spec: Spec) -> Launch:
    return Launch(spec.argv, spec.env, spec.environment, spec.stop_grace_s, spec.fixed_port)


def _port_taken(port: int) -> HostError:
    owner = proc.port_owner(port)
    if owner is None:
        return HostError(f"Port {port} is taken or not allowed.", "Choose another port, or end what listens there.")
    return HostError(
        f"Port {port} is taken by pid {owner.pid}: {proc.command_line(owner.pid)[:200]}",
        "End that program, or choose another port.",
    )
