"""Whether clients have noticed a switch: facts about their streams that a slow machine does not change. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams import Stream

# What an engine calls itself (system_fingerprint), up to the first hyphen.
ENGINES = {"b0": "llamacpp", "vllm": "vllm", "fp_ollama": "ollama"}


@dataclass(frozen=True)
class Switch:
    """From before its step began until that had ended (time.time()), and the engines that it leads from and to."""

    began: float
    ended: float
    old: str
    new: str


def engine_of(stream: Stream) -> str:
    """The engine that answered it."""
    return ENGINES.get(stream.engine.split("-")[0], stream.engine)


def across(streams: Sequence[Stream], switch: Switch) -> int:
    """How many were in the middle of their answers before the switch began, and still after it had ended."""
    return sum(stream.open_at(switch.began) and stream.open_at(switch.ended) for stream in streams)


def faults(streams: Sequence[Stream], switch: Switch, answer: str, at_least: int) -> Iterator[str]:
    """What is not as it should be: every stream answered, to its end, with `answer` first, by the engine whose turn it
    was; and `at_least` so many of them across the switch."""
    for stream in streams:
        if stream.problem:
            yield f"a stream failed: {stream.problem}"
        elif stream.ended is None:
            yield "a stream did not reach its end"
        elif not stream.text.strip().startswith(answer):
            yield f"a wrong answer: {stream.text[:100]!r}"
        elif engine_of(stream) not in _turn(stream, switch):
            yield f"a stream was answered by {engine_of(stream)}, out of its turn"
    if (count := across(streams, switch)) < at_least:
        yield f"only {count} streams were open across the switch"
    if not any(stream.started > switch.ended for stream in streams):
        yield "no stream began after the switch"


def _turn(stream: Stream, switch: Switch) -> set[str]:
    """What was asked, and not yet answered, when the switch began may have gone to either."""
    if stream.first is not None and stream.first < switch.began:
        return {switch.old}
    return {switch.new} if stream.started > switch.ended else {switch.old, switch.new}
