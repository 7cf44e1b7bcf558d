"""What orch's own commands cost: CPU seconds and wall time, side by side, and as multiples of `orch --help`.

Run by scripts/bench-cli. A llama.cpp server serves the tests' tiny model in a temporary data directory, which is taken
down and removed at the end, also when this is interrupted. Commands take turns, each is a process of its own. Times on
a busy machine are noisy: the least CPU seconds, and their multiples, are the figures to trust. The CPU of engines,
keepers and the gateway is not counted, their time is. With --vllm the adapters also go to a vLLM on the CPU, whose
environment is made (3.5 GB) unless --environments names a directory that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench_measure import Cost, measured
from rich.console import Console
from rich.table import Table

ASSETS = Path(__file__).parents[1] / "tests" / "assets"
ORCH = [sys.executable, "-P", "-m", "orchestrator"]
MANY_ADAPTERS = 40
MANY_ENTRIES = 600
# Far more than it takes: then something hangs, and is taken down.
LIMIT_S = 900
LIMIT_VLLM_S = 3600
HELP = "orch --help"


@dataclass
class Row:
    """One thing measured; `first` is the row that it is compared with, besides HELP. `cpu_s` is empty where only time
    is known."""

    what: str
    first: str = ""
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def add(self, cost: Cost) -> None:
        self.cpu_s.append(cost.cpu_s)
        self.wall_s.append(cost.wall_s)

    def times(self, other: Row | None) -> float | None:
        """This by another, as CPU seconds; where that says nothing, as wall time."""
        if other is None or other is self:
            return None
        if self.cpu_s and other.cpu_s:
            return min(self.cpu_s) / min(other.cpu_s)
        return min(self.wall_s) / min(other.wall_s)


class Bench:
    """orch over one data directory, and what was measured of it."""

    def __init__(self, home: Path, repeat: int) -> None:
        self.home, self.repeat = home, repeat
        self.rows: dict[str, Row] = {}
        self.store = home / "store"
        self._log = home / "output"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.listen = f"127.0.0.1:{probe.getsockname()[1]}"
        self._env = {"ORCH_HOME": str(home), "ORCH_LISTEN": self.listen, "ORCH_TARGET": "local"}

    def orch(self, *words: str) -> Cost:
        """Run a verb to its end."""
        return measured([*ORCH, *words], self._log, self._env)

    def row(self, what: str, first: str = "") -> Row:
        return self.rows.setdefault(what, Row(what, first))

    def in_turns(self, *rows: tuple[str, str, Sequence[str]], plain: bool = False) -> None:
        """Measure verbs one after the other, and again; (what, compared with, words). With `plain` Python too."""
        for _ in range(self.repeat):
            if plain:
                self.row("python -c pass").add(measured([sys.executable, "-c", "pass"], self._log))
            for what, first, words in rows:
                self.row(what, first).add(self.orch(*words))

    def up(self, what: str, engine: str, profile: Path) -> None:
        """What it takes from `up` to the first token through the gateway, part by part."""
        start = time.monotonic()
        cost = self.orch("up", engine, "-p", str(profile), "--json")
        self._first_token()
        self.row(what).add(Cost(cost.cpu_s, time.monotonic() - start, 0))
        steps = {}
        for line in map(json.loads, self._log.read_text().splitlines()):
            if line.get("event") == "done" and line.get("seconds", 0) >= 0.01:
                steps[line["step"]] = line["seconds"]
        for step, seconds in {**steps, "all else of orch": cost.wall_s - sum(steps.values())}.items():
            self.row(f"  {step}", what).wall_s.append(seconds)

    def _first_token(self) -> None:
        body = {"model": "bench", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 1}
        url, head = f"http://{self.listen}/v1/chat/completions", {"Content-Type": "application/json"}
        no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with no_proxy.open(urllib.request.Request(url, json.dumps(body).encode(), head), timeout=60) as answer:
            answer.read()


def profile(home: Path, adapters: Sequence[Path] = ()) -> Path:
    """The tiny model's profile, with these adapters from the beginning."""
    path = home / "bench.toml"
    path.write_text(
        f'name = "bench"\npublic_names = ["bench"]\n[weights]\npath = "{ASSETS / "tiny-qwen3"}"\n'
        f"[serving]\ncontext = 512\nparallel = 2\n[lora]\nmax_adapters = {MANY_ADAPTERS}\nmax_rank = 16\n"
        "[engines.llamacpp]\nthreads = 1\n[engines.vllm]\nkv_cache_mib = 64\n"
        + "".join(f'[[adapters]]\nname = "{one.name}"\npath = "{one}"\n' for one in adapters)
    )
    return path


def adapters(home: Path) -> list[Path]:
    """As many as are wanted, each with weights of its own."""
    made = []
    for number in range(MANY_ADAPTERS):
        folder = home / "adapters" / f"adapter-{number + 1}"
        shutil.copytree(ASSETS / "lora-a", folder)
        weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
        # The last bytes are the low ones of a number's.
        weights[-4] = number
        (folder / "adapter_model.safetensors").write_bytes(weights)
        made.append(folder)
    return made


def more_entries(store: Path, count: int) -> list[Path]:
    """Finished entries that nobody uses, a small file each."""
    made = []
    for number in range(count):
        folder = store / f"gguf-q8_0-{number:016x}"
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(b"x")
        manifest = {
            "key": folder.name,
            "recipe": "gguf-q8_0",
            "source": "dir:0",
            "builder": {"format": "1"},
            "files": [{"path": "model.gguf", "size": 1, "sha256": "0" * 64}],
            "created": "2026-01-01T00:00:00+00:00",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        made.append(folder)
    return made


def look(bench: Bench) -> None:
    """Verbs that look, at one engine that serves; then at a store with many entries."""
    status, ls = ("orch status", "", ["status"]), ("orch artifacts ls", "", ["artifacts", "ls"])
    others = [(f"orch {verb}", "", verb.split()) for verb in ("lora ls", "profile ls")]
    bench.in_turns((HELP, "", ["--help"]), status, *others, ls, plain=True)
    entries = more_entries(bench.store, MANY_ENTRIES)
    bench.in_turns(
        (f"orch status, {MANY_ENTRIES} more entries", status[0], status[2]),
        (f"orch artifacts ls, {MANY_ENTRIES} more entries", ls[0], ls[2]),
    )
    for entry in entries:
        shutil.rmtree(entry)


def add_adapters(bench: Bench, engine: str, made: Sequence[Path]) -> None:
    """The first adapter beside a base that serves, and the last of many: those between are there from the start."""
    first, last = f"orch lora add, {engine}, first", f"orch lora add, {engine}, {MANY_ADAPTERS}th"
    bench.row(first).add(bench.orch("lora", "add", made[0].name, str(made[0])))
    bench.orch("down", "--all", "--forget")
    bench.orch("up", engine, "-p", str(profile(bench.home, made[:-1])))
    bench.row(last, first).add(bench.orch("lora", "add", made[-1].name, str(made[-1])))
    bench.in_turns((f"orch status, {engine}, {MANY_ADAPTERS} adapters", "orch status", ["status"]))
    bench.orch("down", "--all", "--forget")


@contextmanager
def taken_down() -> Iterator[Path]:
    """A data directory; what runs there at the end is stopped, however the end comes."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        home = Path(folder)
        try:
            yield home
        finally:
            # Nothing may keep it from that.
            for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            with tempfile.TemporaryDirectory() as elsewhere:
                measured(
                    [*ORCH, "down", "--all"], Path(elsewhere, "log"), {"ORCH_HOME": folder, "ORCH_TARGET": "local"}
                )


def tell(rows: dict[str, Row], as_json: bool) -> None:
    table = Table("", "CPU s", "median", "wall s", "median", f"x {HELP}", "x first", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows.values():
        to_help, to_first = row.times(rows.get(HELP)), row.times(rows.get(row.first))
        if not row.cpu_s:
            # A part of something: by --help it says nothing.
            to_help = None
        if as_json:
            print(json.dumps({**asdict(row), "to_help": to_help, "to_first": to_first}))
            continue
        seconds = [
            f"{of(values):.2f}" if values else ""
            for values in (row.cpu_s, row.wall_s)
            for of in (min, statistics.median)
        ]
        table.add_row(
            row.what, *seconds, *(f"{times:.2f}" if times is not None else "" for times in (to_help, to_first))
        )
    if not as_json:
        Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="of each verb that looks, 1 to 50")
    parser.add_argument("--vllm", action="store_true", help="adapters with vLLM too")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="where orch has vLLM's environment already")
    parser.add_argument("--json", action="store_true", help="a JSON line for each row, with all that was measured")
    arguments = parser.parse_args()
    if not 1 <= arguments.repeat <= 50:
        parser.error("--repeat: 1 to 50")
    # All of these processes, and none of them is to compile what another one has.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def end(number: int, _: object) -> None:
        raise SystemExit(f"Ended by {signal.Signals(number).name}; all was taken down.")

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_VLLM_S if arguments.vllm else LIMIT_S)
    with taken_down() as home:
        bench, made = Bench(home, arguments.repeat), adapters(home)
        if arguments.environments is not None:
            (home / "environments").symlink_to(arguments.environments.resolve())
        # Once to have the artifact, and all bytecode.
        bench.orch("up", "llamacpp", "-p", str(profile(home)))
        for _ in range(min(3, arguments.repeat)):
            bench.orch("down", "--all", "--forget")
            bench.up("orch up llamacpp, to the first token", "llamacpp", profile(home))
        look(bench)
        add_adapters(bench, "llamacpp", made)
        if arguments.vllm:
            bench.orch("engines", "install", "vllm")
            bench.orch("up", "vllm", "-p", str(profile(home)))
            add_adapters(bench, "vllm", made)
        tell(bench.rows, arguments.json)


if __name__ == "__main__":
    main()
