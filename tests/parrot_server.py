"""The program of an engine that orch does not ship (parrot.py): `parrot_server.py CONFIG PORT`."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Parrot(BaseHTTPRequestHandler):
    """Which model it serves, and a chat's answer."""

    protocol_version = "HTTP/1.1"
    config: dict[str, Any]

    def do_GET(self) -> None:
        self._answer({"model": self.config["model"]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = " ".join([self.config["words"]] * self.config["times"])
        message = {"role": "assistant", "content": said}
        self._answer({"model": self.config["name"], "choices": [{"index": 0, "message": message}]})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    Parrot.config = json.loads(Path(sys.argv[1]).read_text())
    with Path(Parrot.config["model"]).open("rb") as model:
        if model.read(4) != b"GGUF":
            sys.exit("that is no GGUF file")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Parrot).serve_forever()


if __name__ == "__main__":
    main()
