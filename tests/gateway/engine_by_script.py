"""An engine that says, piece by piece and at its time, what a test has it say; and how three servers stream a chat."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS, JSON = "text/event-stream", "application/json"
Asked = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """An answer in pieces, each with the seconds before it."""

    pieces: Sequence[tuple[float, bytes]]
    kind: str = EVENTS
    status: int = 200


class Scripted:
    """Serves on a free loopback port until `close`; `told` is what GET /metrics says. `asked` are bodies that came."""

    def __init__(self, name: str, answer: Callable[[str, Asked], Said]) -> None:
        self.name = name
        self.asked: list[Asked] = []
        self.told = ""
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._say(Said([(0, scripted.told.encode())], "text/plain"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scripted.asked.append(body)
                self._say(answer(self.path, body))

            def _say(self, said: Said) -> None:
                self.send_response(said.status)
                self.send_header("Content-Type", said.kind)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for pause, piece in [*said.pieces, (0, b"")]:
                    time.sleep(pause)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def wants_figures(asked: Asked) -> bool:
    """Whether a request asks for `usage` at the end of its stream."""
    return bool((asked.get("stream_options") or {}).get("include_usage"))


def event(**said: object) -> bytes:
    """One event as servers write it: without blanks."""
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
# What a model may write to look like figures.
WORDS = ("Hel", 'lo "usage":{"completion_tokens":99},"choices":[]', "!")


def vllm_stream(
    chats: bool, figures: bool, words: Iterable[str] = WORDS, read: int = 18, written: int = 12
) -> list[bytes]:
    """As vLLM 0.32 has it: the fingerprint is in the event with the figures, else in the last one of the choice."""
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    mark = {"system_fingerprint": "vllm-0.32.0-3c7731b8"}

    def choice(text: str, reason: str | None, **more: object) -> dict[str, object]:
        said = {"delta": {"content": text}} if chats else {"text": text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason, **more}

    events = [event(**head, choices=[choice(word, None)]) for word in words]
    events.append(event(**head, choices=[choice("", "stop", stop_reason=None)], **({} if figures else mark)))
    if figures:
        usage = {"prompt_tokens": 18, "total_tokens": 30, "completion_tokens": 12}
        events.append(event(**head, choices=[], usage=usage, **mark))
    return [*events, DONE]


def ollama_stream(chats: bool, figures: bool) -> list[bytes]:
    """As Ollama 0.33 has it: a completion has empty figures in each event."""
    head = {"id": "c-686", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "system_fingerprint": "fp"}
    empty = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}} if figures and not chats else {}

    def choice(text: str, reason: str | None) -> dict[str, object]:
        said = {"delta": {"content": text}} if chats else {"text": text}
        return {"index": 0, **said, "finish_reason": reason}

    events = [event(**head, choices=[choice(word, None)], **empty) for word in WORDS]
    events.append(event(**head, choices=[choice("", "length")], **empty))
    if figures:
        usage = {"prompt_tokens": 21, "completion_tokens": 4, "total_tokens": 25}
        events.append(event(**head, choices=[], usage=usage))
    return [*events, DONE]


def llama_server_stream() -> list[bytes]:
    """As llama.cpp's server has it where nobody asks for figures: it tells them in its own words."""
    events = [event(choices=[{"finish_reason": None, "index": 0, "delta": {"content": word}}]) for word in WORDS]
    timings = {"cache_n": 16, "prompt_n": 1, "prompt_ms": 0.62, "predicted_n": 4, "predicted_ms": 1.47}
    events.append(event(choices=[{"finish_reason": "stop", "index": 0, "delta": {}}], timings=timings))
    return [*events, DONE]
