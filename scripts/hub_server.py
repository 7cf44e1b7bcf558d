"""A small Hugging Face hub on loopback: directories served as `OWNER/NAME`, with faults on demand.

It speaks what the hub's own client and orch ask for: model info, and `resolve` with ETag, Range and, for LFS
files, the redirect to a second host. As a program it prints its URL and serves until killed:

    python scripts/hub_server.py --repo owner/name=DIR --port 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = ("*.safetensors", "*.bin", "*.gguf", "tokenizer.json")
CHUNK = 64 * 1024
PAGE = b"<html>"


@dataclass
class Fault:
    """What goes wrong, for files that match `path` (the API is `path` ""), the next `times` times (None: always).

    kind     value
    cut      the connection ends after so many bytes of a body
    corrupt  the byte at this offset is flipped
    size     the stated size is off by this
    hash     the stated SHA-256 or blob id is of something else
    commit   the API answers with another commit
    status   HTTP status; `code` is the X-Error-Code, `headers` more of them (Retry-After), `body` its body
    slow     bytes per second and request
    expired  the address that LFS files are redirected to answers 403
    html     the API answers with a page, as a proxy would
    stall    the body stops after so many bytes, and the connection stays open
    whole    Range is ignored
    page     a file's address answers with a page, as a proxy would that wants a login
    stingy   a range is answered with so many bytes of it at most
    """

    kind: str
    path: str = "*"
    value: int = 0
    times: int | None = None
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """One request as it came, `at` in seconds of the monotonic clock: `range` is the Range header or "", `token` the
    Authorization header or ""."""

    method: str
    path: str
    range: str
    token: str
    at: float


class Blob:
    """A file of a repository with what the hub states about it."""

    def __init__(self, root: Path, path: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.lfs = any(fnmatch(self.name, pattern) for pattern in LFS)
        self.data = path.read_bytes()
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.blob_id = hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


class Repo:
    """A directory as it is now, at one commit, which `main` points at."""

    def __init__(self, root: Path) -> None:
        blobs = [Blob(root, path) for path in sorted(root.rglob("*")) if path.is_file()]
        self.blobs = {blob.name: blob for blob in blobs}
        self.commit = hashlib.sha1("".join(f"{blob.name} {blob.blob_id}\n" for blob in blobs).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Serves `repos` (`OWNER/NAME` to directory) on 127.0.0.1 while the context is open.

    `url` is the endpoint, `requests` what was asked, `sent` the bytes of files that went out, `bodies` how many go out
    now; `faults` what goes wrong and may be changed at any time.
    """

    def __init__(self, repos: dict[str, Path], faults: Sequence[Fault] = (), port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        self.repos = {name: Repo(root) for name, root in repos.items()}
        self.faults = list(faults)
        self.requests: list[Request] = []
        self.sent = self.bodies = 0
        self.connections: list[socket] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def count(self, sent: int = 0, bodies: int = 0) -> None:
        """So many bytes of a file went out, so many bodies began (or ended: -1)."""
        with self._lock:
            self.sent += sent
            self.bodies += bodies

    def fault(self, kind: str, path: str) -> Fault | None:
        """The fault that applies now; one of its times is used up."""
        with self._lock:
            for fault in self.faults:
                if fault.kind == kind and fnmatch(path, fault.path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Exchange(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are recorded."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked, token = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        self.server.requests.append(Request(self.command, path, asked, token, time.monotonic()))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._info(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            expired = self.server.fault("expired", found[2])
            self._fail(403, "") if expired else self._body(self.server.repos[found[1]].blobs[found[2]], {})
        else:
            self._fail(404, "")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _info(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision, "")) is None:
            return
        commit = "0" * 40 if self.server.fault("commit", "") else repo.commit
        siblings = [self._stated(blob) for blob in repo.blobs.values()]
        body = json.dumps({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}).encode()
        body = PAGE if self.server.fault("html", "") else body
        self._send(200, {"Content-Type": "application/json", "X-HF-Warning": "login; Rates are limited."}, len(body))
        self.wfile.write(body)

    def _stated(self, blob: Blob) -> dict[str, Any]:
        off, lie = self.server.fault("size", blob.name), self.server.fault("hash", blob.name)
        size = len(blob.data) + (off.value if off else 0)
        if not blob.lfs:
            return {"rfilename": blob.name, "size": size, "blobId": "1" * 40 if lie else blob.blob_id}
        lfs = {"sha256": "1" * 64 if lie else blob.sha256, "size": size, "pointerSize": 134}
        return {"rfilename": blob.name, "size": size, "blobId": blob.blob_id, "lfs": lfs}

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name, revision, path)) is None:
            return
        blob, headers = repo.blobs.get(path), {"X-Repo-Commit": repo.commit}
        if blob is None:
            self._fail(404, "EntryNotFound")
        elif blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            # Another host, as with the real hub: the client must not send its token there.
            location = (
                f"http://{self.headers['Host'].replace('127.0.0.1', 'localhost')}/cdn/{name}/{path}?Signature=signed"
            )
            self._send(302, headers | {"ETag": f'"{blob.blob_id}"', "Location": location})
        else:
            self._body(blob, headers)

    def _repo(self, name: str, revision: str, path: str) -> Repo | None:
        """The repository at the revision, or None when the request was answered with an error."""
        repo, fault = self.server.repos.get(name), self.server.fault("status", path)
        if fault is None and repo and revision in ("main", repo.commit):
            return repo
        missing = "RevisionNotFound" if repo else "RepoNotFound"
        if fault:
            self._fail(fault.value, fault.code, dict(fault.headers), fault.body)
        else:
            self._fail(404, missing)
        return None

    def _body(self, blob: Blob, headers: dict[str, str]) -> None:
        if self.server.fault("page", blob.name):
            self._send(200, {"Content-Type": "text/html"}, len(PAGE))
            self.wfile.write(PAGE)
            return
        data, size, start = blob.data, len(blob.data), 0
        end = size
        if fault := self.server.fault("corrupt", blob.name):
            data = data[: fault.value] + bytes([data[fault.value] ^ 1]) + data[fault.value + 1 :]
        headers |= {"ETag": f'"{blob.sha256 if blob.lfs else blob.blob_id}"', "Accept-Ranges": "bytes"}
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if ranged and not self.server.fault("whole", blob.name):
            start, end = int(ranged[1]), min(int(ranged[2]) + 1 if ranged[2] else size, size)
            if stingy := self.server.fault("stingy", blob.name):
                end = min(end, start + stingy.value)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if start < size else f"bytes */{size}"
        status = 416 if start > 0 and start >= size else 206 if "Content-Range" in headers else 200
        self._send(status, headers, max(0, end - start))
        if self.command == "GET":
            self.server.count(bodies=1)
            try:
                self._write(blob.name, memoryview(data)[start:end])
            finally:
                self.server.count(bodies=-1)

    def _write(self, name: str, data: memoryview) -> None:
        cut, stall, slow = (self.server.fault(kind, name) for kind in ("cut", "stall", "slow"))
        end = min([len(data), *(fault.value for fault in (cut, stall) if fault)])
        step = min(CHUNK, 1 + slow.value // 20) if slow else CHUNK
        self.close_connection = bool(cut or stall)
        for at in range(0, end, step):
            self.wfile.write(data[at : min(at + step, end)])
            self.server.count(min(at + step, end) - at)
            if slow and self.server.closing.wait(step / slow.value):
                break
        if stall:
            self.server.closing.wait()

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        error_headers = {"X-Error-Code": code, "X-Error-Message": f"{code} on {self.path}"} if code else {}
        self._send(status, error_headers | (headers or {}), len(body))
        self.wfile.write(body)

    def _send(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()


def main() -> None:
    """Serves until killed; the first line on stdout is the URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", action="append", required=True, metavar="OWNER/NAME=DIR")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0, metavar="BYTES", help="bytes per second and request")
    options = parser.parse_args()
    repos = dict(pair.split("=", 1) for pair in options.repo)
    faults = [Fault("slow", value=options.slow)] if options.slow else []
    with HubServer({name: Path(root) for name, root in repos.items()}, faults, options.port) as hub:
        print(hub.url, flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
