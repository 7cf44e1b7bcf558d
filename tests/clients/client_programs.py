"""Real clients, each in a program of its own that is asked over its pipes; see programs/asking.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
# Of no interest to them, or somebody else's: keys, addresses, and what was set for the engines.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


@dataclass(frozen=True)
class Heard:
    """What a client made of a question: a result, or what it raised and the text that it had by then."""

    result: Any = None
    raised: dict[str, Any] | None = None
    text: str = ""

    def good(self) -> Any:
        """The result; what was raised fails the test."""
        assert self.raised is None, self.raised
        return self.result

    def bad(self) -> dict[str, Any]:
        """What was raised: type, message, status."""
        assert self.raised is not None, f"nothing was raised, the result is {self.result}"
        return self.raised


class Client:
    """One program, started by the first question."""

    def __init__(self, name: str, command: Callable[[Path], list[str]], place: Path) -> None:
        self.name = name
        self._command = command
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, verb: str, url: str, seconds: float = 120, **asked: object) -> Heard:
        """Ask, and wait for what it made of it."""
        return self.begin(verb, url, **asked).heard(seconds)

    def begin(self, verb: str, url: str, **asked: object) -> Asked:
        """Ask, and go on."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"do": verb, "url": url, **asked}).encode() + b"\n")
        process.stdin.flush()
        return Asked(self)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None

    def line(self, seconds: float) -> dict[str, Any]:
        """The next thing that it says; what it does not say in time ends it."""
        assert self._process is not None
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            ready = select.select([self._process.stdout], [], [], seconds)[0]
            data = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not data:
                said = (self._place / f"{self.name}.log").read_text()[-2000:]
                self.close()
                raise AssertionError(f"{self.name} says nothing; its log: {said}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            (source,) = PROGRAMS.glob(f"{self.name}.*")
            environ = {key: value for key, value in os.environ.items() if key in _KEPT}
            environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LLM_USER_PATH": str(self._place / "llm")}
            with (self._place / f"{self.name}.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(self._place / source.name),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environ,
                    cwd=self._place,
                )
            self._buffer = b""
        return self._process


@dataclass
class Asked:
    """A question that a client is at."""

    client: Client
    first: str = ""

    def part(self, seconds: float = 60) -> str:
        """The first part of a stream, when it is there."""
        self.first = self.client.line(seconds)["part"]
        return self.first

    def heard(self, seconds: float = 120) -> Heard:
        """What it made of it all."""
        told = self.client.line(seconds)
        while "part" in told:
            told = self.client.line(seconds)
        return Heard(**told)


class Clients:
    """All of them, by name; `command` says how to start a program."""

    def __init__(self, command: Callable[[Path], list[str]], modules: Path, place: Path) -> None:
        self._command = command
        self._place = place
        self._started: dict[str, Client] = {}
        # Node.js looks for packages beside the program.
        shutil.copytree(PROGRAMS, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (place / "node_modules").symlink_to(modules)
        (place / "llm").mkdir()

    def __getitem__(self, name: str) -> Client:
        if name not in self._started:
            self._started[name] = Client(name, self._command, self._place)
        return self._started[name]

    def close(self) -> None:
        """End them."""
        for client in self._started.values():
            client.close()


def shape(value: Any) -> Any:
    """Fields and types: what of an answer is the same for each engine."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__
