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
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = ("*.safetensors", "*.bin", "*.gguf", "tokenizer.json")
CHUNK = 64 * 1024


@dataclass
class Fault:
    """What goes wrong, for files that match `path` (the API is `path` ""), the next `times` times (None: always).

    kind     value
    cut      the connection ends after so many bytes of a body
    corrupt  the byte at this offset is flipped
    size     the stated size is off by this
    hash     the stated SHA-256 or blob id is of something else
    commit   the API answers with another commit
    status   HTTP status; `code` is the X-Error-Code
    slow     bytes per second
    expired  the address that LFS files are redirected to answers 403
    html     the API answers with a page, as a proxy would
    stall    the body stops after so many bytes, and the connection stays open
    whole    Range is ignored
    """

    kind: str
    path: str = "*"
    value: int = 0
    times: int | None = None
    code: str = ""


@dataclass(frozen=True)
class Request:
    """One request as it came: `range` is the Range header or "", `token` the Authorization header or ""."""

    method: str
    path: str
    range: str
    token: str
    agent: str


@dataclass(frozen=True)
class Blob:
    """A file of a repository with what the hub states about it."""

    path: Path
    name: str

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def lfs(self) -> bool:
        return any(fnmatch(self.name, pattern) for pattern in LFS)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    """A directory at one commit, which `main` points at."""

    name: str
    root: Path
    blobs: dict[str, Blob] = field(init=False)
    commit: str = field(init=False)

    def __post_init__(self) -> None:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        names = [path.relative_to(self.root).as_posix() for path in files]
        self.blobs = {name: Blob(path, name) for name, path in zip(names, files, strict=True)}
        listing = "".join(f"{name} {blob.blob_id}\n" for name, blob in self.blobs.items())
        self.commit = hashlib.sha1(listing.encode()).hexdigest()


class HubServer:
    """Serves `repos` (`OWNER/NAME` to directory) on 127.0.0.1 while the context is open.

    `url` is the endpoint, `requests` what was asked, `faults` what goes wrong and may be changed at any time.
    """

    def __init__(self, repos: dict[str, Path], faults: Sequence[Fault] = (), port: int = 0) -> None:
        self.repos = {name: Repo(name, root) for name, root in repos.items()}
        self.faults = list(faults)
        self.requests: list[Request] = []
        self.connections: list[socket] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.cdn = f"http://localhost:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)

    def fault(self, kind: str, path: str) -> Fault | None:
        """The fault that applies now; one of its times is used up."""
        with self._lock:
            for fault in self.faults:
                if fault.kind == kind and fnmatch(path, fault.path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Http(ThreadingHTTPServer):
    """Clients that go away are no news."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; `hub` is set by the server's own subclass."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are recorded."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = {name: self.headers.get(name) or "" for name in ("Range", "Authorization", "User-Agent")}
        self.hub.requests.append(Request(self.command, path, *asked.values()))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._info(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            expired = self.hub.fault("expired", found[2])
            self._fail(403, "") if expired else self._body(self.hub.repos[found[1]].blobs[found[2]], {})
        else:
            self._fail(404, "")

    def _info(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision, "")) is None:
            return
        commit = "0" * 40 if self.hub.fault("commit", "") else repo.commit
        siblings = [self._stated(blob) for blob in repo.blobs.values()]
        body = json.dumps({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}).encode()
        body = b"<html>" if self.hub.fault("html", "") else body
        self._send(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _stated(self, blob: Blob) -> dict[str, Any]:
        off, lie = self.hub.fault("size", blob.name), self.hub.fault("hash", blob.name)
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
            location = f"{self.hub.cdn}/cdn/{name}/{path}?Signature=signed"
            self._send(302, headers | {"ETag": f'"{blob.blob_id}"', "Location": location})
        else:
            self._body(blob, headers)

    def _repo(self, name: str, revision: str, path: str) -> Repo | None:
        """The repository at the revision, or None when the request was answered with an error."""
        repo = self.hub.repos.get(name)
        if fault := self.hub.fault("status", path):
            self._fail(fault.value, fault.code)
        elif repo is None:
            self._fail(404, "RepoNotFound")
        elif revision not in ("main", repo.commit):
            self._fail(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _body(self, blob: Blob, headers: dict[str, str]) -> None:
        data, size, start = blob.data, len(blob.data), 0
        if fault := self.hub.fault("corrupt", blob.name):
            data = data[: fault.value] + bytes([data[fault.value] ^ 1]) + data[fault.value + 1 :]
        headers |= {"ETag": f'"{blob.sha256 if blob.lfs else blob.blob_id}"', "Accept-Ranges": "bytes"}
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if ranged and not self.hub.fault("whole", blob.name):
            start = int(ranged[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}" if start < size else f"bytes */{size}"
        if start and start >= size:
            return self._send(416, headers)
        self._send(206 if "Content-Range" in headers else 200, headers, size - start)
        if self.command == "GET":
            self._write(blob.name, data[start:])
        return None

    def _write(self, name: str, data: bytes) -> None:
        cut, stall, slow = (self.hub.fault(kind, name) for kind in ("cut", "stall", "slow"))
        end = min(len(data), *(fault.value for fault in (cut, stall) if fault), len(data))
        step = max(1, min(CHUNK, slow.value // 20)) if slow else CHUNK
        self.close_connection = bool(cut or stall)
        for at in range(0, end, step):
            self.wfile.write(data[at : min(at + step, end)])
            if slow and self.hub.closing.wait(step / slow.value):
                break
        if stall:
            self.hub.closing.wait()

    def _fail(self, status: int, code: str) -> None:
        said = {"GatedRepo": "Access to this model is restricted.", "RepoNotFound": "Repository not found"}
        self._send(status, {"X-Error-Code": code, "X-Error-Message": said.get(code, code)} if code else {})

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
    parser.add_argument("--slow", type=int, default=0, metavar="BYTES", help="bytes per second and file")
    options = parser.parse_args()
    repos = dict(pair.split("=", 1) for pair in options.repo)
    faults = [Fault("slow", value=options.slow)] if options.slow else []
    with HubServer({name: Path(root) for name, root in repos.items()}, faults, options.port) as hub:
        print(hub.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
