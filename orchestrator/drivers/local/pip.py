"""pip in an environment of its own: what it is given, how it tells where it is, what its failures mean."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from orchestrator.core.progress import Progress
from orchestrator.drivers.local.command import allowed_environ, run_command
from orchestrator.drivers.local.proc import MARKER
from orchestrator.errors import HostError

_NETWORK_PREFIXES = ("PIP_", "XDG_")
_NETWORK = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "NETRC"}
_NOISE = (
    "Collecting ",
    "Processing ",
    "Downloading ",
    "Using cached ",
    "Looking in ",
    "Requirement already",
    "[notice]",
    "WARNING: ",
)

# What pip says, what it means and what to do; the first that is found counts. An index that cannot be reached ends in
# "No matching distribution" too, so it is looked for before.
_DISK_FULL = ("the disk is full", "Free some space.")
_MEANINGS = (
    (("No space left on device", "Disk quota exceeded"), _DISK_FULL),
    (
        (
            "after connection broken", "NewConnectionError", "ConnectTimeoutError", "Read timed out", "ProxyError",
            "Name or service not known", "Temporary failure in name resolution", "Connection refused", "SSLError",
            "Network is unreachable",
        ),
        (
            "the package index cannot be reached",
            "Check the network, the proxy, or pip's own configuration (pip config list).",
        ),
    ),
    (
        ("No matching distribution found", "Could not find a version", "not a supported wheel"),
        (
            "a package is not available in its pinned version",
            "Check whether the package index (pip config list) has it for this Python and this machine.",
        ),
    ),
)  # fmt: skip
# An index may be given with a name and a password; they are nowhere but in pip's environment.
_INDEX = "ORCH_EXTRA_INDEX_URL"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_UNKNOWN = ("see the detail", "Run the same command again; it starts over.")


def pip_environ(directory: Path) -> dict[str, str]:
    """The environment for pip and venv: the allow-list, where packages come from, and the marker of `directory`."""
    environ = allowed_environ()
    environ[MARKER] = str(directory)
    for key, value in os.environ.items():
        if key.startswith(_NETWORK_PREFIXES) or key in _NETWORK or key.lower() in _NETWORK:
            environ[key] = value
    environ.update(
        PYTHONNOUSERSITE="1",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
        # These would put the packages elsewhere; an empty value overrides the user's configuration too.
        PIP_USER="0",
        PIP_REQUIRE_VIRTUALENV="0",
    )
    for elsewhere in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIREMENT", "PIP_CONSTRAINT"):
        environ.pop(elsewhere, None)
    return environ


class Pip:
    """pip of the environment in `directory`; `total` requirements are counted over all installs."""

    def __init__(self, directory: Path, total: int, resolve: bool, progress: Progress) -> None:
        self._directory, self._total, self._resolve, self._progress = directory, total, resolve, progress
        self._done = 0
        self._now = "installing"
        self._unpacking = 0
        self._before: int | None = None  # how many packages were there when the unpacking began

    def install(self, requirements: tuple[str, ...], indexes: tuple[str, ...] = ()) -> None:
        """Install exactly these; each of `indexes` is tried only after pip's own configuration failed.

        HostError with pip's telling lines.
        """
        done = self._done
        output: tuple[str, ...] = ()
        for index in ("", *indexes):
            self._done = done
            code, lines = self._run(requirements, index)
            if code == 0:
                self._done = done + len(requirements)
                return
            output += lines
            if _meaning(lines) is _DISK_FULL:
                break
        raise _failure(output)

    def _run(self, requirements: tuple[str, ...], index: str) -> tuple[int | None, tuple[str, ...]]:
        # In the file it comes on top of what pip's own configuration has; an option or PIP_EXTRA_INDEX_URL replaces it.
        first = [f"--extra-index-url ${{{_INDEX}}}"] if index else []
        with tempfile.NamedTemporaryFile("w", suffix=".txt", prefix="orch-requirements-") as file:
            file.write("".join(f"{line}\n" for line in (*first, *requirements)))
            file.flush()
            argv = [str(self._directory / "bin/python"), "-I", "-m", "pip", "install"]
            argv += ["--progress-bar", "off", "--no-color", *([] if self._resolve else ["--no-deps"]), "-r", file.name]
            environ = pip_environ(self._directory) | {_INDEX: index}
            self._before = None
            finished = run_command(argv, environ, tick=self._tell, on_line=self._on_line)
        if finished.out_of_memory:
            raise HostError(f"pip {finished.out_of_memory}.", "Stop what else uses memory, or raise the limit.")
        return finished.code, tuple(map(without_credentials, finished.lines))

    def _on_line(self, line: str) -> None:
        if line.startswith(("Collecting ", "Processing ")):  # from an index, or a file
            self._now = line.split()[1].rpartition("/")[2]
            self._done = min(self._done + 1, self._total)
        elif line.startswith("Installing collected packages"):
            self._unpacking = len(line.split(","))
            self._before = self._unpacked()

    def _tell(self) -> None:
        if self._before is None:
            self._progress(f"pip: {self._now}", self._done, self._total)
        else:  # pip is silent for minutes
            done = min(self._unpacked() - self._before, self._unpacking)
            self._progress("pip: unpacking packages", done, self._unpacking)

    def _unpacked(self) -> int:
        return sum(1 for _ in self._directory.glob("lib/*/site-packages/*.dist-info"))


def without_credentials(text: str) -> str:
    """The text with `***@` for what stands before an @ in its URLs."""
    return _CREDENTIALS.sub("***@", text)


def _meaning(lines: tuple[str, ...]) -> tuple[str, str]:
    text = "\n".join(lines)
    return next((meaning for marks, meaning in _MEANINGS if any(mark in text for mark in marks)), _UNKNOWN)


def _failure(lines: tuple[str, ...]) -> HostError:
    meaning, hint = _meaning(lines)
    retries = [line for line in lines if "Retrying (" in line]
    telling = [line for line in lines if line.strip() and not line.lstrip().startswith(_NOISE)]
    errors = [line for line in telling if "ERROR" in line or "rror:" in line]
    detail = [*retries[-1:], *(errors or telling)[-10:]]
    return HostError(f"pip could not install the environment: {meaning}.", hint, "\n".join(detail))
