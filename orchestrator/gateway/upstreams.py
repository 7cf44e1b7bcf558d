"""What the gateway has to know of servers beside the APIs that they speak: scars, each seen on the real one."""

from __future__ import annotations

import re

import msgspec

from orchestrator.core.routes import OLLAMA, VLLM, Route

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
_TOKEN = re.compile(rb'"(?:content|response|text|thinking|reasoning)":"((?:[^"\\]|\\.)*)"')


def keeps_connections(route: Route) -> bool:
    """Whether a connection is good for another request after a stream. llama.cpp's server closes it, whatever its
    Keep-Alive header said, and a request that meets a closing connection is lost."""
    return VLLM in route.speaks or OLLAMA in route.speaks


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
