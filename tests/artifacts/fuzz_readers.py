"""Mutated files for the readers, by the ten thousand: each is refused, or read to its end.

Run as a program: `fuzz_readers.py KIND COUNT [SEED]`, KIND being gguf, safetensors or json. It limits its own memory
and the time of each file, and prints what it saw as JSON. What breaks a reader is told by its number, and kept.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifact_files import UNTIED, gguf_info, gguf_key, gguf_model, gguf_string, gguf_value, raw_gguf, raw_safetensors

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.claims import check_nvfp4
from orchestrator.artifacts.gguf_claims import check_gguf
from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.artifacts.inspection import inspect
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4
from orchestrator.artifacts.safetensors import Checkpoint, row_blocks
from orchestrator.core.artifact import Recipe
from orchestrator.core.progress import silent
from orchestrator.core.weights import INDEX
from orchestrator.errors import SourceError

# Above what the program has before the first file.
MEMORY = 64 << 20
CPU_SECONDS_A_FILE = 2.0
NUMBERS = (
    0,
    1,
    2,
    7,
    31,
    33,
    127,
    128,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**47,
    2**60,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, [], {}, "", "x", -1, 0, 1, 2.5, 2**31, 2**70, 1e308, float("inf"), float("nan"), [[]], {"a": []},
)  # fmt: skip

Check = Callable[[bytes], str]


def bases_gguf() -> list[bytes]:
    """Small sound files; together they have all types of values, several tensors, and a whole model's keys."""
    one = b"\x01"
    kinds = {
        0: one,
        1: one,
        2: one * 2,
        3: one * 2,
        4: one * 4,
        5: one * 4,
        6: one * 4,
        7: one,
        10: one * 8,
        12: one * 8,
    }
    keys = [gguf_key(f"k{kind}", kind, value) for kind, value in kinds.items()]
    keys += [gguf_value("texts", ["a", "bc", ""]), gguf_value("numbers", [1, 2]), gguf_key("t", 8, gguf_string("ü"))]
    keys.append(gguf_key("general.alignment", 4, struct.pack("<I", 32)))
    infos = [gguf_info("a", (4, 2)), gguf_info("b", (32, 2), 8, 32), gguf_info("c", (3,), 1, 128)]
    small: dict[str, Any] = {
        "general.file_type": 32,
        "qwen3.embedding_length": 32,
        "qwen3.feed_forward_length": 32,
        "qwen3.attention.key_length": 8,
        "token_embd.weight": ("BF16", (4, 32)),
        "output_norm.weight": ("F32", (32,)),
    }
    rows = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    small |= {f"blk.0.{name}.weight": ("BF16", (count, 32)) for name, count in rows.items()}
    with tempfile.TemporaryDirectory() as directory:
        model = gguf_model(Path(directory) / "model.gguf", **small).read_bytes()
    return [raw_gguf(keys, infos, bytes(134)), raw_gguf([], [gguf_info("a", (2,))], bytes(32), version=2), model]


def bases_safetensors() -> list[bytes]:
    """Small sound files of every type of element."""
    sizes = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, size in sizes.items():
        header[f"w.{dtype}"] = {"dtype": dtype, "shape": [2, 3], "data_offsets": [end, end + 6 * size]}
        end += 6 * size
    scalar = {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    empty = {"a": {"dtype": "F32", "shape": [3, 0], "data_offsets": [0, 0]}}
    return [raw_safetensors(header, bytes(end)), raw_safetensors(scalar, bytes(4)), raw_safetensors(empty)]


def mutated(base: bytes, head: int, dice: random.Random) -> bytes:
    """One to three changes, mostly of the first `head` bytes."""
    content = bytearray(base)
    for _ in range(dice.randint(1, 3)):
        head = min(head, len(content))
        at = dice.randrange(head if head and dice.random() < 0.9 else len(content) + 1)
        match dice.randrange(7):
            case 0 if at < len(content):
                content[at] ^= 1 << dice.randrange(8)
            case 1:
                width = dice.choice((1, 4, 8))
                number = dice.choice((*NUMBERS, len(base), len(base) - 1, len(base) + 1))
                content[at : at + width] = (number % 256**width).to_bytes(width, "little")
            case 2:
                del content[at:]
            case 3:
                del content[at : at + dice.randrange(1, 20)]
            case 4:
                source = dice.randrange(len(content) + 1)
                content[at:at] = content[source : source + dice.randrange(1, 40)]
            case 5:
                content += dice.randbytes(dice.randrange(1, 40))
            case _:
                content[at : at + 1] = dice.randbytes(1)
    return bytes(content)


def mutated_safetensors(base: bytes, dice: random.Random) -> bytes:
    """Half of them with a header that is JSON still: other numbers and other words, its length told as it is."""
    length = int.from_bytes(base[:8], "little")
    if dice.random() < 0.5:
        return mutated(base, 8 + length, dice)
    text = base[8 : 8 + length].decode()
    words = [*re.finditer(r"\d+|\w+", text)] or [*re.finditer("", text)]
    for word in sorted(dice.sample(words, min(len(words), dice.randint(1, 2))), key=lambda found: -found.start()):
        other = json.dumps(dice.choice(VALUES)) if dice.random() < 0.3 else str(dice.choice(NUMBERS))
        text = text[: word.start()] + other + text[word.end() :]
    return len(text).to_bytes(8, "little") + text.encode() + base[8 + length :]


def mutated_json(value: Any, dice: random.Random) -> Any:
    """One value anywhere in it replaced, removed or put elsewhere."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.15:
        return dice.choice(VALUES)
    at: Any = dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    if dice.random() < 0.1:
        del changed[at]
    else:
        changed[at] = mutated_json(value[at], dice)
    return changed


def memory_file() -> tuple[Path, Callable[[bytes], None]]:
    """A file that lies in memory, and what replaces its content."""
    descriptor = os.memfd_create("fuzz")

    def replace(content: bytes) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)

    return Path(f"/proc/self/fd/{descriptor}"), replace


def fuzz_gguf(dice: random.Random) -> tuple[Check, Callable[[], bytes]]:
    path, replace = memory_file()
    bases = [(base, base.find(bytes(64)) if len(base) > 4096 else len(base)) for base in bases_gguf()]

    def check(content: bytes) -> str:
        replace(content)
        with GgufFile.open(path) as file:
            for tensor in file.tensors.values():
                for rows in row_blocks(tensor, 64):
                    file.read(tensor, *rows)
        inspect(path)
        try:
            check_gguf(path, Recipe.GGUF_BF16)
        except SourceError:
            return "read"
        return "read and believed"

    return check, lambda: mutated(*dice.choice(bases), dice)


def fuzz_safetensors(dice: random.Random) -> tuple[Check, Callable[[], bytes]]:
    path, replace = memory_file()
    bases = bases_safetensors()

    def check(content: bytes) -> str:
        replace(content)
        with Checkpoint.open_files((path,)) as checkpoint:
            for tensor in checkpoint.tensors.values():
                for rows in row_blocks(tensor, 64):
                    checkpoint.read(tensor, *rows)
        return "read"

    return check, lambda: mutated_safetensors(dice.choice(bases), dice)


def fuzz_json(dice: random.Random) -> tuple[Check, Callable[[], bytes]]:
    """config.json and the index of a directory of NVFP4 weights, for all that read them; one of them is changed."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    atexit.register(shutil.rmtree, directory)
    build_nvfp4(UNTIED, directory, silent)
    files = [directory / name for name in ("config.json", INDEX)]
    sound = [file.read_bytes() for file in files]
    plain = json.loads(sound[0])
    del plain["quantization_config"]

    def open_for_building() -> None:
        with one_pass.opened(directory):
            pass

    readers: tuple[Callable[[], object], ...] = (
        lambda: check_nvfp4(directory, Recipe.NVFP4A16),
        lambda: inspect(directory),
        open_for_building,
    )

    def check(content: bytes) -> str:
        for file, text in zip(files, content.split(b"\0"), strict=True):
            file.write_bytes(text)
        read = 0
        for reader in readers:
            with suppress(SourceError):
                reader()
                read += 1
        return "read" if read else "refused"

    def make() -> bytes:
        texts, chosen = list(sound), dice.randrange(2)
        original = plain if chosen == 0 and dice.random() < 0.3 else json.loads(sound[chosen])
        texts[chosen] = json.dumps(mutated_json(original, dice)).encode()
        if dice.random() < 0.2:
            texts[chosen] = mutated(texts[chosen], len(texts[chosen]), dice).replace(b"\0", b" ")
        return b"\0".join(texts)

    return check, make


KINDS = {"gguf": fuzz_gguf, "safetensors": fuzz_safetensors, "json": fuzz_json}


class TooLong(BaseException):
    """A file has taken more CPU time than it may."""


def too_long(number: int, frame: object) -> None:
    raise TooLong


def main(kind: str, count: int, seed: int) -> int:
    dice = random.Random(f"{kind} {seed}")
    check, make = KINDS[kind](dice)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, too_long)
    seen: Counter[str] = Counter()
    for number in range(count):
        content = make()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_A_FILE)
        try:
            seen[check(content)] += 1
        except SourceError:
            seen["refused"] += 1
        except BaseException:
            signal.setitimer(signal.ITIMER_PROF, 0)
            kept = Path(tempfile.gettempdir()) / f"fuzz-{kind}-{seed}-{number}"
            kept.write_bytes(content)
            sys.stderr.write(f"{kind}, seed {seed}, file {number}, kept as {kept}:\n")
            raise
    signal.setitimer(signal.ITIMER_PROF, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(json.dumps({**seen, "grown_kib": grown}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
