"""What clients did with what is deployed, as the gateway has written it down."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator.core.live_load import LiveLoad
from orchestrator.core.traffic_window import DIRECTORY, MINUTE_S, files_since, live_load_of, read
from orchestrator.drivers.traffic import read_lines

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


def live_load(orch: Orchestrator, profile: str, hours: float) -> LiveLoad | None:
    """What clients did with a profile in the last `hours`, up to a minute ago; None where they asked for nothing, or
    the gateway has counted nothing yet. Raises HostError where its files cannot be read."""
    now = time.time()
    names = files_since(now - hours * 3600 - MINUTE_S, now)
    return live_load_of(read(read_lines(orch.settings.admin / DIRECTORY, names)), profile, now, hours)
