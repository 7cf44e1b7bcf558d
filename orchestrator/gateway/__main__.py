"""`python -m orchestrator.gateway --listen HOST:PORT --admin SOCKET --state ROUTES.json`.

Exit codes: 0 after SIGTERM or SIGINT, 2 usage, 4 when an address, the socket or the state file cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from pathlib import Path

import uvloop

from orchestrator.errors import OrchError
from orchestrator.gateway.admin import load_table
from orchestrator.gateway.server import Doors, serve
from orchestrator.gateway.sockets import admin_socket, front_socket, parse_listen

log = logging.getLogger("orchestrator.gateway")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m orchestrator.gateway", description="The front door of the engines.")
    parser.add_argument("--listen", default="127.0.0.1:8484", type=parse_listen, metavar="HOST:PORT")
    parser.add_argument("--admin", required=True, type=Path, metavar="SOCKET", help="path of the unix socket")
    parser.add_argument("--state", required=True, type=Path, metavar="FILE", help="where the routes are kept")
    parser.add_argument(
        "--grace", default=10.0, type=float, metavar="SECONDS", help="for requests in flight at SIGTERM"
    )
    return parser.parse_args(argv)


def _allow_many_connections() -> None:
    """The usual soft limit of 1024 open files is 500 streams; the hard one is what the host really allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    arguments = _arguments(argv)
    _allow_many_connections()
    try:
        host, port = arguments.listen
        front = front_socket(host, port)
        admin = admin_socket(arguments.admin)
        table, damage = load_table(arguments.state)
        if damage:
            log.error(damage)
        uvloop.run(serve(Doors(front, admin, arguments.admin), arguments.state, table, arguments.grace))
    except OrchError as error:
        log.error(" ".join(part for part in (error.message, error.hint) if part))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
