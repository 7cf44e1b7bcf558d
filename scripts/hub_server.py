"""A small Hugging Face hub on loopback: directories served as `OWNER/NAME`, with faults on demand.

It speaks what the hub's own client and orch ask for: model info, file tree, and `resolve` with ETag, Range
and, for LFS files, the redirect to a second address. As a program it prints its URL and serves until killed:

    python scripts/hub_server.py --repo owner/name=DIR --port 0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
        self._lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

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

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def fault(self, kind: str, path: str) -> Fault | None:
        """The fault that applies now; one of its times is used up."""
        with self._lock:
            for fault in self.faults:
                if fault.kind == kind and fnmatch(path, fault.path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def off_by(self, path: str) -> int:
        """How far the stated size of `path` is from the truth."""
        fault = self.fault("size", path)
        return fault.value if fault else 0

    def stated_hash(self, path: str, true: str) -> str:
        """The hash that the API states for `path`."""
        return (
            hashlib.new("sha256" if len(true) == 64 else "sha1", b"lie").hexdigest()
            if self.fault("hash", path)
            else true
        )

    def fetches(self, name: str) -> list[Request]:
        """The GET requests that asked for the body of the file `name`, as the client began them."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{name}") and "/resolve/" in r.path]


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; `hub` is set by the server's own subclass."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are recorded."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = {name: self.headers.get(name) or "" for name in ("Range", "Authorization", "User-Agent")}
        self.hub.record(Request(self.command, path, *asked.values()))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?", path):
            self._api(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._body(self.hub.repos[found[1]].blobs[found[3]], {})
        else:
            self._fail(404, "")

    def _api(self, name: str, verb: str, revision: str) -> None:
        repo = self._repo(name, revision, "")
        if repo is None:
            return
        commit = repo.commit if not self.hub.fault("commit", "") else "0" * 40
        files = [self._stated(blob) for blob in repo.blobs.values()]
        siblings = [
            {"rfilename": file["path"]} | {k: file[k] for k in ("size", "blobId", "lfs") if k in file} for file in files
        ]
        info = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._json(info if verb == "revision" else [{"type": "file", "oid": file["blobId"]} | file for file in files])

    def _stated(self, blob: Blob) -> dict[str, Any]:
        size = len(blob.data) + self.hub.off_by(blob.name)
        if not blob.lfs:
            return {"path": blob.name, "size": size, "blobId": self.hub.stated_hash(blob.name, blob.blob_id)}
        sha256 = self.hub.stated_hash(blob.name, blob.sha256)
        lfs = {"sha256": sha256, "oid": sha256, "size": size, "pointerSize": 134}
        return {"path": blob.name, "size": size, "blobId": blob.blob_id, "lfs": lfs}

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision, path)
        if repo is None:
            return
        blob = repo.blobs.get(path)
        if blob is None:
            self._fail(404, "EntryNotFound")
        elif blob.lfs:
            headers = {
                "X-Linked-Etag": f'"{blob.sha256}"',
                "X-Linked-Size": str(len(blob.data)),
                "ETag": f'"{blob.blob_id}"',
            }
            location = f"{self.hub.url}/cdn/{name}/{repo.commit}/{path}?Signature=signed"
            self._send(302, headers | {"X-Repo-Commit": repo.commit, "Location": location})
        else:
            self._body(blob, {"X-Repo-Commit": repo.commit})

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
        end = cut.value if cut else stall.value if stall else len(data)
        step = max(1, min(CHUNK, slow.value // 20)) if slow else CHUNK
        try:
            for at in range(0, min(end, len(data)), step):
                self.wfile.write(data[at : min(at + step, end)])
                if slow and self.hub.closing.wait(step / slow.value):
                    break
            if stall:
                self.hub.closing.wait()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.close_connection = self.close_connection or cut is not None or stall is not None

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._send(200, {"Content-Type": "application/json"}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

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
