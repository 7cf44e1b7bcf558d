"""Steps that have requests wait at the gateway while what serves them is changed, and what watches over that."""

from __future__ import annotations

from orchestrator.core.form import LongestHold
from orchestrator.core.gateway_status import GatewayStatus, HeldLoad
from orchestrator.core.progress import Progress
from orchestrator.core.proof import Proofs
from orchestrator.core.steps import HoldRequests, ReleaseRequests
from orchestrator.drivers.base import World
from orchestrator.errors import HostError
from orchestrator.perform.dispatch import perform

# How long a hold that nobody renews outlives the longest wait: the old engine may be on its way back.
OUTLIVES_S = 60.0
LOOK_S = 0.5
RENEW_S = 5.0


@perform.register
def hold_requests(step: HoldRequests, world: World, progress: Progress) -> None:
    _hold(step.owner, step.longest_s, world)


@perform.register
def release_requests(step: ReleaseRequests, world: World, progress: Progress) -> None:
    world.gateway.resume(step.owner)


def keeping_hold(longest: LongestHold, world: World, progress: Progress) -> Progress:
    """`progress` of a step while requests are held: it keeps the hold from expiring, and raises HostError once a
    request has waited for too long, or would have when it is answered."""
    renewed = world.clock.monotonic()
    looked = renewed - LOOK_S

    def kept(what: str, done: int, total: int) -> None:
        nonlocal looked, renewed
        progress(what, done, total)
        now = world.clock.monotonic()
        if now - looked < LOOK_S or (status := _status(world)) is None:
            return
        looked = now
        oldest_s = status.traffic.holds.get(longest.owner, HeldLoad()).oldest_s
        first_s = _first_token_s(longest, world)
        if oldest_s and oldest_s + first_s > longest.seconds:
            more = f" and would wait for {first_s:.0f} s more" if first_s >= 1 else ""
            raise HostError(
                f"a request has been held for {oldest_s:.0f} s{more}, and none may be for more than "
                f"{longest.seconds:.0f}.",
                hint="A larger --max-hold lets them wait longer. Clients give up, too: Node.js after 300 s.",
            )
        if now - renewed >= RENEW_S:
            _hold(longest.owner, longest.seconds, world)
            renewed = now

    return kept


def _first_token_s(longest: LongestHold, world: World) -> float:
    """How long the oldest, which goes on first, will wait for its first token: as long as the probe did. 0 as long as
    the new engine has not been asked."""
    try:
        proofs = Proofs.from_json(world.records.noted("proofs", longest.owner))
    except ValueError:
        return 0.0
    return proofs.first_token_s if proofs.instance == longest.instance else 0.0


def _hold(owner: str, longest_s: float, world: World) -> None:
    world.gateway.pause(owner, longest_s + OUTLIVES_S)


def _status(world: World) -> GatewayStatus | None:
    """None where it is not to be had: a gateway that is started again comes back holding."""
    try:
        return world.gateway.status()
    except HostError:
        return None
