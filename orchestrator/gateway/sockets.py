"""The two listening sockets, made before anything else: what cannot be had is known at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path

from orchestrator.errors import HostError

BACKLOG = 1024
# sockaddr_un holds 108 bytes with the final zero.
_LONGEST_SOCKET_PATH = 107


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` (an IPv6 host in brackets, port 0 for any free one) for argparse."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"HOST:PORT is needed, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: 127.0.0.0/8, ::1, the name localhost. No other name is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def address(listening: socket.socket) -> str:
    """The bound address as `HOST:PORT`."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def front_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket; raises HostError when the address is taken or not this machine's.

    SO_REUSEADDR passes over connections in TIME_WAIT; without SO_REUSEPORT no second gateway gets the address.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(
                f"The address {host}:{port} is already in use.",
                hint="Stop what listens there, or choose another address with --listen.",
            ) from error
        raise HostError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from error
    return listening


def _answers(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def admin_socket(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600 in place of a dead one; raises HostError when a living one answers there."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise HostError(f"The path of the admin socket is longer than {_LONGEST_SOCKET_PATH} bytes: {path}.")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers(path):
            raise HostError(f"Another gateway answers at {path}.", hint="There is one gateway for each socket.")
        if path.is_socket():
            path.unlink()
        # The mode is part of bind: a later chmod would leave a moment in which others can connect.
        before = os.umask(0o177)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise HostError(f"Cannot open the admin socket {path}: {error.strerror or error}.") from error
    except HostError:
        listening.close()
        raise
    return listening
