"""An engine whose answers are as real as clients need them, and which breaks as it is told.

It speaks OpenAI's, Anthropic's and Ollama's APIs, and says the words of a text one by one. `then` is what comes after
the first: "go on" to the end; "wait" for the gate, or for the other side to go; "die" (the connection is reset); "end"
without the API's end; "repeat" the same token for ever until Ollama stops, which it does without the end. A first
request that is to `fail` gets that as the text of a 500.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("one ", "two ", "three ", "four")
TEXT = "".join(WORDS)
# Ollama stops when it has said the same more often than that.
REPEATED = 31


class ScriptedEngine:
    """Serves on a free loopback port until `close`."""

    def __init__(self, name: str = "one-g1") -> None:
        self.name = name
        self.then = "go on"
        self.fail = ""
        self.gate = threading.Event()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.left = threading.Event()
        engine = self

        class Answering(_Answering):
            owner = engine

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def reset(self) -> None:
        """As if it had just begun."""
        self.then, self.fail = "go on", ""
        self.gate.clear()
        self.left.clear()
        self.asked.clear()

    def close(self) -> None:
        """End it, and all that waits in it."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ScriptedEngine

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.close_connection = True
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path in _TOLD:
            self._whole(200, _TOLD[self.path])
            return
        owner = self.owner
        owner.asked.append((self.path, asked))
        if owner.fail and len(owner.asked) == 1:
            self._whole(500, {"error": owner.fail})
            return
        say = _SAYS[self.path]
        if not asked.get("stream", self.path.startswith("/api/")):
            self._whole(200, say.whole(asked["model"]))
            return
        with contextlib.suppress(OSError):
            self._stream(say(asked["model"]))

    def _whole(self, status: int, document: object) -> None:
        body = json.dumps(document, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, say: _Says) -> None:
        self.send_response(200)
        self.send_header("Content-Type", say.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(say.begin())
        self._chunk(say.word(WORDS[0]))
        then = self.owner.then
        if then == "wait":
            self._wait()
        if then == "die":
            time.sleep(0.1)  # so that what was sent is read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        for word in (WORDS[0],) * REPEATED if then == "repeat" else WORDS[1:]:
            self._chunk(say.word(word))
        if then in ("go on", "wait"):
            self._chunk(say.end())
        self.wfile.write(b"0\r\n\r\n")

    def _wait(self) -> None:
        while not self.owner.gate.is_set():
            if select.select([self.connection], [], [], 0.01)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                self.owner.left.set()
                raise ConnectionError

    def _chunk(self, data: bytes) -> None:
        # An empty one would be the last.
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()


def _event(document: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


class _Says(ABC):
    """One API's words."""

    content_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self.model = model

    def begin(self) -> bytes:
        return b""

    @abstractmethod
    def word(self, text: str) -> bytes:
        """An event with this text."""

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    @classmethod
    def whole(cls, model: str) -> object:
        """An answer in one piece; None where nobody asks for one."""
        return None


class _Chat(_Says):
    def word(self, text: str) -> bytes:
        return self._choice({"delta": {"role": "assistant", "content": text}, "finish_reason": None})

    def end(self) -> bytes:
        return self._choice({"delta": {}, "finish_reason": "stop"}) + super().end()

    def _choice(self, choice: dict[str, Any]) -> bytes:
        about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.model}
        return _event({**about, "choices": [{"index": 0, **choice}]})

    @classmethod
    def whole(cls, model: str) -> object:
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}


class _Completions(_Says):
    def word(self, text: str) -> bytes:
        about = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self.model}
        return _event({**about, "choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": None}]})


class _Responses(_Says):
    def begin(self) -> bytes:
        return _event({"type": "response.created", "sequence_number": 0, "response": self._response("in_progress")})

    def word(self, text: str) -> bytes:
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "sequence_number": 1, "logprobs": []}
        return _event({"type": "response.output_text.delta", "delta": text, **where})

    def end(self) -> bytes:
        return _event({"type": "response.completed", "sequence_number": 9, "response": self._response("completed")})

    def _response(self, status: str) -> dict[str, Any]:
        about = {"id": "resp_1", "object": "response", "created_at": 1, "model": self.model, "status": status}
        return {**about, "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}


class _Messages(_Says):
    def begin(self) -> bytes:
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        message = {**self.whole(self.model), "content": [], "stop_reason": None}  # type: ignore[dict-item]
        return _event({"type": "message_start", "message": message}, "message_start") + _event(block, block["type"])

    def word(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return _event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def end(self) -> bytes:
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        return (
            _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + _event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 4}}, "message_delta")
            + _event({"type": "message_stop"}, "message_stop")
        )

    @classmethod
    def whole(cls, model: str) -> dict[str, Any]:
        about = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
        usage = {"input_tokens": 1, "output_tokens": 4}
        return {**about, "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "usage": usage}


_FIGURES = {
    "total_duration": 1,
    "load_duration": 1,
    "prompt_eval_count": 1,
    "prompt_eval_duration": 1,
    "eval_count": 1,
    "eval_duration": 1,
}


class _OllamaChat(_Says):
    content_type = "application/x-ndjson"

    def word(self, text: str) -> bytes:
        return self._line(text, {"done": False})

    def end(self) -> bytes:
        return self._line("", {"done": True, "done_reason": "stop", **_FIGURES})

    def _line(self, text: str, more: dict[str, Any]) -> bytes:
        return json.dumps(self._about(self.model, text) | more, separators=(",", ":")).encode() + b"\n"

    @staticmethod
    def _about(model: str, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"model": model, "created_at": "2026-01-31T12:00:00.5Z", "message": message}

    @classmethod
    def whole(cls, model: str) -> object:
        return {**cls._about(model, TEXT), "done": True, "done_reason": "stop", **_FIGURES}


class _OllamaGenerate(_OllamaChat):
    @staticmethod
    def _about(model: str, text: str) -> dict[str, Any]:
        return {"model": model, "created_at": "2026-01-31T12:00:00.5Z", "response": text}


_SAYS: dict[str, type[_Says]] = {
    "/v1/chat/completions": _Chat,
    "/v1/completions": _Completions,
    "/v1/responses": _Responses,
    "/v1/messages": _Messages,
    "/api/chat": _OllamaChat,
    "/api/generate": _OllamaGenerate,
}
# What llama.cpp's server tells of prompts, for a context.
_TOLD: dict[str, object] = {"/apply-template": {"prompt": "Count."}, "/tokenize": {"tokens": [1, 2, 3]}}
