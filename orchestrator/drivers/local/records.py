"""The two files of an instance directory, and how a command is made of them.

spec.json is what is asked for: only LocalTarget writes it. state.json is what became of it: only the holder of
keeper.lock writes it. Imports stay small, because every keeper carries them.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.drivers.local.proc import MARKER, Identity

SPEC, STATE, LOCK, KEEPER_LOG, FILES = "spec.json", "state.json", "keeper.lock", "keeper.log", "files"
RUNNING, BACKOFF, STOPPED = "running", "backoff", "stopped"


class Spec(NamedTuple):
    """What to keep running; `port` is the one chosen, `bin` the environment's, `log` where the output goes."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    environment: str | None
    stop_grace_s: float
    fixed_port: int | None
    label: str
    port: int
    bin: str | None
    python: str
    log: str
    log_limit: int


class Ended(NamedTuple):
    """How a process ended; code and signal are both None when nobody could know (an adopted process)."""

    code: int | None
    signal: int | None
    at: str


class State(NamedTuple):
    """What became of it; the identities mean nothing on another boot than `boot`."""

    state: str
    since: str
    boot: str
    keeper: Identity | None = None
    engine: Identity | None = None
    port: int | None = None
    starts: int = 0
    last_exit: Ended | None = None


def utc_now() -> str:
    """Now, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that it is seen whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_spec(instance: Path, spec: Spec) -> None:
    """Put spec.json in place."""
    write_atomic(instance / SPEC, json.dumps(spec._asdict(), indent=1))


def read_spec(instance: Path) -> Spec | None:
    """The instance's spec; None when there is none. ValueError when it is not one."""
    fields = _read(instance / SPEC)
    if fields is None:
        return None
    try:
        fields["argv"] = tuple(fields["argv"])
        fields["env"] = tuple((key, value) for key, value in fields["env"])
        return Spec(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{instance / SPEC}: {error}") from error


def write_state(instance: Path, state: State) -> None:
    """Put state.json in place."""
    write_atomic(instance / STATE, json.dumps(state._asdict()))


def read_state(instance: Path) -> State | None:
    """The instance's state; None when nothing was started yet. ValueError when it is not one."""
    fields = _read(instance / STATE)
    if fields is None:
        return None
    try:
        for key, kind in (("keeper", Identity), ("engine", Identity), ("last_exit", Ended)):
            fields[key] = kind(*fields[key]) if fields[key] is not None else None
        return State(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{instance / STATE}: {error}") from error


def _read(path: Path) -> dict[str, Any] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not an object")
    return fields


def command(spec: Spec, instance: Path, argv: tuple[str, ...]) -> list[str]:
    """argv with `{port}`, `{dir}` and `{python}` filled in, and a bare argv[0] taken from the environment's bin/."""
    filled = [_filled(word, spec, instance) for word in argv]
    if spec.bin is not None and "/" not in filled[0]:
        filled[0] = f"{spec.bin}/{filled[0]}"
    return filled


def environ(spec: Spec, instance: Path, base: dict[str, str]) -> dict[str, str]:
    """The process's environment: `base` (already allow-listed), bin/ first on PATH, the spec's own, the marker."""
    result = dict(base)
    if spec.bin is not None:
        result["PATH"] = f"{spec.bin}:{base.get('PATH', os.defpath)}"
        result["VIRTUAL_ENV"] = str(Path(spec.bin).parent)
    result.update((name, _filled(value, spec, instance)) for name, value in spec.env)
    result[MARKER] = str(instance)
    return result


def _filled(text: str, spec: Spec, instance: Path) -> str:
    values = {"{port}": str(spec.port), "{dir}": str(instance / FILES), "{python}": spec.python}
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)  # not str.format: the text may be JSON
    return text
