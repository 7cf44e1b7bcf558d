"""Ports of this machine that are given and not chosen."""

from __future__ import annotations

from orchestrator.drivers.local import proc
from orchestrator.errors import HostError


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be bound now."""
    return proc.port_is_free(port)


def taken(port: int) -> HostError:
    """That a port cannot be had, and whose it is. Only the gateway has a port that is given."""
    owner = proc.port_owner(port)
    if owner is None:
        return HostError(f"Port {port} is taken or not allowed.", "Choose another address: --listen HOST:PORT.")
    message = f"Port {port} is taken by pid {owner.pid}: {proc.command_line(owner.pid)[:200]}"
    if "orchestrator.gateway" in proc.arguments(owner.pid):
        hint = "It is the gateway of another orch, with its own ORCH_HOME. Stop that, or choose another address"
    else:
        hint = "End that program, or choose another address"
    return HostError(message, f"{hint}: --listen HOST:PORT.")
