"""The two files of an instance directory, and how a command is made of them.

spec.json is what is asked for: only LocalTarget writes it. state.json is what became of it: only the holder of
keeper.lock writes it. Imports stay small, because every keeper carries them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.drivers import cgroups
from orchestrator.drivers.local.proc import MARKER, Identity

SPEC, STATE, LOCK, KEEPER_LOG, FILES = "spec.json", "state.json", "keeper.lock", "keeper.log", "files"
RUNNING, BACKOFF, STOPPED = "running", "backoff", "stopped"
DEFAULT_GRACE_S = 10.0
TMP_PREFIX = "orch-"


class Spec(NamedTuple):
    """What to keep running; `port` is the one chosen, `bin` the environment's, `log` where the output goes.

    A field that comes later has a default, so that the records of the version before can be read.
    """

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
    tmp: str = ""
    cache: str = ""
    # False: what ends by itself stays ended.
    restart: bool = True
    # The file with what {secret} stands for.
    secret: str = ""


class Ended(NamedTuple):
    """How a process ended; code and signal are both None when nobody could know (an adopted process).

    `memory_limit` is not None when the kernel ended it, or a part of it, for want of memory: the bytes that there were,
    or 0 where no limit was set but by the machine.
    """

    code: int | None
    signal: int | None
    at: str
    memory_limit: int | None = None


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


_SPEC_KINDS = {
    "argv": list, "env": list, "environment": str | None, "stop_grace_s": int | float, "fixed_port": int | None,
    "label": str, "port": int, "bin": str | None, "python": str, "log": str, "log_limit": int, "tmp": str, "cache": str,
    "restart": bool, "secret": str,
}  # fmt: skip
_STATE_KINDS = {
    "state": str, "since": str, "boot": str, "keeper": list | None, "engine": list | None, "port": int | None,
    "starts": int, "last_exit": list | None,
}  # fmt: skip


class Record(NamedTuple):
    """All that can be read of an instance; `problem` says what is wrong with its files, empty when nothing is.

    With a problem, `spec` holds what could be read and else nothing, and `state` is None where nobody can know.
    """

    spec: Spec | None
    state: State | None
    problem: str = ""


def utc_now() -> str:
    """Now, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_atomic(path: Path, text: str) -> None:
    """Write a file, for this user only, so that it is seen whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_spec(instance: Path, spec: Spec) -> None:
    """Put spec.json in place."""
    write_atomic(instance / SPEC, json.dumps(spec._asdict(), indent=1))


def read_spec(instance: Path) -> Spec | None:
    """The instance's spec; None when there is none. ValueError when it is not one."""
    fields = _read(instance / SPEC)
    return None if fields is None else _spec(fields, instance / SPEC)


def write_state(instance: Path, state: State) -> None:
    """Put state.json in place."""
    write_atomic(instance / STATE, json.dumps(state._asdict()))


def read_state(instance: Path) -> State | None:
    """The instance's state; None when nothing was started yet. ValueError when it is not one."""
    where = instance / STATE
    fields = _read(where)
    if fields is None:
        return None
    known = _known(fields, State, _STATE_KINDS, where)
    for key, kind in (("keeper", Identity), ("engine", Identity), ("last_exit", Ended)):
        known[key] = _tuple(known.get(key), kind, f"{where}: {key}")
    return State(**known)


def read(instance: Path) -> Record:
    """Both files, whatever they hold: nothing about them is an error here, but that they are another user's.

    Raises PermissionError.
    """
    spec, problems = None, []
    try:
        state = read_state(instance)
    except PermissionError:
        raise
    except (ValueError, OSError) as error:
        state = None
        problems.append(str(error))
    try:
        spec = read_spec(instance)
        # Looked at once more: it may have been removed since the state was read.
        if spec is None and (state is not None or problems) and (instance / STATE).exists():
            problems.append(f"{instance / SPEC} is missing")
    except PermissionError:
        raise
    except (ValueError, OSError) as error:
        problems.append(str(error))
    if problems and spec is None:
        spec = _what_is_there(instance)
    return Record(spec, state, "; ".join(problems))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not an object")
    return fields


def _known(fields: dict[str, Any], kind: type[Spec | State], kinds: dict[str, Any], where: Path) -> dict[str, Any]:
    """The fields of `kind`, without what a newer version wrote besides. ValueError when one is missing or is odd."""
    for name in kind._fields:
        if name not in fields and name not in kind._field_defaults:
            raise ValueError(f"{where}: {name} is missing")
        if name in fields and not isinstance(fields[name], kinds[name]):
            raise ValueError(f"{where}: {name} is {fields[name]!r:.50}")
    return {name: fields[name] for name in kind._fields if name in fields}


def _tuple(values: Any, kind: Any, where: str) -> Any:
    """An Identity or an Ended; None for None."""
    try:
        made = kind(*values) if values is not None else None
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
    if isinstance(made, Identity) and not all(isinstance(number, int) for number in values):
        raise ValueError(f"{where}: no process is {values!r:.50}")
    return made


def _spec(fields: dict[str, Any], where: Path) -> Spec:
    known = _known(fields, Spec, _SPEC_KINDS, where)
    try:
        known["env"] = tuple((key, value) for key, value in known["env"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: env: {error}") from error
    known["argv"] = tuple(known["argv"])
    texts = (*known["argv"], *(text for pair in known["env"] for text in pair))
    if not known["argv"] or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: argv and env have to be text")
    return Spec(**known)


def _what_is_there(instance: Path) -> Spec:
    """The fields of a damaged spec.json that are sound by themselves, over a spec that says nothing."""
    spec = Spec((), (), None, DEFAULT_GRACE_S, None, "", 0, None, "", "", 0)
    try:
        fields = _read(instance / SPEC) or {}
    except (ValueError, OSError):
        return spec
    sound = ("label", "environment", "stop_grace_s", "port", "tmp")
    there = {key: fields[key] for key in sound if key in fields and isinstance(fields[key], _SPEC_KINDS[key])}
    return spec._replace(**there)


def command(spec: Spec, instance: Path, argv: tuple[str, ...]) -> list[str]:
    """argv with the placeholders (see Launch) filled in, and a bare argv[0] taken from the environment's bin/."""
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
    values = {
        "{port}": str(spec.port),
        "{dir}": str(instance / FILES),
        "{python}": spec.python,
        "{tmp}": spec.tmp,
        "{cache}": spec.cache,
        "{secret}": "",
    }
    if "{threads}" in text:
        values["{threads}"] = str(cgroups.threads(cgroups.usable_cpus()))
    if "{secret}" in text and spec.secret:
        # Whoever asks reads the same file: where it is gone, nothing is asked for.
        with contextlib.suppress(OSError):
            values["{secret}"] = Path(spec.secret).read_text("ascii").strip()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)  # not str.format: the text may be JSON
    return text


def make_places(spec: Spec) -> None:
    """Have an empty `{tmp}`, for this user only, and a `{cache}`. OSError when there cannot be one."""
    if spec.cache:
        Path(spec.cache).mkdir(mode=0o700, parents=True, exist_ok=True)
    if spec.tmp:
        tmp = Path(spec.tmp)
        try:
            tmp.mkdir(mode=0o700)
        except FileExistsError:
            # Everybody may make names in /tmp: one that is a link or somebody else's is not used.
            if not _is_ours(tmp):
                raise PermissionError(errno.EPERM, "it is there, but is not this user's directory", spec.tmp) from None
            tmp.chmod(0o700)
            _empty(tmp)


def remove_tmp(spec: Spec) -> None:
    """Delete `{tmp}` with all that is in it, as far as it is this user's."""
    tmp = Path(spec.tmp)
    if spec.tmp and _is_ours(tmp):
        with contextlib.suppress(OSError):  # somebody works in it; it is emptied at the next start
            _empty(tmp)
            tmp.rmdir()


def _is_ours(tmp: Path) -> bool:
    try:
        status = tmp.lstat()
    except FileNotFoundError:
        return False
    # The name too: what is about to be deleted was read from a file.
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and tmp.name.startswith(TMP_PREFIX)


def _empty(directory: Path) -> None:
    """Delete what is in it; links are not followed. No shutil: every keeper would carry it."""
    for place, directories, files in os.walk(directory, topdown=False):
        for name in files:
            Path(place, name).unlink(missing_ok=True)
        for name in directories:
            inside = Path(place, name)
            if inside.is_symlink():
                inside.unlink()
            else:
                inside.rmdir()
