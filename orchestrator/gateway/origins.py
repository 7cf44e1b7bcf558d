"""Which web pages, and under which names, may use a gateway that demands no key: Ollama's rule. Pure.

A browser sends a page's POST of plain text without asking anybody, and a page whose own name suddenly means 127.0.0.1
(DNS rebinding) counts as the gateway's own. So a page must be of this machine or of those that were added (`Origin`),
and a request must name this machine (`Host`). A name beyond this machine that was added as an origin is allowed as a
Host too: a proxy may pass it on, and rebinding it would only help pages that are allowed anyway.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Any port, and for the second kind any host. Ollama's list and the loopback address of IPv6.
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
# What nearly every request says ("": none); and names that no public DNS gives out.
_USUAL_NAMES = ("", "localhost", "127.0.0.1", "::1")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_DEFAULT_PORTS = {"http": 80, "https": 443}

# No userinfo, path, query, space or anything else that some parser may read as more than a name.
_HOST = r"(?P<host>\[[0-9a-f:.]+(?:%[\w.-]+)?\]|[\w.~-]*)(?::(?P<port>\d{1,5}))?"
_AUTHORITY = re.compile(_HOST, re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_HOST}", re.ASCII | re.IGNORECASE)
_PATTERN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\*|(?:\*\.)?[\w.~-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}|\*))?",
    re.ASCII | re.IGNORECASE,
)


class Name(NamedTuple):
    """A host (lower case, no brackets, no final dot) and a port (None: not said)."""

    host: str
    port: int | None


class Origin(NamedTuple):
    """Where a page is from; the port is the scheme's own where none is said."""

    scheme: str
    host: str
    port: int | None


def _host(text: str) -> str:
    return text.lower().removeprefix("[").removesuffix("]").removesuffix(".")


@lru_cache(maxsize=256)
def parse_host(header: str) -> Name | None:
    """The name in a Host header, None when it is none."""
    found = _AUTHORITY.fullmatch(header)
    return Name(_host(found["host"]), int(found["port"]) if found["port"] else None) if found else None


def parse_origin(header: str) -> Origin | None:
    """The origin in an Origin header; None for `null` and for what is none."""
    found = _ORIGIN.fullmatch(header)
    if found is None:
        return None
    scheme = found["scheme"].lower()
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get(scheme)
    return Origin(scheme, _host(found["host"]), port)


@dataclass(frozen=True)
class Pattern:
    """Origins that are allowed; `*` as scheme, host or port is any, `*.x` as host every name below x."""

    scheme: str
    host: str
    port: int | str | None

    def matches(self, origin: Origin) -> bool:
        """Whether pages of this origin are meant."""
        port = self.port == "*" or self.port == origin.port
        return self.scheme == origin.scheme and port and self.matches_host(origin.host)

    def matches_host(self, host: str) -> bool:
        """Whether a host of this name is meant."""
        return self.host in ("*", host) or (self.host.startswith("*.") and host.endswith(self.host[1:]))


EVERYTHING = Pattern("*", "*", "*")


def parse_pattern(text: str) -> Pattern:
    """`SCHEME://HOST`, `SCHEME://HOST:PORT` or `*`; HOST may be `*` or `*.NAME`, PORT `*`. Raises ValueError."""
    if text == "*":
        return EVERYTHING
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a valid origin, such as https://chat.example.org or chrome-extension://*")
    scheme, host = found["scheme"].lower(), _host(found["host"])
    port: int | str | None = "*" if host == "*" or scheme not in _DEFAULT_PORTS else _DEFAULT_PORTS[scheme]
    if found["port"]:
        port = found["port"] if found["port"] == "*" else int(found["port"])
    return Pattern(scheme, host, port)


_OWN = (
    *(parse_pattern(f"{scheme}://{host}:*") for scheme in _DEFAULT_PORTS for host in _LOCAL_HOSTS),
    *(parse_pattern(f"{scheme}://*") for scheme in _APP_SCHEMES),
)


def is_own_name(host: str, hostname: str, is_own_address: Callable[[str], bool]) -> bool:
    """Whether `host` is this machine by its name or its number; no name is looked up.

    `hostname` is the machine's, `is_own_address` tells whether it has an address. Addresses of private networks pass:
    a page cannot be made to come from a number that is not its server's.
    """
    if host in _USUAL_NAMES or host == hostname.lower() or host.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_private or address.is_loopback or is_own_address(str(address))


@dataclass(frozen=True)
class Allowed:
    """The rule with what a user has added to it; see `is_own_name` for the other two."""

    added: tuple[Pattern, ...]
    hostname: str
    is_own_address: Callable[[str], bool]

    @property
    def everybody(self) -> bool:
        """Whether all pages may."""
        return EVERYTHING in self.added

    def host(self, header: str) -> bool:
        """Whether a request may name the gateway so; the Host header, "" where there is none."""
        name = parse_host(header)
        if self.everybody:
            return True
        if name is None:
            return False
        if is_own_name(name.host, self.hostname, self.is_own_address):
            return True
        sites = (pattern for pattern in self.added if pattern.scheme in _DEFAULT_PORTS and pattern.host != "*")
        return any(pattern.matches_host(name.host) for pattern in sites)

    def origin(self, header: str, host: str) -> bool:
        """Whether pages of this Origin header may use the gateway, asking with this Host header.

        A page of the gateway's own may: whether the name is the gateway's is what `host` tells.
        """
        if self.everybody:
            return True
        origin, name = parse_origin(header), parse_host(host)
        if origin is None:
            return False
        default = _DEFAULT_PORTS.get(origin.scheme)
        if name is not None and name.host and default is not None and origin[1:] == (name.host, name.port or default):
            return True
        return any(pattern.matches(origin) for pattern in (*_OWN, *self.added))


def parse_patterns(texts: Iterable[str]) -> tuple[Pattern, ...]:
    """Each of them; raises ValueError."""
    return tuple(parse_pattern(text) for text in texts)
