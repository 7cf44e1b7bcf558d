"""The API keys of the gateway: made, told once, replaced, withdrawn."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator.app.gateway import KEY_FORM, gateway_spec, is_loopback
from orchestrator.core.gateway import KeyChange
from orchestrator.core.keys import KEY_USE, ApiKey, KeyRing, digest_of, is_key, is_name, moment, utc
from orchestrator.core.launch import LOCAL
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan
from orchestrator.drivers import files
from orchestrator.errors import HostError, PlanRefused, UsageError
from orchestrator.planning.keys import plan_keys
from orchestrator.planning.parts import Limits

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# What a key of orch's own begins with, so that whoever finds one in a log knows what it is.
PREFIX = "orch_"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A gateway of an earlier version that cannot hand over has so long to be idle.
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class KeyRow:
    """One key as it is listed. `last_used` is "" for never; `state` in words."""

    name: str
    created: str
    expires: str
    last_used: str
    state: str


def made_key() -> str:
    """A new key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def duration(text: str) -> timedelta:
    """From such as 90d, 12h, 30m or 45s; UsageError."""
    found = re.fullmatch(r"(\d{1,6})([smhd]?)", text.strip(), re.ASCII)
    if found is None or (not found[2] and found[1] != "0"):
        raise UsageError(f"{text} is not a valid duration.", hint="Write it as 90d, 12h, 30m or 45s, up to 999999d.")
    return timedelta(seconds=int(found[1]) * _UNITS.get(found[2], 1))


def plan_adding(
    orch: Orchestrator, name: str, key: str, observed: Observed, expires: timedelta | None, grace: timedelta | None
) -> Plan:
    """One more key. Clients that show none are let in for so long as before (None: as it is; with a first key not)."""
    kept, now = orch.keys.read(), datetime.now(UTC)
    if not is_name(name):
        raise UsageError(
            f"{name!r} is not a valid name for an API key.",
            hint="Up to 64 ASCII letters, digits, dots, hyphens and underscores; it begins with a letter or digit.",
        )
    if not is_key(key):
        raise UsageError("What was given is not a valid API key.", hint=KEY_FORM)
    if kept.find(name) is not None:
        raise PlanRefused(f"There is already an API key named {name}.", hint=f"orch keys rotate {name} replaces it.")
    if kept.owner_of(key) is not None:
        raise PlanRefused(f"This API key is stored already, as {kept.owner_of(key)}.", hint="orch keys add makes one.")
    if expires == timedelta(0):
        raise UsageError("A key that expires at once is good for nobody.", hint="--expires 90d, or leave it out.")
    if grace and not _lets_all_in(orch, kept, observed):
        raise PlanRefused(
            "Clients without an API key are refused already; --grace cannot let them in.", hint="Leave out --grace."
        )
    until = kept.open_until if grace is None else utc(now + grace) if grace else ""
    good = utc(now + expires) if expires is not None else ""
    wanted = kept.added(ApiKey(name, digest_of(key), utc(now), good), until)
    why = f"add the API key {name}" + (f", good until {good}" if good else "")
    if until != kept.open_until or not kept.keys:
        why += f"; clients without one are let in until {until}" if until else "; clients without one are refused"
    return _plan(orch, "keys add", KeyChange(kept, wanted, why), observed)


def plan_removing(orch: Orchestrator, name: str, observed: Observed, open_again: bool) -> Plan:
    """A key withdrawn. `open_again`: also the last one, after which no client needs any."""
    kept = orch.keys.read()
    _known(kept, name)
    wanted, why = kept.removed(name), f"withdraw the API key {name}"
    if not wanted.keys:
        listen = next((one.address for one in observed.gateway.listeners), orch.settings.listen)
        if not is_loopback(listen):
            raise PlanRefused(
                f"{name} is the last API key, and others can reach the gateway at {listen}.",
                hint="Add another one first: orch keys add NAME",
            )
        if not open_again:
            raise PlanRefused(
                f"{name} is the last API key: without it the gateway lets in whoever is on this machine.",
                hint=f"If that is meant: orch keys rm {name} --open",
            )
        why += "; clients need none from now on"
    elif not wanted.is_good(datetime.now(UTC)):
        why += "; no other one is good: all clients are refused"
    return _plan(orch, "keys rm", KeyChange(kept, wanted, why), observed)


def plan_rotating(orch: Orchestrator, name: str, key: str, observed: Observed, grace: timedelta) -> Plan:
    """Another key by the same name; the one before it is good until `grace` is over."""
    kept, now = orch.keys.read(), datetime.now(UTC)
    _known(kept, name)
    if not is_key(key):
        raise UsageError("What was given is not a valid API key.", hint=KEY_FORM)
    if kept.owner_of(key) is not None:
        raise PlanRefused(
            f"This API key is stored already, as {kept.owner_of(key)}.", hint=f"orch keys rotate {name} makes one."
        )
    wanted = kept.rotated(name, digest_of(key), now, utc(now + grace) if grace else "")
    (made,) = (one for one in wanted.keys if one.name == name)
    tail = f"is good until {made.before[0].until}" if made.before else "is no longer good"
    why = f"replace the API key {name}; the old one {tail}" + (
        f", the new one until {made.expires}" * bool(made.expires)
    )
    return _plan(orch, "keys rotate", KeyChange(kept, wanted, why), observed)


def key_rows(orch: Orchestrator) -> list[KeyRow]:
    """The keys that are kept, by name."""
    kept, now, used = orch.keys.read(), datetime.now(UTC), _used(orch)
    return [
        KeyRow(key.name, key.created, key.expires, used.get(key.digest, ""), _state(key, now, used))
        for key in sorted(kept.keys, key=lambda key: key.name)
    ]


def open_until(orch: Orchestrator) -> str:
    """Until when clients without a key are let in although there are keys; "" when they are not."""
    until = orch.keys.read().open_until
    return until if until and moment(until) > datetime.now(UTC) else ""


def _lets_all_in(orch: Orchestrator, kept: KeyRing, observed: Observed) -> bool:
    """Whether who shows no key is let in now."""
    listen = next((one.address for one in observed.gateway.listeners), orch.settings.listen)
    return is_loopback(listen) and (not kept.keys or bool(open_until(orch)))


def _plan(orch: Orchestrator, verb: str, change: KeyChange, observed: Observed) -> Plan:
    change = replace(change, written=orch.keys.written, old_file=orch.keys.has_old_file)
    if observed.gateway.instance is None and observed.gateway.status is None:
        # Nothing is started for it, so that it does not matter where.
        from orchestrator.core.gateway import GatewaySpec

        spec = GatewaySpec(())
    else:
        spec = gateway_spec(orch, observed, None, LOCAL)
    return plan_keys(verb, replace(spec, keys=change), observed, Limits(_PATIENCE_S, _PATIENCE_S))


def _known(kept: KeyRing, name: str) -> None:
    if kept.find(name) is None:
        there = ", ".join(sorted(key.name for key in kept.keys))
        hint = f"There are: {there}." if there else "There are none: orch keys add NAME"
        raise PlanRefused(f"There is no API key named {name}.", hint=hint)


def _state(key: ApiKey, now: datetime, used: dict[str, str]) -> str:
    if key.expires and moment(key.expires) <= now:
        return "expired"
    good = [one for one in key.before if moment(one.until) > now]
    if not good:
        return "good"
    last = max(used.get(one.digest, "") for one in good)
    old = "the old one" if len(good) == 1 else f"{len(good)} old ones"
    return f"good; {old} until {max(one.until for one in good)}, last used {last or 'never'}"


def _used(orch: Orchestrator) -> dict[str, str]:
    """When each key was used last, by its digest: as gateways have written it down, and as the one that runs knows."""
    try:
        said = files.read_json(orch.settings.admin / KEY_USE)
    except (HostError, ValueError):
        said = None
    used = {str(digest): str(at) for digest, at in said.items()} if isinstance(said, dict) else {}
    # None runs, or an earlier version's, which counts none.
    with contextlib.suppress(HostError):
        for digest, at in orch.gateway.keys_used().items():
            used[digest] = max(at, used.get(digest, ""))
    return used
