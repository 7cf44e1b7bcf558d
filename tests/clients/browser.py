"""A real Chromium with one page open (page/), which is asked over HTTP as the other clients are over their pipes.

The page can be of two origins: of this machine, and of a site elsewhere, whose name leads here in this browser alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from client_programs import Asked, Heard
from orch_command import wait_until

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript"}
SITE = "chat.example.org"
# A page that is asked for nothing asks again after so many seconds.
_POLL_S = 20.0
OPTIONS = (
    *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-proxy-server", "--enable-logging=stderr"),
    # It reaches nobody but this machine.
    f"--host-resolver-rules=MAP {SITE} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


def chromium() -> str:
    """The program. In CI it is installed beside the tests: ORCH_BROWSER_MADE is the file that will tell how that went,
    by an exit code."""
    if made := os.environ.get("ORCH_BROWSER_MADE"):
        code = wait_until(
            lambda: Path(made).exists() and Path(made).read_text().strip(), 600, "Chromium's installation"
        )
        assert code == "0", "Chromium could not be installed"
    found = shutil.which("chromium")
    assert found is not None
    return found


class Browser:
    """Open until `close`; npm's packages are in `modules`."""

    def __init__(self, modules: Path, place: Path) -> None:
        self._questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._log = place / "chromium.log"
        browser, places = self, {"": PAGE, "node_modules": modules}

        class Answering(_Answering):
            owner = browser
            directories = places

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        root = ("--no-sandbox",) if os.getuid() == 0 else ()
        command = [chromium(), *OPTIONS, *root, f"--user-data-dir={place / 'profile'}", self.here]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(place)},
                start_new_session=True,
            )

    @property
    def here(self) -> str:
        """The origin of a page of this machine."""
        return f"http://localhost:{self.port}"

    @property
    def elsewhere(self) -> str:
        """The origin of a page of another site."""
        return f"http://{SITE}:{self.port}"

    def visit(self, origin: str) -> None:
        """Open the page of this origin in place of the one that is open."""
        if self.ask("origin", "").good() != origin:
            self._questions.put({"do": "visit", "url": f"{origin}/"})
            assert self.ask("origin", "").good() == origin

    def ask(self, verb: str, url: str, seconds: float = 60, **asked: object) -> Heard:
        """Have the page ask, and wait for what its script made of it."""
        return self.begin(verb, url, **asked).heard(seconds)

    def begin(self, verb: str, url: str, **asked: object) -> Asked:
        """Have the page ask, and go on."""
        self._questions.put({"do": verb, "url": url, **asked})
        return Asked(self)

    def line(self, seconds: float) -> dict[str, Any]:
        """The next thing that the page tells."""
        try:
            return self._told.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"The page says nothing; the log: {self._log.read_text()[-2000:]}") from None

    def next_question(self) -> dict[str, Any] | None:
        """The next one for the page, None where there is none yet."""
        try:
            return self._questions.get(timeout=_POLL_S)
        except queue.Empty:
            return None

    def hear(self, told: dict[str, Any]) -> None:
        """Take what the page tells."""
        self._told.put(told)

    def close(self) -> None:
        """End it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Browser
    directories: dict[str, Path]

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        # A browser that is ended, or goes to another page, waits for nothing.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        if self.path == "/next":
            question = self.owner.next_question()
            self._answer(200 if question else 204, json.dumps(question).encode() if question else b"")
            return
        first, _, rest = self.path.removeprefix("/").partition("/")
        path = self.directories[first] / rest if first in self.directories else PAGE / first
        path = path / "index.html" if path.is_dir() else path
        self._answer(200, path.read_bytes(), TYPES[path.suffix])

    def do_POST(self) -> None:
        self.owner.hear(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        if kind == TYPES[".mjs"]:
            # Hundreds of files, for each origin once.
            self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        self.wfile.write(body)
