"""Waiting that can be given up: the call goes on in a thread of its own, and whoever waits is asked meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

TICK_S = 0.1


def cancellable(call: Callable[[], Value], tick: Callable[[], None], name: str) -> Value:
    """The value of `call()`, or what it raises. Whatever `tick` raises, at once and every TICK_S, ends the waiting; the
    call then goes on by itself, in a thread that does not keep the process."""
    done: list[Value] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name=name)
    thread.start()
    while True:
        tick()
        thread.join(TICK_S)
        if not thread.is_alive():
            break
    if failed:
        raise failed[0]
    return done[0]
