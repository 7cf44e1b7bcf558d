"""What scripts do that go on while all is moved under them: print a line once all was asked, ask over and over until
their input ends, then print how often they asked what, each shape and each text that they were answered with, and
everything that failed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

THREADS = 3
# Each asks, and gives the answer as a whole, and the text in it.
Questions = Mapping[str, Callable[[], tuple[Any, str]]]


def shape(value: Any) -> Any:
    """The fields of an answer and their types, whatever is in them."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(shape(one), sort_keys=True) for one in value}
        return sorted(kinds)
    return type(value).__name__


def ask_all_along(questions: Callable[[], Questions]) -> None:
    """Ask them all; each thread has its own."""
    begun, over = threading.Event(), threading.Event()
    asked: Counter[str] = Counter()
    shapes: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, set[str]] = defaultdict(set)
    failed: list[str] = []

    def ask() -> None:
        mine = questions()
        while not over.is_set():
            for what, question in mine.items():
                try:
                    answer, text = question()
                    shapes[what].add(json.dumps(shape(answer), sort_keys=True))
                    texts[what].add(text)
                except Exception as error:  # noqa: BLE001
                    failed.append(f"{what}: {type(error).__name__}: {error}")
                asked[what] += 1
            begun.set()

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for one in threads:
        one.start()
    begun.wait()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    sys.stdin.read()
    over.set()
    for one in threads:
        one.join()
    told = {name: sorted(found) for name, found in texts.items()}
    counted = {name: sorted(found) for name, found in shapes.items()}
    sys.stdout.write(json.dumps({"asked": asked, "failed": failed, "texts": told, "shapes": counted}))
