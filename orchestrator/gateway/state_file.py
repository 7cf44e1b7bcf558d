"""What the gateway keeps on disk, so that it comes back with what it was told."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.gateway_status import GatewayState
from orchestrator.drivers import files

MODE = 0o600


def load(path: Path) -> tuple[GatewayState, str]:
    """What was saved and, when the file was damaged, a line about it.

    A damaged file is moved aside and nothing is known: a gateway that answers 404 can be told its routes, a dead one
    cannot. Raises HostError when the file cannot be read at all.
    """
    try:
        saved = files.read_json(path)
        return (GatewayState() if saved is None else GatewayState.from_json(saved)), ""
    except ValueError as error:
        aside = files.move_aside(path)
        return GatewayState(), f"{path} is damaged ({error}); moved to {aside}. Starting without routes."


def save(path: Path, state: GatewayState) -> None:
    """Have it on disk when this returns; raises HostError."""
    files.write_json(path, state.to_json(), MODE)
