"""A program that runs to its end, in a container or as a process, and how it ended, in plain values. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What the image of llama.cpp's converter and quantizer is pinned for: no engine, but pinned like one.
TOOLS = "tools"
# A converter has a thread or a few per core, and no children.
PIDS = 1024
SHM_MIB = 64
# Lines of its output that are kept.
LOG_LINES = 200
# A program that counts its work: "[  12/ 399] blk.0.attn_k.weight ...".
_COUNT = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


@dataclass(frozen=True)
class Tool:
    """One run in a container: `words` follow the image's own entrypoint, `what` is how Progress and errors call it.

    `reads` and `writes` are host directories, seen in the container at their own paths; nothing else is, and there is
    no network. `gpus`, `gpu_way` and `devices` are as in Container.
    """

    what: str
    image: str
    words: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    memory_mib: int
    gpus: tuple[str, ...] = ()
    gpu_way: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolEnd:
    """Exit code (128 + N: ended by signal N); in words, if the kernel ended it for want of memory; the end of its
    output."""

    code: int
    out_of_memory: str
    log: str


def counted(line: str) -> tuple[int, int] | None:
    """(done, of how many) where a line of the output says so."""
    found = _COUNT.search(line)
    return (int(found[1]), int(found[2])) if found is not None else None
