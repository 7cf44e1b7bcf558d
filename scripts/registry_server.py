"""A small container registry (API v2) on loopback: images as `IMAGE:TAG`, with faults on demand.

It serves what `docker pull` asks for: manifests (v2, schema 2) by tag and by digest, and the blobs that they name. A
Docker daemon speaks plain HTTP to 127.0.0.0/8, so nothing has to be configured. As a program it prints its address and
serves until killed; the archives are those of `docker save`, one image each:

    python scripts/registry_server.py --image test/tool:1.0=tool.tar --port 0
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import platform
import re
import signal
import sys
import tarfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import unquote, urlsplit

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CHUNK = 64 * 1024


@dataclass
class Fault:
    """What goes wrong, for paths that match `path`, the next `times` times (None: always).

    kind          value
    missing       404, the manifest (or the blob) is unknown
    unauthorized  401, a login is wanted
    cut           the connection ends after so many bytes of a body
    corrupt       the byte at this offset is flipped: not what the digest says
    slow          bytes per second
    stall         the body stops after so many bytes, and the connection stays open
    """

    kind: str
    path: str = "*"
    value: int = 0
    times: int | None = None


@dataclass(frozen=True)
class Image:
    """An image's config (JSON) and its layers (tar, compressed), as a registry has them."""

    config: bytes
    layers: tuple[bytes, ...]

    @cached_property
    def manifest(self) -> bytes:
        layers = [_descriptor(LAYER, layer) for layer in self.layers]
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": _descriptor(CONFIG, self.config)}
        return json.dumps(value | {"layers": layers}).encode()

    @property
    def digest(self) -> str:
        """Of the manifest: what an image is pinned by."""
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        """Of the config: what Docker's own image store knows it by."""
        return digest_of(self.config)


def digest_of(data: bytes) -> str:
    """`sha256:HEX`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_of_files(
    files: Mapping[str, bytes],
    env: Sequence[str] = (),
    entrypoint: Sequence[str] = ("/nothing",),
    labels: Mapping[str, str] | None = None,
) -> Image:
    """An image of one layer with these files. The same files make the same digest."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    layer = out.getvalue()
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": list(env), "Entrypoint": list(entrypoint), "Labels": dict(labels or {})},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "registry_server"}],
        "created": "2026-01-01T00:00:00Z",
    }
    return Image(json.dumps(config).encode(), (_compressed(layer),))


def image_of_archive(path: Path) -> Image:
    """The one image of an archive of `docker save`."""
    with tarfile.open(path) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            if member is None:
                raise ValueError(f"{path} holds no file {name}")
            return member.read()

        (entry,) = json.loads(read("manifest.json"))
        return Image(read(entry["Config"]), tuple(_compressed(read(name)) for name in entry["Layers"]))


def _compressed(layer: bytes) -> bytes:
    return gzip.compress(layer, compresslevel=1, mtime=0)


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(data), "digest": digest_of(data)}


class RegistryServer(ThreadingHTTPServer):
    """Serves `images` (`IMAGE:TAG` to Image) on 127.0.0.1 while the context is open.

    `address` is HOST:PORT, what names begin with; `requests` are the paths that were asked for, with the method before
    and the Range after them; `faults` what goes wrong, to be changed at any time. `put` again moves a known tag.
    """

    def __init__(self, images: Mapping[str, Image], faults: Sequence[Fault] = (), port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        self.tags: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        for name, image in images.items():
            self.put(name, image)
        self.faults = list(faults)
        self.requests: list[str] = []
        self.connections: list[socket] = []
        self.closing = threading.Event()
        self.address = f"127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def put(self, name: str, image: Image) -> None:
        """Have `IMAGE:TAG` mean this image from now on; what it was before stays there by its digest."""
        self.tags[name] = image.digest
        self.blobs |= {digest_of(data): data for data in (image.manifest, image.config, *image.layers)}

    def __enter__(self) -> RegistryServer:
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

    server: RegistryServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are recorded."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        if self.server.fault("unauthorized", path):
            self._fail(401, "UNAUTHORIZED", {"Www-Authenticate": 'Basic realm="registry"'})
        elif path == "/v2/":
            self._answer(b"{}", "application/json", {})
        elif found := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            name, wanted = found.groups()
            digest = wanted if wanted.startswith("sha256:") else self.server.tags.get(f"{name}:{wanted}", "")
            self._blob(path, digest, MANIFEST, "MANIFEST_UNKNOWN")
        elif found := re.fullmatch(r"/v2/(.+)/blobs/([^/]+)", path):
            self._blob(path, found[2], "application/octet-stream", "BLOB_UNKNOWN")
        else:
            self._fail(404, "NOT_FOUND", {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _blob(self, path: str, digest: str, kind: str, unknown: str) -> None:
        data = self.server.blobs.get(digest)
        if data is None or self.server.fault("missing", path):
            self._fail(404, unknown, {})
            return
        if fault := self.server.fault("corrupt", path):
            data = data[: fault.value] + bytes([data[fault.value] ^ 1]) + data[fault.value + 1 :]
        self._answer(data, kind, {"Docker-Content-Digest": digest}, path)

    def _answer(self, data: bytes, kind: str, headers: dict[str, str], path: str = "") -> None:
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if ranged and 0 < int(ranged[1]) < len(data):
            headers["Content-Range"] = f"bytes {ranged[1]}-{len(data) - 1}/{len(data)}"
            data = data[int(ranged[1]) :]
        self._head(206 if "Content-Range" in headers else 200, {"Content-Type": kind} | headers, len(data))
        if self.command != "HEAD":
            self._body(data, path)

    def _body(self, data: bytes, path: str) -> None:
        cut, stall, slow = (self.server.fault(kind, path) if path else None for kind in ("cut", "stall", "slow"))
        end = min([len(data), *(fault.value for fault in (cut, stall) if fault)])
        step = min(CHUNK, 1 + slow.value // 20) if slow else CHUNK
        self.close_connection = bool(cut or stall)
        for at in range(0, end, step):
            self.wfile.write(data[at : min(at + step, end)])
            if slow and self.server.closing.wait(step / slow.value):
                break
        if stall:
            self.server.closing.wait()

    def _fail(self, status: int, code: str, headers: dict[str, str]) -> None:
        message = code.lower().replace("_", " ")
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._head(status, {"Content-Type": "application/json"} | headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        every = {"Docker-Distribution-Api-Version": "registry/2.0", "Content-Length": str(length)}
        for name, value in (headers | every).items():
            self.send_header(name, value)
        self.end_headers()


def main() -> None:
    """Serves until killed; the first line on stdout is the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", action="append", required=True, metavar="IMAGE:TAG=ARCHIVE")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0, metavar="BYTES", help="bytes per second and blob")
    options = parser.parse_args()
    pairs = (pair.split("=", 1) for pair in options.image)
    images = {name: image_of_archive(Path(archive)) for name, archive in pairs}
    faults = [Fault("slow", value=options.slow)] if options.slow else []
    with RegistryServer(images, faults, options.port) as registry:
        print(registry.address, flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
