"""The ways to the engine that scripts/bench-gateway compares: nginx, HAProxy and gateways, and what they cost.

Each is a process that is started here on loopback, with its files in a scratch directory, pinned to one core; no
process but these is touched, and nothing needs root. All of them check a bearer key, but for the gateway's cheapest
route.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench_engine import MODEL

from orchestrator.core.keys import ApiKey, KeyRing, digest_of, utc
from orchestrator.core.routes import LLAMA_SERVER, OPENAI, VLLM, Backend, Route
from orchestrator.drivers.gateway_admin import GatewayAdmin

KEY = "bench-key-0123456789abcdef0123456789abcdef"
# What clients call the model where the route changes the name, and what it adds: the scales of two adapters.
NAMED = "tiny-pirate"
PATCH = {"lora": [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}], "cache_prompt": True}
CHAT, OLLAMA_CHAT = "/v1/chat/completions", "/api/chat"
START_S = 20.0
HERE = Path(__file__).resolve().parents[1]

_NGINX = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 8192;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  map_hash_bucket_size 256;
  client_body_buffer_size 1m;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 100000000; }}
  map $http_authorization $refused {{ default 1; "Bearer {key}" 0; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      if ($refused) {{ return 401; }}
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""
_HAPROXY = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  http-request deny deny_status 401 unless {{ req.hdr(authorization) -m str "Bearer {key}" }}
  default_backend engine
backend engine
  server one 127.0.0.1:{engine}
"""


@dataclass(frozen=True)
class Way:
    """One way to the engine, and the processes that are on it (none: direct). `path`, `model` and `key` are what a
    client asks with; `closes`: a connection is good for one stream."""

    name: str
    port: int
    processes: tuple[int, ...] = ()
    path: str = CHAT
    model: str = MODEL
    key: str = KEY
    closes: bool = False

    def request(self, what: str = "", **fields: object) -> bytes:
        """A chat of 1 KB, in which `what` tells the engine what to do."""
        message = {"role": "user", "content": f"{what} {'Say something about it. ' * 40}"}
        body = json.dumps({"model": self.model, "messages": [message], "stream": bool(what), **fields}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        if self.key:
            head += f"Authorization: Bearer {self.key}\r\n"
        return head.encode() + b"Content-Type: application/json\r\nAccept: */*\r\n\r\n" + body

    @property
    def cpu_us(self) -> float:
        """Microseconds that its processes were on a CPU so far, all their threads."""
        return (
            sum(
                int(file.read_text().split()[0])
                for pid in self.processes
                for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
            )
            / 1000
        )

    @property
    def pss_mb(self) -> float:
        """Megabytes of memory, pages that are shared counted in part."""
        rolls = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes)
        return sum(int(roll.partition("\nPss:")[2].split()[0]) for roll in rolls) / 1024


def family(pid: int) -> tuple[int, ...]:
    """A process and all that came of it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return tuple(found)


def pin(pid: int, core: int | None) -> None:
    """Have a process and its threads run on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir() if core is not None else ():
        os.sched_setaffinity(int(task.name), {core})


Start = Callable[[], list[Way]]


@dataclass
class Ways:
    """Starts them in front of the engine at port `engine`, which `closes` its connections after a stream or not;
    `close` ends what was started."""

    home: Path
    engine: int
    closes: bool
    core: int | None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def nginx(self) -> list[Way]:
        """With one worker."""
        home, port = self._home("nginx"), _free_port()
        # Without it workers of a master that is root are nobody, and cannot write here.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        file = home / "nginx.conf"
        file.write_text(_NGINX.format(user=user, home=home, engine=self.engine, port=port, key=KEY))
        command = [_program("nginx"), "-e", f"{home}/error.log", "-p", str(home), "-c", str(file)]
        return [self._started("nginx", port, command)]

    def haproxy(self) -> list[Way]:
        """With one thread."""
        home, port = self._home("haproxy"), _free_port()
        file = home / "haproxy.cfg"
        file.write_text(_HAPROXY.format(engine=self.engine, port=port, key=KEY))
        return [self._started("haproxy", port, [_program("haproxy"), "-db", "-f", str(file)])]

    def cheapest(self, checkout: Path) -> list[Way]:
        """A gateway of a checkout, with this one's interpreter and libraries: no key, nothing changed."""
        return [self._gateway(f"gateway{_mark(checkout)}", checkout, self._route(MODEL), key="")]

    def named(self, checkout: Path) -> list[Way]:
        """The same with a key, for a route with a name of its own and a patch; and in Ollama's words."""
        route = replace(self._route(NAMED), upstream=MODEL, patch=PATCH)
        way = self._gateway(f"patch, key{_mark(checkout)}", checkout, route, KEY)
        return [way, replace(way, name=f"/api/chat{_mark(checkout)}", path=OLLAMA_CHAT)]

    def starts(self, checkouts: Iterable[Path]) -> tuple[Start, ...]:
        """What starts each process there is to compare. FileNotFoundError says which is not installed."""
        gateways = ((partial(self.cheapest, one), partial(self.named, one)) for one in checkouts)
        return (self.nginx, self.haproxy, *itertools.chain(*gateways))

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def _route(self, name: str) -> Route:
        backend = Backend("bench-g1", f"http://127.0.0.1:{self.engine}")
        return Route(name, "bench", (backend,), (OPENAI, LLAMA_SERVER if self.closes else VLLM))

    def _gateway(self, name: str, checkout: Path, route: Route, key: str) -> Way:
        home, port = self._home("gateway"), _free_port()
        command = [sys.executable, "-P", "-m", "orchestrator.gateway", "--listen", f"127.0.0.1:{port}"]
        command += ["--admin", f"{home}/admin", "--state", f"{home}/routes.json", "--secrets", str(home)]
        if key:
            keys, now = home / "keys.json", utc(datetime.now(UTC))
            keys.write_text(KeyRing((ApiKey("bench", digest_of(key), now),)).to_text())
            keys.chmod(0o600)
            command += ["--key-file", str(keys)]
        way = self._started(name, port, command, {"PYTHONPATH": str(checkout)})
        GatewayAdmin(home / "admin", patience_s=START_S).set_routes("bench", [route])
        return replace(way, model=route.name, key=key)

    def _home(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=name, dir=self.home))

    def _started(self, name: str, port: int, command: Sequence[str], more: dict[str, str] | None = None) -> Way:
        output = self._home("output") / "log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(more or {})}
            )
        self.processes.append(process)
        pin(process.pid, self.core)
        until = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{name} did not start:\n{output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        # nginx listens before its worker is there.
        time.sleep(0.2)
        processes = family(process.pid)
        for pid in processes:
            pin(pid, self.core)
        return Way(name, port, processes)


def _mark(checkout: Path) -> str:
    """What tells another checkout's gateway: its commit, or its name."""
    if checkout == HERE:
        return ""
    asked = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f" @{asked.stdout.strip() or checkout.name}"


def _program(name: str) -> str:
    # Debian's are in a directory that is not on every user's PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(name)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def first_in_line(processes: Iterable[int], wanted: bool) -> Iterator[None]:
    """Nothing with a usual priority runs where these want to (root only), as long as `wanted`."""
    tasks = [int(task.name) for pid in processes if wanted for task in Path(f"/proc/{pid}/task").iterdir()]
    for task in tasks:
        os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        for task in tasks:
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))
        if tasks:
            time.sleep(0.2)  # others, too, have to do
