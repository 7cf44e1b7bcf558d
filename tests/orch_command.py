"""`orch` as its users run it: a command with a data directory of its own, and what is left behind by it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
from forks import Forked
from json_schemas import problems

from orchestrator.drivers.gateway_admin import Gateways
from orchestrator.settings import read_settings

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "tests" / "assets"
ANSWER = "I am a tiny test model. I run on a small computer and I know a few facts."


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


streams = script("streams")


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> Any:
    """The condition's first true value; AssertionError when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.05)
    return value


def children(pid: int) -> list[int]:
    """The pids of the processes that a process has started, and that are not yet reaped."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@dataclass(frozen=True)
class Outcome:
    """A finished command: exit code, JSON lines of stdout (if it was --json), and both outputs."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    @property
    def document(self) -> dict[str, Any]:
        """The only line: one document is all of what was told."""
        (one,) = self.lines
        return one

    def steps(self, event: str) -> list[str]:
        """The steps that an event tells of, in order."""
        return [line["step"] for line in self.lines if line.get("event") == event and "step" in line]


class Orch:
    """The `orch` command over one data directory; engines run on `target`, at first with `engine`. Gateway and one
    engine are `all_of_it` processes, keepers counted."""

    target = "local"
    engine = "llamacpp"
    all_of_it = 4
    module = "orchestrator"  # another one has an engine more (parrot.py)

    def __init__(self, home: Path) -> None:
        self.home = home
        self.listen = f"127.0.0.1:{free_port()}"
        self.profile = home / "tiny.toml"
        self.env: dict[str, str] = {}
        self.key = ""  # an API key, which the clients of this show
        self.within: tuple[str, ...] = ()  # words before the command
        self.python = sys.executable  # another one has another version of orch (other_program.py)
        home.mkdir(parents=True, exist_ok=True)
        self.write_profile()

    def write_profile(self, weights: Path = ASSETS / "tiny-qwen3", **changes: object) -> None:
        """The tiny model's profile; `changes` are serving keys (context, parallel)."""
        serving: dict[str, object] = {"context": 512, "parallel": 4, **changes}
        lines = "\n".join(f"{key} = {value}" for key, value in serving.items())
        self.profile.write_text(
            f'name = "tiny"\npublic_names = ["tiny", "tiny:latest", "test/Tiny"]\n'
            f'[weights]\npath = "{weights}"\n[serving]\n{lines}\n[sampling]\ntemperature = 0.0\n'
            f"[lora]\nmax_adapters = 3\nmax_rank = 16\n[engines.llamacpp]\nthreads = 1\n"
            f"[engines.vllm]\nkv_cache_mib = 64\n"
        )

    def environ(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORCH_", "HF_"))}
        # A daemon on this machine changes nothing, unless a test asks for it.
        own = {"ORCH_HOME": str(self.home), "ORCH_LISTEN": self.listen, "ORCH_TARGET": "local"}
        return kept | own | self.env

    def start(self, *args: str) -> Forked | subprocess.Popen[str]:
        """Run a command, leave it to the caller. (tests/cli/test_execs.py runs each verb in a process of its own.)"""
        if not self.within and self.python == sys.executable:
            return Forked(self.module, *args, env=self.environ())
        return subprocess.Popen(
            [*self.within, self.python, "-P", "-m", "orchestrator", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environ(),
            text=True,
        )

    def run(self, *args: str, code: int | None = 0, timeout: float = 300.0) -> Outcome:
        """Run a command to its end and check its exit code (None: any)."""
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout)
        outcome = Outcome(process.returncode, out, err)
        if "--json" in args and self.python == sys.executable:
            wrong = problems(args, out)
            assert wrong == [], "\n".join(wrong)
        assert code is None or outcome.code == code, f"orch {' '.join(args)} -> {outcome.code}\n{out}\n{err}"
        return outcome

    def signal_at(self, step: int, number: signal.Signals, *args: str) -> Outcome:
        """Run a --json command and send a signal as soon as its step-th `started` event (from 0) is there."""
        process = self.start(*args, "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        seen, lines = -1, []
        for line in process.stdout:
            lines.append(line)
            if json.loads(line).get("event") == "started":
                seen += 1
                if seen == step:
                    process.send_signal(number)
                    break
        lines += process.stdout.readlines()
        err = process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        return Outcome(process.wait(timeout=120), "".join(lines), err)

    def actions(self, *args: str) -> list[str]:
        """The steps that a command would do, from its own plan."""
        (plan,) = (line for line in self.run(*args, "--plan", "--json").lines if "plan" in line)
        return [item["do"] for item in plan["items"] if "do" in item]

    def status(self, code: int | None = 0) -> Outcome:
        return self.run("status", "--json", code=code)

    def engines(self) -> dict[str, dict[str, Any]]:
        """The status rows of engines, by instance."""
        return {engine["instance"]: engine for engine in self.status(code=None).document["engines"]}

    def gateway_status(self) -> dict[str, Any]:
        """What the gateway that serves says of itself."""
        status = Gateways(read_settings(self.environ()).admin).status()
        assert status is not None
        return status.to_json()

    def chat(self, model: str = "tiny", question: str = "Who are you?", **body: object) -> httpx.Response:
        """One chat through the gateway."""
        messages = [{"role": "user", "content": question}]
        return httpx.post(
            f"http://{self.listen}/v1/chat/completions",
            json={"model": model, "messages": messages, "max_tokens": 40, **body},
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=60,
            trust_env=False,
        )

    def says(self, model: str = "tiny", question: str = "Who are you?", **body: object) -> str:
        """What a chat answers; the HTTP error's text when it fails."""
        answer = self.chat(model, question, **body)
        return str(answer.json()["choices"][0]["message"]["content"]) if answer.status_code == 200 else answer.text

    def load(self, *models: str, clients: int = 4, tokens: int = 100) -> Any:
        """A streaming load through the gateway, started."""
        return streams.Load(f"http://{self.listen}", models or ("tiny",), clients, tokens, key=self.key).start()

    def processes(self) -> list[int]:
        """The pids of all that this data directory's orch has started and that still lives."""
        place = f"{self.home}/processes/"
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # vLLM's engine core overwrites its environment with its title; it still works where it started.
                    words = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
                    if place.encode() in words or f"{entry.joinpath('cwd').readlink()}/".startswith(place):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def inner_processes(self) -> list[int]:
        """The same, with all that they have started themselves."""
        return self.processes()

    def record(self, instance: str) -> dict[str, Any]:
        """The keeper's state of an instance."""
        value = json.loads((self.home / "processes" / instance / "state.json").read_text())
        assert isinstance(value, dict)
        return value


@contextmanager
def stopped_afterwards(command: Orch) -> Iterator[Orch]:
    """Everything that it started is stopped by it afterwards."""
    yield command
    command.run("down", "--all", timeout=120)
    assert command.processes() == []


def with_environments(command: Orch, environments: Path) -> None:
    """Have it use these, and vLLM's be installed."""
    (command.home / "environments").symlink_to(environments)
    command.run("engines", "install", "vllm", timeout=900)
