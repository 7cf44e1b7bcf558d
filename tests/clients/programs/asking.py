"""What a program around a real client does all its life: reads what to ask, and says what the client made of it.

A line of JSON comes in for each question: `do` names what to do, the rest is said to it. Lines go out: `{"part": text}`
when the first part of a stream is there, then `{"result": ...}`, or `{"raised": {type, message, status}, "text": ...}`
with what of a stream had come until then.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

# What a stream gives: texts, and at its end what else there is to tell.
Stream = Generator[str, None, Any]


def answer(verbs: Mapping[str, Callable[..., Any]], streams: Mapping[str, Callable[..., Stream]]) -> None:
    """Answer questions until nobody asks any more. Each stream can be `leave:` of, after its first part."""
    for line in sys.stdin:
        asked = json.loads(line)
        verb = asked.pop("do")
        texts: list[str] = []
        try:
            if verb in verbs:
                _say(result=verbs[verb](**asked))
            elif verb.startswith("leave:"):
                _leave(streams[verb.removeprefix("leave:")](**asked))
                _say(result="left")
            else:
                rest = _follow(streams[verb](**asked), texts)
                _say(result={"text": "".join(texts), "parts": len(texts), "rest": rest})
        # Whatever it is, it is what a user of the client sees.
        except Exception as error:  # noqa: BLE001
            status = getattr(error, "status_code", None)
            told = {"type": type(error).__name__, "message": str(error), "status": status}
            _say(raised=told, text="".join(texts))


def _follow(stream: Stream, texts: list[str]) -> Any:
    while True:
        try:
            texts.append(next(stream))
        except StopIteration as end:
            return end.value
        if len(texts) == 1:
            _say(part=texts[0])


def _leave(stream: Stream) -> None:
    next(stream)
    stream.close()
    # Whatever the client keeps of it is gone with it, as where a function returns.
    gc.collect()


def _say(**told: Any) -> None:
    sys.stdout.write(json.dumps(told, default=str) + "\n")
    sys.stdout.flush()
