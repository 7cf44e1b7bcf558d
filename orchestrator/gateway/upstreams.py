"""What the gateway has to know of servers beside the APIs that they speak: scars, each seen on the real one."""

from __future__ import annotations

import functools
import json
import re

import msgspec

from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, VLLM, Route
from orchestrator.gateway.turns import Pace

# Ollama asks a process of its own for each model. When that dies or is ended under a request, it says so with a status
# that says nothing: whoever asks again is given a new process.
_RUNNER_LOST = re.compile(
    rb"no longer running|unexpected EOF|connection refused|connection reset by peer|: EOF\b"
    rb"|client connection closed before"
)
# After so many tokens that are all the same it ends an answer, without the end that its stream should have.
_SAME_TOKENS = 30
# As many bytes of a stream hold them.
TAIL = 32 << 10
# The name of an instance is PROFILE-ENGINE-gN (core/deployment.py).
_INSTANCE = re.compile(r"(?P<engine>.+)-g\d+")
_WAITING = re.compile(rb"^(?:vllm:num_requests_waiting|llamacpp:requests_deferred)(?:\{[^\n]*\})? (\S+)$", re.MULTILINE)

_TOKEN = re.compile(rb'"(?:content|response|text|thinking|reasoning)":"((?:[^"\\]|\\.)*)"')

# llama.cpp's server has one set of adapters in a batch, and the lowest busy slot says which: under a full load for one
# name another never has its turn. A change costs next to nothing, but slots idle while the last answers of a turn end:
# with answers of 1 s and four slots 84% of them are busy (79% with turns of 1 s, 90% of 4 s), with answers of 5 s 72%.
_BATCHES = Pace(least_s=2.0, most_s=2.0)
# Ollama has one set of adapters in its process, and ends that for another: 1.4 s for a model of 1.5 GB from memory, 5 s
# from a disk. With four times as long to answer a fifth of the time is lost at the worst.
_PROCESSES = Pace(least_s=2.0, most_s=30.0, changes=5.0, change_s=2.0, lingers=0.25)


def adapters_of(route: Route) -> str | None:
    """What of a route its engine cannot compute together with that of another; None: it computes all names together."""
    if LLAMA_SERVER in route.speaks:
        return json.dumps(route.patch, sort_keys=True)
    return route.upstream or route.name if OLLAMA in route.speaks else None


def pace_of(route: Route) -> Pace:
    """How names take turns on such an engine."""
    return _PROCESSES if OLLAMA in route.speaks else _BATCHES


def keeps_connections(route: Route) -> bool:
    """Whether a connection is good for another request after a stream. llama.cpp's server closes it, whatever its
    Keep-Alive header said, and a request that meets a closing connection is lost."""
    return VLLM in route.speaks or OLLAMA in route.speaks


def engine_of(route: Route) -> str:
    """What the engine behind a route is called; where its instance does not say, the API of its server."""
    return _engine_of(route.backend.instance, route.owner, route.speaks)


@functools.lru_cache(maxsize=1024)
def _engine_of(instance: str, owner: str, speaks: tuple[str, ...]) -> str:
    found = _INSTANCE.fullmatch(instance.removeprefix(f"{owner}-"))
    if found is not None and instance.startswith(f"{owner}-"):
        return found["engine"]
    return speaks[-1] if speaks else ""


def queue_path(route: Route) -> str:
    """Where the engine behind a route says how many requests wait within it; empty where it does not. Ollama tells
    nobody."""
    return "/metrics" if VLLM in route.speaks or LLAMA_SERVER in route.speaks else ""


def queue_in(body: bytes) -> int | None:
    """How many it says, of all its processes; None where it says nothing of them."""
    try:
        found = [int(float(number)) for number in _WAITING.findall(body)]
    except (ValueError, OverflowError):
        return None
    return sum(found) if found else None


def lost_its_runner(route: Route, body: bytes) -> bool:
    """Whether an error 500 with this body only says that the engine lost the process that was to answer."""
    return OLLAMA in route.speaks and _RUNNER_LOST.search(body) is not None


def may_end_by_itself(route: Route) -> bool:
    """Whether a stream may be whole without its dialect's end."""
    return OLLAMA in route.speaks


def ended_by_itself(tail: bytes) -> bool:
    """Whether the last bytes of such a stream are those of one that is."""
    tokens = [msgspec.json.decode(b'"%b"' % text).strip() for text in _TOKEN.findall(tail)[-_SAME_TOKENS:]]
    return len(tokens) == _SAME_TOKENS and len(set(tokens)) == 1
