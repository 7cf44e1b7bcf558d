"""Engine environments: virtual environments that orch makes, pins and owns, one directory each.

`installing` is written first and environment.json last: its presence means finished. Anything else is unfinished and
made again from nothing, in its final place, since scripts in bin/ hold absolute paths.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from orchestrator.core.environment import EnvironmentObserved, EnvironmentSpec
from orchestrator.core.progress import Progress
from orchestrator.drivers.files import host_errors
from orchestrator.drivers.local import proc
from orchestrator.drivers.local.command import run_command
from orchestrator.drivers.local.pip import Pip, pip_environ, without_credentials
from orchestrator.drivers.local.records import utc_now, write_atomic
from orchestrator.errors import HostError

_FINISHED, _INSTALLING = "environment.json", "installing"
_REMOVED = ".removed-"
_CHECK_TIMEOUT_S = 900.0
_GB = 10**9
_PIP_SIZE = 30_000_000


class Environments:
    """The environments under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def bin(self, name: str) -> Path:
        """The bin directory of a finished environment. HostError when it is not ready."""
        seen = self._observe(name)
        if seen.problem:
            raise HostError(
                f"Environment {name} is not ready: {seen.problem}.", "Run the same command again to make it."
            )
        return self._root / name / "bin"

    def observe(self) -> tuple[EnvironmentObserved, ...]:
        """All environments on disk, by name; reads only, and runs nothing."""
        if not self._root.is_dir():
            return ()
        names = sorted(entry.name for entry in self._root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        return tuple(self._observe(name) for name in names)

    def check(self, spec: EnvironmentSpec, progress: Progress) -> str:
        """Run the checks of a finished environment now; the problem, empty when all is well."""
        seen = self._observe(spec.name)
        if seen.problem:
            return seen.problem
        try:
            self._run_checks(spec, progress)
        except HostError as error:
            return error.message
        return ""

    def ensure(self, spec: EnvironmentSpec, progress: Progress) -> Path:
        """Have it installed and checked; its bin directory. A second caller waits for the first.

        HostError: disk, network, a package that is not there, a failing check. What was installed until then stays
        behind as unfinished, and the next ensure starts from nothing.
        """
        with host_errors(f"make {spec.name}"):
            with self._locked(spec.name, progress):
                if self._observe(spec.name).problem:
                    self._discard(spec.name)
                    self._make(spec, progress)
            return self._root / spec.name / "bin"

    def remove(self, name: str) -> None:
        """Delete an environment. HostError while somebody installs it; unknown: nothing to do."""
        with host_errors(f"remove {name}"):
            if (self._root / name).is_dir():
                with self._locked(name, None):
                    self._discard(name)

    def _observe(self, name: str) -> EnvironmentObserved:
        directory = self._root / name
        if not directory.is_dir():
            return EnvironmentObserved(name, "", "", 0, "it is not installed")
        try:
            record = json.loads((directory / _FINISHED).read_text(encoding="utf-8"))
            made_in, spec, size = record["directory"], record["spec"], int(record["size"])
            engine, version = str(spec["engine"]), str(spec["version"])
        except FileNotFoundError:
            engine, version = _who(directory / _INSTALLING)
            return EnvironmentObserved(name, engine, version, 0, "its installation was not finished")
        except (ValueError, KeyError, TypeError):
            return EnvironmentObserved(name, "", "", 0, f"{_FINISHED} is damaged")
        problem = ""
        if made_in != str(directory):
            problem = f"it was made in {made_in} and cannot be moved"
        elif not os.access(directory / "bin/python", os.X_OK):
            problem = "its Python interpreter is gone"
        return EnvironmentObserved(name, engine, version, size, problem)

    def _make(self, spec: EnvironmentSpec, progress: Progress) -> None:
        free = shutil.disk_usage(self._root).free
        if free < spec.size_gb * _GB:
            raise HostError(
                f"{spec.name} needs {spec.size_gb:g} GB of disk space, {free / _GB:.1f} GB are free in {self._root}.",
                "Free some space, or set ORCH_HOME to a directory on a larger disk.",
            )
        directory = self._root / spec.name
        directory.mkdir(parents=True)
        recorded = asdict(spec)
        del recorded["indexes"]  # they may hold a password
        write_atomic(directory / _INSTALLING, json.dumps(recorded, indent=1))
        self._make_venv(directory, progress)
        pip = Pip(
            directory,
            0 if spec.resolve else len({*spec.requirements, *spec.indexed}),
            spec.resolve,
            progress,
        )
        if spec.indexed:
            pip.install(spec.indexed, spec.indexes)
        rest = tuple(requirement for requirement in spec.requirements if requirement not in spec.indexed)
        if rest:
            pip.install(rest)
        for name, version in spec.metadata:
            _add_metadata(_site_packages(directory), name, version)
        self._run_checks(spec, progress)
        size = _size(directory)
        record = {"spec": recorded, "directory": str(directory), "created": utc_now(), "size": size}
        write_atomic(directory / _FINISHED, json.dumps(record, indent=1))
        (directory / _INSTALLING).unlink()

    def _make_venv(self, directory: Path, progress: Progress) -> None:
        finished = run_command(
            [sys.executable, "-I", "-m", "venv", str(directory)],
            pip_environ(directory),
            tick=lambda: progress("making a virtual environment", 0, 0),
        )
        if finished.code != 0:
            # venv does not pass on why pip could not be unpacked.
            if shutil.disk_usage(directory).free < _PIP_SIZE:
                raise HostError("The virtual environment cannot be made: the disk is full.", "Free some space.")
            raise HostError(
                "Python cannot make a virtual environment.",
                "Debian and Ubuntu have it in the package python3-venv.",
                without_credentials("\n".join(finished.lines[-15:])),
            )

    def _run_checks(self, spec: EnvironmentSpec, progress: Progress) -> None:
        bin_directory = self._root / spec.name / "bin"
        environ = pip_environ(bin_directory.parent)
        environ["PATH"] = f"{bin_directory}:{environ.get('PATH', os.defpath)}"
        for number, check in enumerate(spec.checks):
            command = " ".join(check)

            def tick(command: str = command, number: int = number) -> None:
                progress(f"checking: {command}", number, len(spec.checks))

            # Popen looks a bare name up on the caller's PATH where its own lacks it: the environment's comes first.
            own = bin_directory / check[0]
            argv = [str(own) if own.exists() else check[0], *check[1:]]
            try:
                finished = run_command(
                    argv,
                    environ,
                    tick=tick,
                    cwd=self._root,
                    timeout_s=_CHECK_TIMEOUT_S,
                )
            except OSError as error:
                raise HostError(f"Environment {spec.name}: `{command}` cannot be started: {error.strerror}.") from error
            if finished.code != 0:
                how = "did not finish" if finished.code is None else f"failed with code {finished.code}"
                how = finished.out_of_memory or how
                raise HostError(
                    f"Environment {spec.name} does not work: `{command}` {how}.",
                    "The detail is the end of its output; the pin of this engine may not fit this machine.",
                    without_credentials("\n".join(finished.lines[-20:])),
                )

    def _discard(self, name: str) -> None:
        """Move the directory away, then delete it: what is half deleted must not look finished."""
        directory = self._root / name
        # The pip of an installer that was killed lives on, and would write into the next environment of this name.
        if not proc.end(lambda: proc.members(directory, None), 3):
            raise HostError(
                f"An earlier installation of {name} cannot be ended.", "It may hang in the kernel: see dmesg."
            )
        if directory.exists():
            directory.rename(self._root / f"{_REMOVED}{name}-{time.time_ns()}")
        for leftover in self._root.glob(f"{_REMOVED}{name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str, progress: Progress | None) -> Iterator[None]:
        """The lock of one environment; waits as long as `progress` lets it, without one not at all."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if progress is None:
                        raise HostError(f"Environment {name} is being installed.", "Wait for it, or end it.") from None
                    progress(f"waiting for another installation of {name}", 0, 0)
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)


def _who(marker: Path) -> tuple[str, str]:
    try:
        spec = json.loads(marker.read_text(encoding="utf-8"))
        return str(spec["engine"]), str(spec["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", ""


def _site_packages(directory: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return directory / "lib" / version / "site-packages"


def _add_metadata(site_packages: Path, name: str, version: str) -> None:
    """A distribution that has a name and a version and no files, as pip would record it."""
    info = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: orch\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "INSTALLER": "orch\n",
    }
    rows = []
    for filename, text in contents.items():
        (info / filename).write_text(text, encoding="utf-8")
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{info.name}/{filename},sha256={digest},{len(text.encode())}\n")
    (info / "RECORD").write_text("".join(rows) + f"{info.name}/RECORD,,\n", encoding="utf-8")


def _size(directory: Path) -> int:
    total = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            total += (Path(parent) / file).lstat().st_size
    return total
