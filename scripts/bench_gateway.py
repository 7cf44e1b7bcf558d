"""What the gateway adds to a request and to a stream, beside nginx and HAProxy in the same run.

Run by scripts/bench-gateway. One stand-in engine on loopback is asked directly, through nginx and HAProxy (Debian's
packages; each is left out, and that is said, where it is not installed), and through gateways: the cheapest route (no
key, nothing changed), one with another name, a patch and a key, and the same in Ollama's API, translated. All take
turns in rounds, with one worker each, and all but the cheapest check a key. The stand-in and the client have one core,
what is compared has another. Figures:

- a whole answer and the first event of a stream, over one warm connection: p50, p99, and what of them is added to
  direct; CPU for each request;
- paced events: many streams, of which each event comes alone: CPU for each, without how streams begin and end;
- events at full speed, which are passed on several at a time;
- memory (PSS), idle and with 200 streams;
- what the translation adds to the same route untranslated.

`x nginx` is the ratio to nginx in this run. CPU is what the kernel counted for the processes, with their children
(/proc/PID/task/*/schedstat): the figure to trust. Times on a busy machine are noisy; after each figure stands its least
and most of all rounds.

    --requests N    whole answers, and a third as many streams, by each way in all (default 600)
    --rounds N      turns that they are taken in (5)
    --streams N     paced streams at once, each with 50 events a second (256)
    --seconds S     that paced events are counted in each round (1)
    --also CHECKOUT another checkout of orch, whose gateway is compared in the same run, with this one's interpreter
                    and libraries; may be given several times
    --closes        the engine closes each connection after a stream, as llama.cpp's server does; else it keeps them, as
                    vLLM does
    --realtime      first in line for both cores while measuring, with pauses (root): for machines that others use
    --soak MINUTES  none of this: --streams paced streams for so long through the gateway, a new one for each that ends,
                    half of them translated; memory every 30 s, and whether it is flat in the second half (else exit
                    code 1)
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench_engine import MARK
from bench_figures import FAST_EVENTS, FAST_STREAMS, MEMORY_STREAMS, Figures, Memory, Report
from bench_load import BrokenError, ask, at_full_speed, first_events, memory_with, paced, whole_answers
from bench_soak import soak
from bench_ways import HERE, OLLAMA_CHAT, Start, Way, Ways, first_in_line, pin

PACE_S = 0.02


def fault(way: Way) -> str:
    """What is wrong with a way, "" when all words of its answers come."""
    for what in ("", "events=20 pace=0"):
        with socket.create_connection(("127.0.0.1", way.port), timeout=30) as connection:
            try:
                answer, _, _ = ask(connection, way.request(what))
            except BrokenError as error:
                return str(error)
        if answer.count(MARK) != 20:
            return f"not 20 words: {answer[-300:]!r}"
    return ""


def renames(way: Way) -> bool:
    """Whether answers come under the name that was asked for."""
    with socket.create_connection(("127.0.0.1", way.port), timeout=30) as connection:
        answer, _, _ = ask(connection, way.request())
    return b'"model":"%s"' % way.model.encode() in answer


def measure(figures: list[Figures], arguments: argparse.Namespace, engine_process: int) -> None:
    """Everything, in turns."""
    answers = max(20, arguments.requests // arguments.rounds)
    kinds: tuple[Callable[[Figures], None], ...] = (
        lambda one: one.whole.append(whole_answers(one.way, answers)),
        lambda one: one.first.append(first_events(one.way, max(20, answers // 3))),
        lambda one: one.paced.append(paced(one.way, arguments.streams, PACE_S, arguments.seconds)),
        lambda one: one.fast.append(at_full_speed(one.way, FAST_STREAMS, FAST_EVENTS)),
    )
    for turn in range(arguments.rounds):
        for kind in kinds:
            # Nobody is always the first, or always after the same one.
            for one in (figures[turn % len(figures) :] + figures[: turn % len(figures)])[:: 1 - turn % 2 * 2]:
                with first_in_line([os.getpid(), engine_process, *one.way.processes], arguments.realtime):
                    kind(one)
        print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr, flush=True)


def cores() -> tuple[int | None, int | None]:
    """One for the client and the engine, one for what is compared; none where there is but one."""
    there = sorted(os.sched_getaffinity(0))
    return (there[0], there[1]) if len(there) > 1 else (None, None)


@contextmanager
def engine(core: int | None, closes: bool) -> Iterator[tuple[int, int]]:
    """The stand-in: its port and its process."""
    file = Path(__file__).with_name("bench_engine.py")
    command = [sys.executable, str(file), *(["--closes"] if closes else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        pin(process.pid, core)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def alone(ways: Ways, checkouts: Sequence[Path]) -> tuple[list[Start], dict[str, Memory]]:
    """What there is to compare, and the memory that each way takes by itself; says what is left out, and why."""
    works_here: list[Start] = []
    memory: dict[str, Memory] = {}
    for start in ways.starts(checkouts):
        try:
            started = start()
        except FileNotFoundError as error:
            print(f"{error} is not installed: it is left out.")
            continue
        idle = started[0].pss_mb
        for way in started:
            if wrong := fault(way):
                if way.path != OLLAMA_CHAT:
                    raise SystemExit(f"{way.name} does not work: {wrong}")
                print(f"{way.name} is left out: the gateway says {wrong}")
                continue
            if not renames(way):
                print(f"{way.name} does less: answers have the engine's own name for the model.")
            memory[way.name] = Memory(idle, memory_with(way, MEMORY_STREAMS))
        works_here.append(start)
        ways.close()
    return works_here, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--closes", action="store_true")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    arguments = parser.parse_args()
    for name, least, most in (
        ("requests", 20, 100_000),
        ("rounds", 1, 100),
        ("streams", 1, 2000),
        ("seconds", 0.2, 60),
    ):
        if not least <= getattr(arguments, name) <= most:
            parser.error(f"--{name}: {least} to {most}")
    if arguments.soak is not None and not 0.5 <= arguments.soak <= 24 * 60:
        parser.error("--soak: 0.5 to 1440")
    for checkout in arguments.also:
        if not (checkout / "orchestrator" / "gateway").is_dir():
            parser.error(f"--also: {checkout} is not a checkout of orch")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    mine, theirs = cores()
    print(f"Cores: client and engine {mine}, compared {theirs}; load average before: {os.getloadavg()[0]:.1f}.")
    with tempfile.TemporaryDirectory(prefix="bench") as home, engine(mine, arguments.closes) as (port, process):
        ways = Ways(Path(home), port, arguments.closes, theirs)
        try:
            pin(os.getpid(), mine)
            if arguments.soak is not None:
                through = [way for way in ways.named(HERE) if not fault(way)]
                return 0 if soak(through, arguments.streams, arguments.soak) else 1
            starts, memory = alone(ways, (HERE, *(checkout.resolve() for checkout in arguments.also)))
            started = [way for start in starts for way in start() if way.name in memory]
            direct = Way("direct", port, closes=arguments.closes)
            figures = [Figures(direct, Memory(0, 0)), *(Figures(way, memory[way.name]) for way in started)]
            begun = time.monotonic()
            measure(figures, arguments, process)
            Report(figures).print()
            print(f"\n{time.monotonic() - begun:.0f} s; load average after: {os.getloadavg()[0]:.1f}")
        finally:
            ways.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
