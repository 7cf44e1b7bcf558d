"""The API keys of the gateway: kept, and read by the one that runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.gateway import GatewaySpec, KeyChange
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.routes import FIRST_WITH_DIGESTS
from orchestrator.core.steps import DropOldKeyFile, ReadKeys, WriteKeys
from orchestrator.planning.parts import Limits, gateway_items


def plan_keys(verb: str, gateway: GatewaySpec, observed: Observed, limits: Limits) -> Plan:
    """Have the keys be what is wanted, in force where a gateway runs; one that knows no digests is replaced."""
    status, change = observed.gateway.status, gateway.keys
    before: list[Action | Skip] = [*kept_items(change, taken_over=True)]
    old = status is not None and status.protocol < FIRST_WITH_DIGESTS
    if old:
        before += gateway_items(gateway, observed, FIRST_WITH_DIGESTS, limits)
    elif status is None:
        before.append(Remark(ReadKeys().what, "it reads them when it starts"))
    else:
        before += read_items(change, observed)
    return Plan(verb, (*before, *dropped_items(change)), len(before))


def kept_items(change: KeyChange, taken_over: bool) -> Iterator[Action]:
    """The keys on disk; `taken_over`: also those of an earlier version, as digests."""
    if change.wanted != change.present or (taken_over and change.old_file):
        why = change.why or "keep the API keys of the earlier version as digests"
        back = WriteKeys(change.present, "keep the API keys of before")
        yield Action(WriteKeys(change.wanted, why), (back, ReadKeys()))


def read_items(change: KeyChange, observed: Observed) -> Iterator[Action]:
    """The gateway that runs goes by them; an earlier one cannot."""
    status = observed.gateway.status
    if status is not None and status.protocol >= FIRST_WITH_DIGESTS and status.keys_mark != change.wanted.mark:
        yield Action(ReadKeys())


def dropped_items(change: KeyChange) -> Iterator[Action]:
    """No key lies there as plain text, once a gateway runs that needs none."""
    if change.old_file:
        yield Action(DropOldKeyFile())
