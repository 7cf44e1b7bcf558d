"""The listening sockets, made before anything else: what cannot be had is known at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.listen import join_address, split_address
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType

BACKLOG = 1024
# Not yet a name in Python.
_TCP_RTO_MAX_MS = 44
# sockaddr_un holds 108 bytes with the final zero.
_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True)
class Doors:
    """The listening sockets of clients (none yet: it is to be given them), the admin's, and the path of the latter."""

    fronts: tuple[socket.socket, ...]
    admin: socket.socket
    admin_path: Path


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` (port 0 for any free one) for argparse."""
    try:
        return split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def is_own_address(text: str) -> bool:
    """Whether an IP address is one of this machine's, at this moment: one that is not cannot be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in text else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((text, 0))
    except OSError:
        return False
    return True


def address(listening: socket.socket) -> str:
    """The bound address as `HOST:PORT`."""
    return join_address(*listening.getsockname()[:2])


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


def watch_clients(listening: socket.socket, gone_s: float) -> None:
    """Have the kernel end connections of clients that are gone without a word (a power cut, a lost NAT entry), or that
    take nothing, about `gone_s` seconds after their last one: what is accepted has the options of who listens."""
    probes = 4
    interval = max(1, int(gone_s / 2 / probes))
    options = {
        socket.TCP_KEEPIDLE: max(1, int(gone_s) - probes * interval),
        socket.TCP_KEEPINTVL: interval,
        socket.TCP_KEEPCNT: probes,
        # In milliseconds, and a little later than it is seen who does not read: the kernel does not count those.
        socket.TCP_USER_TIMEOUT: int(gone_s * 1250),
        # So that the kernel does not keep 4 MB for one that does not read, in memory that is counted nowhere.
        socket.TCP_NOTSENT_LOWAT: 128 << 10,
    }
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in options.items():
        listening.setsockopt(socket.IPPROTO_TCP, option, value)


def engine_socket(address: AddrInfoType) -> socket.socket:
    """For a connection to an engine: ended a minute after its host has gone, while it is waited for.

    One that takes no more of a request for a while is busy, not gone, so that there is no TCP_USER_TIMEOUT here: that
    counts the time in which a window is closed.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    # So that the kernel does not keep 6 MB of an answer that its client does not read.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):
        # What is sent again and again, and never acknowledged, is given up after a minute, not 15: Linux 6.15.
        made.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, 5000)
    return made


def _answers(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def admin_socket(path: Path) -> socket.socket:
    """A listening unix socket in place of a dead one; raises HostError when a living one answers there."""
    if path.is_socket() and _answers(path):
        raise HostError(f"Another gateway answers at {path}.", hint="There is one gateway for each socket.")
    return unix_socket(path)


def unix_socket(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600, in place of whatever socket is at `path`; raises HostError."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise HostError(f"The path of the socket is longer than {_LONGEST_SOCKET_PATH} bytes: {path}.")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        raise HostError(f"Cannot open the socket {path}: {error.strerror or error}.") from error
    return listening
