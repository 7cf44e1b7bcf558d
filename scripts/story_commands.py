"""orch as the demo runs it: in sight, in a data directory of the demo's own, and stopped in its own way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from orchestrator.errors import HostError

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tiny-qwen3"
QUESTION = "Who are you?"
# For a load to be under way, on whatever machine; and for a command that is asked to stop.
PATIENCE_S = 900.0


class StoryFailedError(Exception):
    """The demo did not show what it promises."""


@dataclass
class Story:
    """The data directory (relative to the checkout, where the demo runs), the address, the target with what else orch's
    environment needs for it, and the figures so far."""

    home: Path
    listen: str
    hub: str
    target: str
    extra: dict[str, str] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)

    @property
    def profile(self) -> str:
        return str(self.home / f"{MODEL}.toml")

    def say(self, text: str) -> None:
        """A chapter's title."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def note(self, text: str) -> None:
        """A figure, now and again at the end."""
        self.figures.append(text)
        print(f"   {text}", flush=True)

    def environ(self) -> dict[str, str]:
        """orch's environment: this story's data directory, address and hub."""
        mine = {"ORCH_HOME": str(ROOT / self.home), "ORCH_LISTEN": self.listen, "HF_ENDPOINT": self.hub}
        mine |= {"ORCH_TARGET": self.target, **self.extra}
        return {key: value for key, value in os.environ.items() if not key.startswith(("ORCH_", "HF_"))} | mine

    def orch(self, *words: str) -> float:
        """Run an orch command in sight; its seconds."""
        print(f"$ orch {' '.join(words)}", flush=True)
        began = time.monotonic()
        self.ended_well(words, self.start(*words))
        return time.monotonic() - began

    def start(self, *words: str, stdout: int | None = None) -> subprocess.Popen[str]:
        """Start an orch command. Its session is its own: whoever interrupts the demo has it stop in its own way."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
            start_new_session=True,
        )

    def ended_well(self, words: tuple[str, ...], process: subprocess.Popen[str]) -> None:
        """Wait for its end; when the demo is interrupted meanwhile, for what it takes back then."""
        try:
            code = process.wait()
        except BaseException:
            stop(process)
            raise
        if code == HostError.exit_code:
            raise HostError(f"orch {words[0]} cannot do it on this machine; it says why above.")
        check(code == 0, f"orch {words[0]} ended with exit code {code}")

    def take_down(self) -> str:
        """Stop all that may run, out of sight; what is left all the same."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "down", "--all", "--forget", "--drain", "1"],
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        left = [f"process {pid}" for pid in leftovers(self.home)]
        if done.returncode:
            left.append(f"what orch down could not stop: {done.stderr.strip()}")
        return ", ".join(left)

    def ask(self, model: str) -> str:
        """What a public name answers."""
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, "temperature": 0}
        try:
            url = f"http://{self.listen}/v1/chat/completions"
            answer = httpx.post(url, json=body, timeout=PATIENCE_S, trust_env=False)
        except httpx.HTTPError as error:
            raise StoryFailedError(f"{model} was not answered: {error!r}") from error
        check(answer.status_code == 200, f"{model} answered {answer.status_code}: {answer.text[:300]}")
        said = str(answer.json()["choices"][0]["message"]["content"])
        print(f"   {model}: {said}", flush=True)
        return said


def stop(process: subprocess.Popen[str]) -> None:
    """Have an orch command take back what it was doing. (At SIGINT Python would show where it was importing.)"""
    process.terminate()
    try:
        process.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def leftovers(home: Path) -> list[int]:
    """The pids of what the demo started and left."""
    place = f"{(ROOT / home).resolve()}/processes/"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if place.encode() in words or f"{entry.joinpath('cwd').readlink()}/".startswith(place):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def check(true: bool, otherwise: str) -> None:
    """Go on, or fail the story."""
    if not true:
        raise StoryFailedError(otherwise)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Until it is true; the story fails when that does not come about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        check(time.monotonic() < deadline, f"{what} did not come about within {PATIENCE_S:.0f} s")
        time.sleep(0.02)
