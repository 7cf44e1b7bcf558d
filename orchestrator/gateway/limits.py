"""What clients may take of the gateway, as its operator says it: NAME=VALUE. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

# Files that the gateway needs beside clients' connections and engines': its sockets, log, state, and some to spare.
_OWN_FILES = 64


@dataclass(frozen=True)
class Limits:
    """Seconds, MiB and numbers.

    `head_s`: until a request's head is there, from its first byte, or from the beginning of a connection. `body_s`:
    until the next bytes of a body, and for all of it, a second more for each 512 bytes. `idle_s`: a connection without
    a request. `unread_s`: a client that has something to read, and takes nothing of it. `buffer_mib`: what is kept for
    one client that reads more slowly than its engine answers, `buffers_mib` for all together; beyond it the engine
    has to wait, and the client to read on. `connections` are those of clients; `requests` what engines answer at once,
    of all clients, and of each API key (0: as many). While what serves is changed, up to `held_requests` wait, with
    bodies of `held_mib` together; a stream (of events) that has waited for `held_head_s` is begun with a comment, and
    has another after each such time (0: none is begun before there is an answer).
    """

    head_s: float = 30.0
    body_s: float = 60.0
    # Longer than clients keep a connection for another request: one that is just then sent into a closed one is lost.
    # OkHttp's and Chrome's 300 s are the longest usual.
    idle_s: float = 360.0
    unread_s: float = 120.0
    buffer_mib: int = 8
    buffers_mib: int = 128
    connections: int = 8192
    requests: int = 4096
    requests_per_key: int = 0
    held_requests: int = 2048
    held_mib: int = 128
    held_head_s: float = 0.0

    @property
    def files(self) -> int:
        """How many files may be open at once: a request has a connection to its engine beside the client's."""
        return self.connections + self.requests + _OWN_FILES

    def within(self, files: int) -> Limits:
        """The same where no more files may be open, if they can be: fewer connections and requests."""
        if self.files <= files:
            return self
        room = max(files - _OWN_FILES, 8)
        requests = min(self.requests, room // 3)
        changed = {"requests": requests, "connections": min(self.connections, room - requests)}
        return Limits(**{**vars(self), **changed})


NAMES = tuple(field.name for field in fields(Limits))
_LEAST = {"requests_per_key": 0, "connections": 8, "held_head_s": 0}
_MOST = {"_s": 86400, "_mib": 1 << 20}
_MOST_OF_ALL = 1_000_000


def parse_limit(text: str) -> tuple[str, float]:
    """`NAME=VALUE`; raises ValueError."""
    name, _, said = (part.strip() for part in text.partition("="))
    if name not in NAMES:
        raise ValueError(f"{text!r} is not a limit; the limits are {', '.join(NAMES)}, such as {NAMES[0]}=30")
    most = next((most for end, most in _MOST.items() if name.endswith(end)), _MOST_OF_ALL)
    least = _LEAST.get(name, 0.1 if name.endswith("_s") else 1)
    kind = "a number of seconds" if name.endswith("_s") else "a whole number"
    try:
        value = float(said) if name.endswith("_s") else int(said)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"{text!r}: {name} is {kind}, from {least:g} to {most}")
    return name, value


def parse_limits(texts: Iterable[str]) -> Limits:
    """All of them together, over what there is without; raises ValueError."""
    said: dict[str, float] = {}
    for text in texts:
        name, value = parse_limit(text)
        if said.setdefault(name, value) != value:
            raise ValueError(f"{name} is given twice")
    if "connections" in said:
        said.setdefault("requests", min(Limits.requests, said["connections"] // 2))
    elif "requests" in said:
        said["connections"] = max(Limits.connections, 2 * said["requests"])
    limits = Limits(**said)  # type: ignore[arg-type]  # whole numbers where they have to be
    if limits.buffers_mib < limits.buffer_mib:
        raise ValueError(f"buffers_mib ({limits.buffers_mib}) is less than buffer_mib ({limits.buffer_mib})")
    if limits.connections <= limits.requests:
        raise ValueError(f"connections ({limits.connections}) must be more than requests ({limits.requests})")
    return limits
