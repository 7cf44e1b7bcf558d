"""The local target: engines and the gateway as processes of this machine, each with its own keeper."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.core.launch import SECRET, Exit, Instance, InstanceState, Launch, Usage, out_of_memory
from orchestrator.core.progress import Progress
from orchestrator.drivers import ports
from orchestrator.drivers.children import children_of
from orchestrator.drivers.files import host_errors
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.command import allowed_environ
from orchestrator.drivers.local.logs import Logs
from orchestrator.drivers.local.proc import Identity
from orchestrator.drivers.local.records import Ended, Record, Spec, State
from orchestrator.drivers.secrets import EngineSecrets
from orchestrator.errors import HostError

LOG_LIMIT = 20_000_000
_REMOVED = ".removed-"
_KEEPER = "orchestrator.drivers.local.keeper"


class LocalTarget:
    """Processes under `root`, a directory per instance, logs under `logs`.

    `environments` tells the bin directory of an engine environment (HostError when it is not there); `python` is the
    interpreter for `{python}` and for the keepers; `cache` is for `{cache}`, `cache` beside `root` if None. Secrets
    lie in `secrets` beside it, those of other targets too.
    """

    name = "local"

    def __init__(
        self,
        root: Path,
        logs: Path,
        environments: Callable[[str], Path],
        python: str,
        log_limit: int = LOG_LIMIT,
        cache: Path | None = None,
    ) -> None:
        self._root = root.resolve()
        self._logs = Logs(logs.resolve())
        self._environments = environments
        self._python = python
        self._log_limit = log_limit
        self._cache = (cache or self._root.parent / "cache").resolve()
        self._secrets = EngineSecrets(self._root.parent / "secrets")

    def observe(self) -> tuple[Instance, ...]:
        """Every instance as it is now, by name, also one whose record is damaged. Reads only."""
        return tuple(seen for name in self._names() if (seen := self._observe(name)) is not None)

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        """Have it run; returns once it is spawned (not: ready). Decides from what is there now.

        HostError when it runs with another launch or a damaged record, its fixed port is taken, or it cannot be
        started.
        """
        with host_errors(f"start {name}"):
            directory = self._directory(name)
            spec, state, problem = record = self._read(directory)
            if problem and any(_living(directory, record)):
                raise _damaged(name, problem)
            if spec is not None and state is not None and proc.alive(state.engine):
                if _launch(spec) != launch:
                    raise HostError(f"{name} already runs, with other settings.", "Stop it first, then start it again.")
                if (spec.label, spec.restart) != (label, True):
                    records.write_spec(directory, spec._replace(label=label, restart=True))
                if not _keeper_lives(state):
                    self._start_keeper(name, "--adopt")
            else:
                if state is not None and _keeper_lives(state):  # it waits to restart what crashed: start over instead
                    self._stop_keeper(state.keeper, launch.stop_grace_s, lambda: None)
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
            made = self._make_spec(name, launch, label, launch.port or spec.port)
            records.write_spec(directory, made._replace(tmp=spec.tmp or made.tmp))

    def release(self, name: str) -> None:
        """Let its process end by itself: its keeper does not start it again. `ensure` takes that back."""
        with host_errors(f"rewrite the record of {name}"):
            records.write_spec(self._directory(name), self._spec(name)._replace(restart=False))

    def write_file(self, name: str, filename: str, text: str) -> None:
        """Put a file into the instance's directory (`{dir}`); the instance need not exist yet."""
        with host_errors(f"write {filename} of {name}"):
            self._make_directory(name)
            records.write_atomic(self.file_path(name, filename), text)

    def remove_file(self, name: str, filename: str) -> None:
        """Remove a file from the instance's directory, if it is there."""
        with host_errors(f"remove {filename} of {name}"):
            self.file_path(name, filename).unlink(missing_ok=True)

    def file_path(self, name: str, filename: str) -> Path:
        """Where `write_file` puts it."""
        return self._directory(name) / records.FILES / filename

    def stop(self, name: str, progress: Progress) -> None:
        """End it and everything it started; returns when all of it is gone. Stopped or unknown: nothing to do.

        Interrupted by `progress`, the end goes on by itself where a keeper does it.
        """
        with host_errors(f"stop {name}"):
            directory = self._directory(name)
            record = self._read(directory)
            if record.spec is None:
                return
            with self._ended(name, record, lambda: progress(f"stopping {name}", 0, 0)):
                state = self._read(directory).state
                if state is not None and state.state != records.STOPPED:
                    stopped = state._replace(state=records.STOPPED, since=records.utc_now(), engine=None)
                    records.write_state(directory, stopped)

    def remove(self, name: str) -> None:
        """Delete a stopped instance's directory and end what may be left of it; its log stays. Unknown: nothing.

        HostError when it still runs, unless its record is damaged.
        """
        with host_errors(f"remove {name}"):
            directory = self._directory(name)
            if directory.exists():
                record = self._read(directory)
                if not record.problem and any(_living(directory, record)):
                    raise HostError(f"{name} still runs.", "Stop it before it is removed.")
                with self._ended(name, record, lambda: None):
                    self._secrets.remove(name)
                    # Renamed first: a directory that is half deleted must not look like an instance.
                    directory.rename(self._root / f"{_REMOVED}{name}-{time.time_ns()}")
            for leftover in self._root.glob(f"{_REMOVED}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._logs.prune(self._names())

    def usage(self, instance: Instance) -> Usage:
        """See Target. Pages that its processes share count for each of them."""
        if instance.state is not InstanceState.RUNNING:
            return Usage()
        with host_errors(f"read what {instance.name} takes"):
            directory = self._directory(instance.name)
            state = self._read(directory).state
            pids = tuple(one.pid for one in proc.members(directory, state.engine if state is not None else None))
            return Usage(sum(map(proc.resident, pids)), pids)

    def log_path(self, name: str) -> Path:
        """Where the output of all its starts goes."""
        return self._logs.path(name)

    def log_tail(self, name: str, lines: int) -> str:
        """The last lines of its latest start; empty when there is no log."""
        return "\n".join(self._logs.tail(name, lines))

    def log(self, name: str, lines: int, going_on: Callable[[], bool]) -> Iterator[str] | None:
        """See Target."""
        return self._logs.lines(name, lines, going_on) if self._logs.path(name).is_file() else None

    def logs(self) -> tuple[str, ...]:
        """The names of all that there is a log of."""
        return self._logs.names()

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

    def _read(self, directory: Path) -> Record:
        with host_errors(f"read what is recorded of {directory.name}"):
            record = records.read(directory)
        if record.state is not None and record.state.boot != proc.boot_id():
            return record._replace(state=record.state._replace(keeper=None, engine=None))
        return record

    def _spec(self, name: str) -> Spec:
        spec, _, problem = self._read(self._directory(name))
        if spec is None:
            raise HostError(f"There is no local process named {name}.")
        if problem:
            raise _damaged(name, problem)
        return spec

    def _observe(self, name: str) -> Instance | None:
        spec, state, problem = record = self._read(self._directory(name))
        if spec is None:
            return None
        kept, lives = _living(self._directory(name), record)
        pid = state.engine.pid if lives and state is not None and state.engine else None
        return Instance(
            name=name,
            state=InstanceState.RUNNING if lives else InstanceState.BACKOFF if kept else InstanceState.STOPPED,
            supervised=kept and spec.restart,
            launch=_launch(spec),
            label=spec.label,
            port=(state.port if state is not None else None) or spec.port or None,
            pid=pid,
            since=state.since if state is not None else None,
            starts=state.starts if state is not None else 0,
            last_exit=_exit(state.last_exit) if state is not None and state.last_exit else None,
            problem=problem,
            secret=self._secrets.read(name),
            children=children_of(pid),
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
            tmp=str(self._tmp(name)),
            cache=str(self._cache),
            secret=str(self._secrets.ensure(name)) if any(SECRET in value for _, value in launch.env) else "",
        )

    def _tmp(self, name: str) -> Path:
        """`{tmp}`, the same for one directory at all times. Short: a unix socket's path may have 107 bytes."""
        place = hashlib.sha256(os.fsencode(self._directory(name))).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"{records.TMP_PREFIX}{os.getuid()}-{place}"

    def _start(self, name: str, launch: Launch, label: str, before: Spec | None) -> None:
        directory = self._directory(name)
        self._make_directory(name)
        self._logs.create(name)
        with self._locked(name):
            # Strays: a keeper that was killed between the spawn and the record of it, or an engine's orphans.
            self._end_all(name, self._read(directory).state, launch.stop_grace_s, lambda: None)
            if before is not None:
                records.remove_tmp(before)  # TMPDIR may have changed since
            else:
                self._secrets.remove(name)  # a kill may have left that of another by this name
            port = self._choose_port(launch, before)
            records.write_spec(directory, self._make_spec(name, launch, label, port))
        self._start_keeper(name)

    def _choose_port(self, launch: Launch, before: Spec | None) -> int:
        if launch.port is not None:
            if not proc.port_is_free(launch.port):
                raise ports.taken(launch.port)
            return launch.port
        if before is not None and before.fixed_port is None and proc.port_is_free(before.port):
            return before.port
        specs = (self._read(self._directory(name)).spec for name in self._names())
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

    def _stop_keeper(self, keeper: Identity | None, grace_s: float, tick: Callable[[], None]) -> None:
        if keeper is None or not proc.ask_to_end(keeper):
            return
        deadline = time.monotonic() + grace_s + 30
        while proc.alive(keeper):
            if time.monotonic() > deadline:
                proc.send(keeper, signal.SIGKILL)
            tick()
            time.sleep(0.02)

    @contextlib.contextmanager
    def _ended(self, name: str, record: Record, tick: Callable[[], None]) -> Iterator[None]:
        """Keeper, engine and strays are gone, and no keeper starts meanwhile."""
        directory = self._directory(name)
        grace_s = record.spec.stop_grace_s if record.spec is not None else records.DEFAULT_GRACE_S
        for keeper in _keepers(directory, record):
            self._stop_keeper(keeper, grace_s, tick)
        with self._locked(name):
            self._end_all(name, self._read(directory).state, grace_s, tick)
            if record.spec is not None:
                records.remove_tmp(record.spec if record.spec.tmp else record.spec._replace(tmp=str(self._tmp(name))))
            yield

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
                            f"{name} is being started or stopped by another command.", "Wait, then run it again."
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _keeper_lives(state: State) -> bool:
    """A keeper that has recorded the end of its work is about to exit: it keeps nothing any more."""
    return state.state != records.STOPPED and proc.alive(state.keeper)


def _keepers(directory: Path, record: Record) -> list[Identity]:
    """The living keepers, from the record; from their command lines when it cannot tell."""
    if record.state is not None:
        return [record.state.keeper] if record.state.keeper and _keeper_lives(record.state) else []
    return proc.started_with(_KEEPER, str(directory)) if record.problem else []


def _living(directory: Path, record: Record) -> tuple[bool, bool]:
    """Whether its keeper lives, and whether its engine does (anything of it, when the record cannot tell)."""
    lives = bool(record.problem and proc.members(directory, None))
    if record.state is not None:
        lives = proc.alive(record.state.engine)
    return bool(_keepers(directory, record)), lives


def _launch(spec: Spec) -> Launch:
    return Launch(spec.argv, spec.env, spec.environment, spec.stop_grace_s, spec.fixed_port)


def _exit(ended: Ended) -> Exit:
    code, signal_number, at, limit = ended
    return Exit(code, signal_number, at) if limit is None else out_of_memory(code, signal_number, at, limit)


def _damaged(name: str, problem: str) -> HostError:
    return HostError(
        f"The record of {name} is damaged, and it still runs: {problem}.",
        "Stop it first (orch down --all), then run the same command again.",
    )
