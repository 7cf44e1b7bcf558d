"""`python -m orchestrator.gateway --listen HOST:PORT --admin SOCKET --state ROUTES.json [--take-over SOCKET]
[--key-file FILE] [--secrets DIR] [--origin ORIGIN ...] [--limit NAME=VALUE ...] [--window SECONDS]`.

SIGHUP reads the key file again. Exit codes: 0 after SIGTERM or SIGINT, or when another gateway has taken over; 2 usage;
4 when an address, a socket, the state file or the key file cannot be used, or when an address is beyond loopback and
there is no API key.
"""

from __future__ import annotations

import argparse
import logging
import resource
import socket
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from orchestrator.core.gateway_status import Listener
from orchestrator.core.keys import KEY_USE
from orchestrator.core.listen import is_loopback, join_address
from orchestrator.core.routes import FIRST_WITH_DIGESTS, PROTOCOL
from orchestrator.core.traffic_window import DIRECTORY, MINUTE_S
from orchestrator.errors import HostError, OrchError
from orchestrator.gateway import state_file
from orchestrator.gateway.front import Terms
from orchestrator.gateway.handover import Receiver
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.limits import NAMES, Limits, parse_limits
from orchestrator.gateway.origins import Allowed, parse_pattern, parse_patterns
from orchestrator.gateway.secrets import EngineSecrets
from orchestrator.gateway.server import Setup, serve
from orchestrator.gateway.sockets import Doors, admin_socket, front_socket, is_own_address, parse_listen

log = logging.getLogger("orchestrator.gateway")

DEFAULT_LISTEN = ("127.0.0.1", 8484)


def _origin(text: str) -> str:
    try:
        parse_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _part_of_a_minute(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= MINUTE_S or MINUTE_S / seconds % 1:
        raise argparse.ArgumentTypeError(f"{text!r} does not divide a minute: 60, 30, 20, 15, 10, 5, 1 ... seconds")
    return seconds


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m orchestrator.gateway", description="The front door of the engines.")
    parser.add_argument(
        "--listen", action="append", type=parse_listen, metavar="HOST:PORT", help="may be given several times"
    )
    parser.add_argument("--admin", required=True, type=Path, metavar="SOCKET", help="path of the unix socket")
    parser.add_argument("--state", required=True, type=Path, metavar="FILE", help="where the routes are kept")
    parser.add_argument(
        "--take-over",
        type=Path,
        metavar="SOCKET",
        help="do not listen, but wait at this unix socket for another gateway's sockets and routes; once it has been "
        "given them it starts without, from its own state",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="clients show one of these API keys, as `orch keys add` writes them; without the file they need none, "
        "and it cannot listen beyond loopback; only its owner may read it; SIGHUP reads it again",
    )
    parser.add_argument(
        "--secrets", type=Path, metavar="DIR", help="what engines ask for, a file each by the names of their instances"
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="whose pages may use a gateway without keys, besides this machine's own: https://chat.example.org, "
        "http://*.lan:8080, chrome-extension://*, or * for all; may be given several times",
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"what clients may take: {', '.join(NAMES)}; may be given several times",
    )
    parser.add_argument(
        "--grace", default=10.0, type=float, metavar="SECONDS", help="for requests in flight at SIGTERM"
    )
    parser.add_argument(
        "--window",
        default=float(MINUTE_S),
        type=_part_of_a_minute,
        metavar="SECONDS",
        help="how often it is written down, beside the unix socket, what clients did; it divides a minute (60)",
    )
    arguments = parser.parse_args(argv)
    try:
        parse_limits(arguments.limit)
    except ValueError as error:
        parser.error(f"argument --limit: {error}")
    return arguments


def _limits(said: Iterable[str]) -> Limits:
    """As they are said, and within the number of files that may be open; raises HostError where both cannot be.

    The usual soft limit of 1024 files is 500 streams; the hard one is what the host really allows.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    limits = parse_limits(said)
    fitting = limits if files == resource.RLIM_INFINITY else limits.within(files)
    if fitting != limits:
        counts = f"{limits.connections} connections and {limits.requests} requests take {limits.files} open files"
        if any(text.startswith(("connections=", "requests=")) for text in said):
            raise HostError(f"{counts}; {files} are allowed here.", hint="Raise that (ulimit -Hn), or say fewer.")
        log.info("%s; %d are allowed here, hence %d and %d.", counts, files, fitting.connections, fitting.requests)
    return fitting


def _keys(hosts: Iterable[str], file: Path | None, use: Path) -> Keys:
    """The keys that clients must show; raises HostError."""
    beyond = next((host for host in hosts if not is_loopback(host)), None)
    if beyond is not None and (file is None or not file.exists()):
        raise HostError(
            f"Listening on {beyond} lets other machines in, and they need no API key.",
            hint="orch keys add NAME makes one, in the file that --key-file names; or listen on 127.0.0.1.",
        )
    return Keys(file, use, needed=beyond is not None)


class _Timed(logging.Formatter):
    """A time before each line, those of a traceback too: ISO 8601, with the offset from UTC."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(timespec="milliseconds")
        return "\n".join(f"{at} {line}" for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """All that is said, by whom ever: what nobody catches, and warnings, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Timed("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = lambda *error: log.critical("This is a bug in orch.", exc_info=error)


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    log_to_stderr()
    arguments = _arguments(argv)
    listen = arguments.listen or [DEFAULT_LISTEN]
    try:
        limits = _limits(arguments.limit)
        use = arguments.admin.with_name(KEY_USE)
        keys = _keys((host for host, _ in listen), arguments.key_file, use)
        origins = tuple(arguments.origin)
        terms = Terms(keys, Allowed(parse_patterns(origins), socket.gethostname(), is_own_address), limits)
        waits = arguments.take_over is not None and not arguments.state.exists()
        fronts = () if waits else tuple(front_socket(*one) for one in listen)
        admin = admin_socket(arguments.admin)
        receiver = Receiver(arguments.take_over) if waits else None
        saved, damage = state_file.load(arguments.state)
        if damage:
            log.error(damage)
        listeners = tuple(Listener(join_address(*one)) for one in listen)
        # Started again as an earlier version had started it, it does what that could do.
        protocol = PROTOCOL if arguments.secrets is not None else FIRST_WITH_DIGESTS - 1
        secrets = EngineSecrets(arguments.secrets)
        setup = Setup(
            listeners=listeners,
            state=arguments.state,
            terms=terms,
            secrets=secrets,
            origins=origins,
            limits=tuple(arguments.limit),
            grace=arguments.grace,
            traffic=arguments.admin.with_name(DIRECTORY),
            window_s=arguments.window,
            protocol=protocol,
        )
        uvloop.run(serve(setup, Doors(fronts, admin, arguments.admin), saved, receiver))
    except OrchError as error:
        log.error(" ".join(part for part in (error.message, error.hint) if part))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
