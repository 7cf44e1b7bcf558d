"""A migration of the demo: under streaming load, told as it goes, and judged by what the clients saw."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from story_commands import MODEL, PATIENCE_S, Story, StoryFailedError, check, stop, wait_for
from streams import Load, Stream
from switch_verdict import Switch, across, engine_of, faults

CLIENTS = 12
OPEN_AT_SWITCH = 8
TOKENS = 300
# What every stream's answer begins with; it goes on, so that it is long.
COLOUR = "The sky is blue."


def switch(story: Story, old: str, new: str, *command: str) -> None:
    """Run a migration under streaming load, report what the clients saw, and judge it."""
    load = Load(f"http://{story.listen}", (MODEL,), CLIENTS, TOKENS, max_seconds=4 * PATIENCE_S).start()
    try:
        wait_for(lambda: sum(stream.first is not None for stream in list(load.streams)) >= CLIENTS, "the load")
        print(f"$ orch {' '.join(command)}", flush=True)
        began = time.monotonic()
        with watched(load):
            found = run_migration(story, load, old, new, command)
        seconds = time.monotonic() - began
        time.sleep(3)
        streams = load.stop()
    except BaseException:
        load.abandon()
        raise
    failed = [stream.problem for stream in streams if stream.problem]
    story.note(f"{f'{old} -> {new}':<20} {seconds:.1f} s, {len(streams)} streams, {len(failed)} failed")
    story.note(f"  {across(streams, found)} open across the switch")
    for engine, (count, rate) in answered(streams).items():
        story.note(f"  by {engine:<15} {count} streams, {rate:.0f} tok/s each (median of {CLIENTS} at once)")
    for fault in faults(streams, found, COLOUR, OPEN_AT_SWITCH):
        raise StoryFailedError(fault)


def run_migration(story: Story, load: Load, old: str, new: str, command: tuple[str, ...]) -> Switch:
    """The command's steps as they end; when the routes were switched.

    orch is held before that until the load's streams are at their beginning, however long that takes here: the pipe has
    room for one event, so it is never further than one event and the work after it ahead of its reader.
    """
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    with os.fdopen(reading) as events:
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1)
            process = story.start(*command, "--json", stdout=writing)
        finally:
            os.close(writing)
        try:
            began, ended, before = 0.0, 0.0, ("", "")
            for line in events:
                event = json.loads(line)
                match now := (event.get("event", ""), event.get("step", "")):
                    case ("done", "AwaitReady"):
                        begin_together(load)
                        began = time.time()
                    case ("started", "SetRoute"):
                        check(began > 0 and before != ("done", "AwaitReady"), "orch could not be held at the switch")
                    case ("done", "SetRoute"):
                        ended = time.time()
                before = now
                if event.get("event") == "done":
                    print(f"\r   {event['what']}   {event.get('seconds', 0):.1f} s{' ' * 20}", flush=True)
                if "error" in event:
                    print(f"\r   {event['error']} {event.get('detail', '')}", flush=True)
        except BaseException:
            events.close()  # it may wait for its reader
            stop(process)
            raise
    story.ended_well(command, process)
    check(ended > 0, "orch told of no switch")
    return Switch(began, ended, old, new)


def begin_together(load: Load) -> None:
    """Have the clients end what they have and begin anew at one moment, so that all are in mid-answer for a while:
    left to themselves they do not keep step, and some are always about to end."""
    load.hold()
    wait_for(lambda: load.held == CLIENTS, "the end of all streams")
    load.release()
    wait_for(lambda: load.open_now() >= OPEN_AT_SWITCH, "streams in mid-answer")


@contextmanager
def watched(load: Load) -> Iterator[None]:
    """A line that moves, on a terminal, with what the clients see meanwhile."""
    over = threading.Event()

    def move() -> None:
        while not over.wait(0.5):
            streams = list(load.streams)
            failed = sum(bool(stream.problem) for stream in streams)
            ended = sum(stream.ended is not None for stream in streams)
            print(f"\r   {load.open_now()} streams open, {ended} answered, {failed} failed ", end="", flush=True)

    mover = threading.Thread(target=move, daemon=True)
    if sys.stdout.isatty():
        mover.start()
    try:
        yield
    finally:
        over.set()
        if mover.is_alive():
            mover.join()
            print("\r" + " " * 60 + "\r", end="", flush=True)


def answered(streams: list[Stream]) -> dict[str, tuple[int, float]]:
    """By engine: how many streams it ended, and the median of their tokens per second after the first token."""
    rates: dict[str, list[float]] = {}
    for stream in streams:
        if stream.ended and stream.first and stream.ended > stream.first:
            rates.setdefault(engine_of(stream), []).append((stream.tokens - 1) / (stream.ended - stream.first))
    return {engine: (len(found), sorted(found)[len(found) // 2]) for engine, found in rates.items()}
