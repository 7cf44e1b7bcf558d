"""`python -m orchestrator.gateway --listen HOST:PORT --admin SOCKET --state ROUTES.json [--key-file FILE]`.

SIGHUP reads the key file again. Exit codes: 0 after SIGTERM or SIGINT, 2 usage, 4 when an address, the socket, the
state file or the key file cannot be used, or when the address is beyond loopback and there is no key file.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from pathlib import Path

import uvloop

from orchestrator.errors import HostError, OrchError
from orchestrator.gateway.admin import load_table
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.server import Doors, serve
from orchestrator.gateway.sockets import admin_socket, front_socket, is_loopback, parse_listen

log = logging.getLogger("orchestrator.gateway")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m orchestrator.gateway", description="The front door of the engines.")
    parser.add_argument("--listen", default="127.0.0.1:8484", type=parse_listen, metavar="HOST:PORT")
    parser.add_argument("--admin", required=True, type=Path, metavar="SOCKET", help="path of the unix socket")
    parser.add_argument("--state", required=True, type=Path, metavar="FILE", help="where the routes are kept")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="API keys, one per line, of which clients must show one; only its owner may read it; needed to listen "
        "beyond loopback; SIGHUP reads it again",
    )
    parser.add_argument(
        "--grace", default=10.0, type=float, metavar="SECONDS", help="for requests in flight at SIGTERM"
    )
    return parser.parse_args(argv)


def _allow_many_connections() -> None:
    """The usual soft limit of 1024 open files is 500 streams; the hard one is what the host really allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keys(host: str, file: Path | None) -> Keys | None:
    """The keys that clients must show, None when none are demanded; raises HostError."""
    if file is not None:
        return Keys(file)
    if not is_loopback(host):
        raise HostError(
            f"Listening on {host} lets other machines in, and no API key is demanded of them.",
            hint="Give --key-file FILE with one API key per line, or listen on 127.0.0.1.",
        )
    return None


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    arguments = _arguments(argv)
    _allow_many_connections()
    try:
        host, port = arguments.listen
        keys = _keys(host, arguments.key_file)
        front = front_socket(host, port)
        admin = admin_socket(arguments.admin)
        table, damage = load_table(arguments.state)
        if damage:
            log.error(damage)
        uvloop.run(serve(Doors(front, admin, arguments.admin), arguments.state, table, arguments.grace, keys))
    except OrchError as error:
        log.error(" ".join(part for part in (error.message, error.hint) if part))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
