"""Addresses to listen at: HOST:PORT, an IPv6 host in brackets."""

from __future__ import annotations

import ipaddress


def split_address(text: str) -> tuple[str, int]:
    """Host (without brackets) and port; ValueError when it is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"HOST:PORT is needed, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: 127.0.0.0/8, ::1, the name localhost. No other name is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
