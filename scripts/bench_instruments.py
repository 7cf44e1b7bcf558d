"""orch bench beside vllm bench serve and guidellm, asked for the same load of the same servers, in turns, in one run.

    scripts/bench-instruments [--rounds N] [--users N]     needs a profile that is deployed: orch up ENGINE -p PROFILE

Two servers. The paced one computes nothing: its first token comes after 40 ms and each of 63 more after another 10 ms,
so it is known what an instrument has to say: TTFT 40, TPOT 10, E2EL 670 ms. The other is what is deployed, asked
directly.
Each instrument measures each server once in every round, in an order that changes. Shown are means over the rounds with
their standard deviation; a difference within twice the standard error of both is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from orchestrator.app.environments import environment_spec, plan_install, run_in
from orchestrator.app.orchestrator import Orchestrator
from orchestrator.app.profiles import weights_facts
from orchestrator.bench.client import Ask, Load
from orchestrator.bench.metrics import Level, Measured
from orchestrator.bench.tools import RESULT, TOOLS, Wanted
from orchestrator.cli.session import Session
from orchestrator.settings import read_settings

FIRST_S, GAP_S = 0.040, 0.010
METRICS = ("output_throughput", "median_ttft_ms", "median_tpot_ms", "median_e2el_ms")
TRUTH = {
    "median_ttft_ms": FIRST_S * 1000,
    "median_tpot_ms": GAP_S * 1000,
    "median_e2el_ms": (FIRST_S + 63 * GAP_S) * 1000,
}
INSTRUMENTS = ("orch", *TOOLS)


class Paced:
    """A server of streams that come on time. What is late by a timer is made up for by the next piece."""

    async def stream(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        tokens = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 1)
        now = asyncio.get_running_loop().time
        due = now() + FIRST_S
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(tokens):
            await asyncio.sleep(max(0.0, due - now()))
            due += GAP_S
            await _event(answer, {**_CHUNK, "choices": [{"index": 0, "delta": {"content": " a"}, "text": " a"}]})
        ended = {"index": 0, "delta": {}, "text": "", "finish_reason": "length"}
        await _event(answer, {**_CHUNK, "choices": [ended]})
        usage = {"prompt_tokens": 64, "completion_tokens": tokens, "total_tokens": 64 + tokens}
        await _event(answer, {**_CHUNK, "choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "paced", "object": "model", "owned_by": "orch"}]})

    async def alive(self, _: web.Request) -> web.Response:
        return web.Response()


_CHUNK = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "paced"}


async def _event(answer: web.StreamResponse, event: Mapping[str, Any]) -> None:
    await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextmanager
def paced() -> Iterator[str]:
    """Its URL, while it runs, in a thread: it sleeps nearly all the time."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[web.AppRunner, int]:
        server, app = Paced(), web.Application()
        app.add_routes([web.post("/v1/chat/completions", server.stream), web.post("/v1/completions", server.stream)])
        app.add_routes([web.get("/v1/models", server.models), web.get("/health", server.alive)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


class Bench:
    """orch over the data directory of the environment, and the load that all make: `users` at a time."""

    def __init__(self, orch: Orchestrator, users: int, per_user: int) -> None:
        self.orch = orch
        self.users = users
        self.requests = users * per_user
        observed = orch.observe()
        (profile,) = observed.deployed
        self.tokenizer = weights_facts(orch, observed.desired[profile].spec.profile).path

    def of_paced(self, instrument: str, url: str, seed: int) -> Mapping[str, Any]:
        """Its figures of the paced server."""
        if instrument == "orch":
            return self._own(url)
        tool = TOOLS[instrument]
        path = "/v1/chat/completions"
        wanted = Wanted(
            f"{url}{path}", "paced", "", self.tokenizer, True, self.requests, self.users, 0.0, 64, 64, seed
        )  # fmt: skip
        start = tool.start(wanted)
        with tempfile.TemporaryDirectory() as place:
            for name, text in start.files.items():
                Path(place, name).write_text(text)
            spec = environment_spec(self.orch, tool.pin)
            done = run_in(self.orch, spec, start.argv, start.env, Path(place), lambda: None)
            if not Path(place, RESULT).is_file():
                sys.exit(f"ERROR {instrument} left no result:\n" + "\n".join(done.lines[-20:]))
            ((_, figures),) = tool.figures(json.loads(Path(place, RESULT).read_text()))
        return figures

    def _own(self, url: str) -> Mapping[str, Any]:
        body = {"model": "paced", "messages": [{"role": "user", "content": "a"}], "max_tokens": 64, "stream": True}
        load = Load(f"{url}/v1/chat/completions", (Ask(body),) * self.requests, self.users)
        measured: list[Measured] = []
        ended: list[float] = []

        def line(text: str) -> None:
            told = json.loads(text)
            if "duration" in told:
                ended.append(told["duration"])
            else:
                told.pop("place")
                measured.append(Measured(**{**told, "itl": tuple(told["itl"])}))

        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({**vars(load), "asks": [{"body": ask.body, "due": None} for ask in load.asks]}, file)
            file.flush()
            self.orch.run_module("orchestrator.bench.client", [file.name], lambda: None, line)
        return Level.of(measured, ended[0]).to_json()

    def of_deployed(self, instrument: str, seed: int) -> Mapping[str, Any]:
        """Its figures of what is deployed, by the command that users type."""
        words = ["bench", "--direct", "--concurrency", str(self.users), "--rounds", str(self.requests // self.users)]
        words += ["--input-len", "64", "--output-len", "64", "--seed", str(seed), "--json"]
        words += ["--tool", instrument] if instrument != "orch" else []
        done = subprocess.run([sys.executable, "-m", "orchestrator", *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"ERROR orch {' '.join(words)}:\n{done.stderr}")
        found: Mapping[str, Any] = next(
            line for line in map(json.loads, done.stdout.splitlines()) if "max_concurrency" in line
        )
        return found


def show(title: str, found: Mapping[str, list[Mapping[str, Any]]], truth: Mapping[str, float]) -> None:
    """A table; each instrument beside orch, and beside what is true where that is known."""
    print(f"\n{title}")
    print(f"{'':18}" + "".join(f"{name:>24}" for name in found) + ("" if not truth else f"{'true':>10}"))
    for metric in METRICS:
        cells = []
        own = [float(one[metric]) for one in found["orch"]]
        for rounds in found.values():
            values = [float(one[metric]) for one in rounds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            noise = 2 * math.hypot(spread, statistics.stdev(own) if len(own) > 1 else 0.0) / math.sqrt(len(values))
            differs = len(values) > 1 and abs(statistics.fmean(values) - statistics.fmean(own)) > noise
            cells.append(f"{statistics.fmean(values):.2f} ± {spread:.2f}{' *' if differs else '  '}")
        known = f"{truth[metric]:10.2f}" if metric in truth else ""
        print(f"{metric:18}" + "".join(f"{cell:>24}" for cell in cells) + known)
    failed = {name: sum(one["failed"] for one in rounds) for name, rounds in found.items()}
    print(f"{'failed':18}" + "".join(f"{count:>22}  " for count in failed.values()))


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each measures each server")
    parser.add_argument("--users", type=int, default=4, help="requests at a time")
    parser.add_argument("--per-user", type=int, default=8, help="requests of each of them")
    options = parser.parse_args()
    session = Session(as_json=False)
    orch = Orchestrator(read_settings(os.environ), lambda *_: None, lambda *_: None)
    if len(orch.observe().deployed) != 1:
        sys.exit("ERROR One profile has to be deployed.\nTIP orch up ENGINE -p PROFILE")
    for tool in TOOLS.values():
        session.plan_and_run("bench-instruments", lambda pin=tool.pin: plan_install(orch, pin), False)
    bench = Bench(orch, options.users, options.per_user)
    known: dict[str, list[Mapping[str, Any]]] = {name: [] for name in INSTRUMENTS}
    real: dict[str, list[Mapping[str, Any]]] = {name: [] for name in INSTRUMENTS}
    with paced() as url:
        for number in range(options.rounds):
            turn = number % len(INSTRUMENTS)
            for name in (*INSTRUMENTS[turn:], *INSTRUMENTS[:turn]):
                known[name].append(bench.of_paced(name, url, number))
                real[name].append(bench.of_deployed(name, number))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    load = f"{options.users} users, {bench.requests} requests, 64 tokens in and out, {options.rounds} rounds"
    show(f"The paced server ({load})", known, TRUTH)
    show(f"What is deployed, asked directly ({load})", real, {})
    print(
        "\n±: standard deviation over the rounds. *: differs from orch by more than twice the standard error of both."
    )


if __name__ == "__main__":
    main()
