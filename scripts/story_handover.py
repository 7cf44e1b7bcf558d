"""The demo where only one engine fits: the old one ends before the new one is started, and the clients wait."""

from __future__ import annotations

import json
import statistics
import subprocess
import time

from story_commands import MODEL, PATIENCE_S, Story, StoryFailedError, check, wait_for
from story_switch import CLIENTS, COLOUR, TOKENS, watched
from streams import Load, Stream

MIB = 2**20
# More than nothing beside the larger engine, and less than the smaller one takes.
SPARE = 32 * MIB


def room_for_one(story: Story, *engines: str) -> None:
    """Declare a pool of memory that holds the largest of these engines, and no other beside it."""
    sizes = {engine: _memory_of(story, engine) for engine in engines}
    for engine, size in sizes.items():
        print(f"   {engine} asks for {size / MIB:.0f} MiB", flush=True)
    check(min(sizes.values()) > SPARE, "an engine asks for next to nothing")
    pool = f"{(max(sizes.values()) + SPARE) // MIB}MiB"
    story.extra["ORCH_ENGINE_MEMORY"] = pool
    print(f"   ORCH_ENGINE_MEMORY={pool} stands for the card: it holds one of them.", flush=True)


def _memory_of(story: Story, engine: str) -> int:
    """The bytes that orch plans for an engine."""
    words = ("up", engine, "-p", story.profile, "--plan", "--json")
    process = story.start(*words, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=PATIENCE_S)
    story.ended_well(words, process)
    (budget,) = (line["budget"] for line in map(json.loads, out.splitlines()) if "budget" in line)
    return int(budget["requested"])


def hand_over(story: Story, title: str, *command: str) -> float:
    """Run a change under streaming load, and tell how long its clients had to wait; the seconds of the command."""
    load = Load(f"http://{story.listen}", (MODEL, "pirate"), CLIENTS, TOKENS, max_seconds=4 * PATIENCE_S).start()
    try:
        wait_for(lambda: sum(stream.first is not None for stream in list(load.streams)) >= CLIENTS, "the load")
        with watched(load):
            seconds = story.orch(*command)
        time.sleep(3)
        streams = load.stop()
    except BaseException:
        load.abandon()
        raise
    _judge(streams)
    waits = sorted(stream.first - stream.started for stream in streams if stream.first is not None)
    story.note(f"{title:<20} {seconds:.1f} s, {len(streams)} streams, 0 failed")
    story.note(f"  first token          p50 {statistics.median(waits):.2f} s, longest wait {waits[-1]:.1f} s")
    return seconds


def _judge(streams: list[Stream]) -> None:
    """Every stream has ended well, and was answered by the model that it asked."""
    for stream in streams:
        if stream.problem:
            raise StoryFailedError(f"a stream failed: {stream.problem}")
        wrong = stream.text.startswith(COLOUR) != (stream.model == MODEL)
        check(not wrong, f"{stream.model} was answered by another: {stream.text[:60]!r}")
