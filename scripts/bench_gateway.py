"""What the gateway adds: the same requests to a small local engine, directly and through a gateway, side by side.

Run by scripts/bench-gateway. Loopback only, a few seconds, one gateway process. Times on a busy
machine are noisy; CPU per request and per event (the gateway's own, from /proc/PID/schedstat) is the figure to trust.
Events that arrive together are passed on together: at full speed an event costs far less than one that comes alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from orchestrator.core.routes import Route
from orchestrator.drivers.gateway_admin import GatewayAdmin

ANSWER = b'{"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}'
EVENT = b'data: {"id": "x", "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": null}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Engine(asyncio.Protocol):
    """Answers at once; a stream's events leave one by one, `pace` seconds apart (0: as fast as the loop turns)."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.data = b""
        self.may_write = asyncio.Event()
        self.may_write.set()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.may_write.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self.data = b""
        asked = json.loads(body)
        if "events" not in asked:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            self.transport.write(b"Content-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
            return
        self.task = asyncio.get_running_loop().create_task(self.stream(asked["events"], asked["pace"]))

    async def stream(self, events: int, pace: float) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(events):
            self.transport.write(CHUNK)
            await asyncio.sleep(pace)
            await self.may_write.wait()
            if self.transport.is_closing():
                return
        self.transport.write(LAST)


async def serve_engine() -> None:
    """Serve until killed; the port is the first line of the output."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def request(**fields: object) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * 200}], **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def until(connection: socket.socket, end: bytes) -> float:
    """Read to `end`; returns the time of the first bytes of the body."""
    data, first = b"", 0.0
    while not data.endswith(end):
        got = connection.recv(1 << 16)
        if not got:
            raise SystemExit("A connection was closed early.")
        data += got
        if not first and b"\r\n\r\n" in data and data.partition(b"\r\n\r\n")[2]:
            first = time.perf_counter()
    return first


def latencies(ports: dict[str, int], message: bytes, end: bytes, count: int) -> dict[str, list[float]]:
    """Microseconds to the first byte of the body, one warm connection each, the two taking turns."""
    connections = {name: socket.create_connection(("127.0.0.1", port), timeout=10) for name, port in ports.items()}
    seen: dict[str, list[float]] = {name: [] for name in ports}
    for turn in range(count + 20):
        for name, connection in connections.items():
            start = time.perf_counter()
            connection.sendall(message)
            first = until(connection, end)
            if turn >= 20:
                seen[name].append((first - start) * 1e6)
    for connection in connections.values():
        connection.close()
    return seen


async def events_per_second(port: int, streams: int, events: int, pace: float) -> float:
    """Events that arrive in each second over `streams` at once."""

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(events=events, pace=pace))
        count, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await reader.read(1 << 16)
            if not data:
                raise SystemExit("A stream ended early.")
            count += (tail + data).count(b"data: {") - tail.count(b"data: {")
            tail = (tail + data)[-6:]
        writer.close()
        return count

    start = time.perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(streams)))
    if set(counts) != {events}:
        raise SystemExit(f"Events were lost: {sorted(set(counts))} instead of {events}.")
    return sum(counts) / (time.perf_counter() - start)


def cpu_us(pid: int) -> float:
    """Microseconds that the process was on a CPU so far, all its threads."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1000


def quantiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


def compare(what: str, unit: str, formula: str, direct: float, through: float) -> None:
    ratio = through / direct
    print(f"{what:34} {direct:10,.0f} {through:10,.0f} {unit:9} x {ratio:5.2f}   {formula}")


def measure(ports: dict[str, int], pid: int, count: int) -> None:
    print(f"{'':34} {'direct':>10} {'gateway':>10} {'':9}   {'ratio':5}   how")
    for what, message, end in (
        ("whole answer", request(), ANSWER),
        ("first event of a stream", request(events=3, pace=0), b"\r\n0\r\n\r\n"),
    ):
        before = cpu_us(pid)
        seen = latencies(ports, message, end, count)
        used = (cpu_us(pid) - before) / (count + 20)
        (half, late), (half_g, late_g) = quantiles(seen["direct"]), quantiles(seen["gateway"])
        compare(f"{what}, median", "us", "t(first body byte) - t(request sent), 1 connection", half, half_g)
        compare(f"{what}, p99", "us", f"added at the median: {half_g - half:.0f} us", late, late_g)
        print(f"{'':34} {'':10} {used:10,.0f} {'us CPU':9}           gateway CPU / requests")
    for what, streams, events, pace in (("64 paced streams", 64, 100, 0.01), ("8 streams at full speed", 8, 2500, 0.0)):
        direct = asyncio.run(events_per_second(ports["direct"], streams, events, pace))
        before = cpu_us(pid)
        through = asyncio.run(events_per_second(ports["gateway"], streams, events, pace))
        used = (cpu_us(pid) - before) / (streams * events)
        compare(what, "events/s", "events received / wall time, opening included", direct, through)
        ceiling = f"gateway CPU / events: one core carries {1e6 / used:,.0f} events/s of this kind"
        print(f"{'':34} {'':10} {used:10,.1f} {'us CPU':9}           {ceiling}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500, help="of each kind, 20 to 5000")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        uvloop.run(serve_engine())
        return
    if not 20 <= arguments.requests <= 5000:
        parser.error("--requests: 20 to 5000")
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        engine = subprocess.Popen([sys.executable, __file__, "--engine"], stdout=subprocess.PIPE, text=True)
        files = ["--admin", f"{home}/s", "--state", f"{home}/routes.json"]
        command = [sys.executable, "-m", "orchestrator.gateway", "--listen", "127.0.0.1:0", *files]
        with Path(home, "log").open("w") as log:
            gateway = subprocess.Popen(command, stderr=log)
        try:
            assert engine.stdout is not None
            port = int(engine.stdout.readline())
            admin = GatewayAdmin(Path(home) / "s")
            while (status := admin.status()) is None and gateway.poll() is None:
                time.sleep(0.01)
            if status is None:
                raise SystemExit(f"The gateway did not start: {Path(home, 'log').read_text()}")
            admin.set_routes("bench", [Route("m", "bench", "bench-g1", f"http://127.0.0.1:{port}")])
            ports = {"direct": port, "gateway": int(status.listen.rpartition(":")[2])}
            measure(ports, gateway.pid, arguments.requests)
        finally:
            for process in (gateway, engine):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
