"""The API keys of the gateway: kept, and read by the one that runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.gateway import GatewaySpec, KeyChange
from orchestrator.core.gateway_steps import DropOldKeyFile, ReadKeys, WriteKeys
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.routes import FIRST_WITH_DIGESTS
from orchestrator.errors import PlanRefused
from orchestrator.planning.parts import Limits, gateway_items, gateway_ready_items, replaced_gateways
from orchestrator.planning.preconditions import refuse_unreachable


def plan_keys(verb: str, gateway: GatewaySpec, observed: Observed, limits: Limits) -> Plan:
    """Have the keys be what is wanted, in force where a gateway runs; one that knows no digests is replaced. Refused
    (PlanRefused) where one is there and does not answer: nobody could tell which keys it goes by."""
    status, change = observed.gateway.status, gateway.keys
    if status is None and observed.gateway.instance is not None:
        raise PlanRefused("The gateway does not answer.", hint="orch up heals it; then run the same command again.")
    before: list[Action | Skip] = [*kept_items(change, taken_over=True)]
    after: list[Action | Skip] = []
    if status is None:
        before.append(Remark(ReadKeys().what, "no gateway runs; it reads them when it starts"))
    elif status.protocol >= FIRST_WITH_DIGESTS:
        before += read_items(change, observed)
    else:
        refuse_unreachable(observed)
        for_gateway = list(gateway_items(gateway, observed, FIRST_WITH_DIGESTS, limits))
        before += [*for_gateway, *gateway_ready_items(for_gateway)]
        after += replaced_gateways(for_gateway, observed)
    return Plan(verb, (*before, *after, *dropped_items(change)), len(before))


def kept_items(change: KeyChange, taken_over: bool) -> Iterator[Action]:
    """The keys on disk; `taken_over`: also those of an earlier version, as digests."""
    if change.wanted != change.present or (taken_over and change.old_file and not change.written):
        why = change.why or "keep the API keys of the earlier version as digests"
        back = WriteKeys(change.present, "restore the previous API keys")
        yield Action(WriteKeys(change.wanted, why), (back, ReadKeys()))


def read_items(change: KeyChange, observed: Observed) -> Iterator[Action]:
    """The gateway that runs goes by them; an earlier one cannot. Where somebody has removed them it goes on with those
    that it has read."""
    status = observed.gateway.status
    if status is None or status.protocol < FIRST_WITH_DIGESTS or status.keys_mark == change.wanted.mark:
        return
    if change.written or change.wanted != change.present:
        yield Action(ReadKeys())


def dropped_items(change: KeyChange) -> Iterator[Action]:
    """No key lies there as plain text, once no gateway needs it."""
    if change.old_file:
        yield Action(DropOldKeyFile())
