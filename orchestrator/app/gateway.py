"""The gateway as it is wanted: its address, where it runs, and the key that its clients show."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.core.gateway import GatewaySpec, KeyChange
from orchestrator.core.gateway_status import Listener
from orchestrator.core.keys import ApiKey, digest_of, is_key, utc
from orchestrator.core.launch import DOCKER
from orchestrator.core.listen import is_loopback as is_loopback_host
from orchestrator.core.listen import split_address
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Remark
from orchestrator.core.prerequisites import BuildImage, Prerequisite, PullImage
from orchestrator.core.routes import PROTOCOL
from orchestrator.errors import HostError, PlanRefused, UsageError
from orchestrator.gateway.limits import parse_limits
from orchestrator.gateway.origins import parse_pattern, parse_patterns

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# Words of a gateway's command line.
ORIGIN = "--origin="
LIMIT = "--limit="
# What the key is called that a gateway begins with.
FIRST_KEY = "first"
KEY_FORM = "A key is ASCII letters, digits and signs, without spaces, and does not begin with #."


def gateway_spec(
    orch: Orchestrator,
    observed: Observed,
    asked: str | None,
    target: str,
    renew: bool = False,
    more_origins: tuple[str, ...] = (),
) -> GatewaySpec:
    """The gateway as it is, or is to be; with an API key where others than this machine can reach it. `renew`: by this
    program, where another one runs; so it is for the sake of `more_origins`, where that one does not let them in."""
    gateway = observed.gateway
    listen = address(orch, observed, asked)
    listeners = gateway.listeners or (Listener(listen),)
    running = gateway.instance
    where = running.target if running is not None else target
    origins = wanted_origins(orch, observed, more_origins)
    limits = wanted_limits(orch, observed)
    keys = kept_keys(orch, observed)
    lets_in = set(gateway.status.origins) if gateway.status is not None else set()
    differs = (renew or (bool(more_origins) and lets_in != {*origins})) and _differs(orch, observed, origins, limits)
    if gateway.well and gateway.status is not None and gateway.status.protocol >= PROTOCOL and not differs:
        return GatewaySpec(listeners, where, origins=origins, keys=keys, limits=limits)
    if running is None and not is_loopback(listen) and not keys.wanted.keys:
        raise PlanRefused(
            f"{listen} can be reached by others, so clients have to send an API key.",
            hint="orch keys add NAME makes one; then run the same command again.",
        )
    if where != DOCKER:
        return GatewaySpec(listeners, where, (), differs, origins, keys, limits)
    reference, base = orch.gateway_image()
    image: tuple[Prerequisite, ...] = (BuildImage(reference, base if isinstance(base, str) else base.reference),)
    if not isinstance(base, str):
        image = (PullImage(base), *image)
    return GatewaySpec(listeners, where, image, differs, origins, keys, limits)


def kept_keys(orch: Orchestrator, observed: Observed) -> KeyChange:
    """The API keys that are kept; ORCH_API_KEY is the first one of a gateway that has none and is started."""
    kept, given = orch.keys.read(), orch.settings.api_key
    present = KeyChange(kept, kept, written=orch.keys.written, old_file=orch.keys.has_old_file)
    if given is None or kept.keys or observed.gateway.instance is not None or observed.gateway.status is not None:
        return present
    check_api_key(orch)
    first = ApiKey(FIRST_KEY, digest_of(given), utc(datetime.now(UTC)))
    why = "require an API key from clients: the one in ORCH_API_KEY"
    return replace(present, wanted=kept.added(first), why=why)


def passed_over_key(orch: Orchestrator, observed: Observed) -> Remark | None:
    """Why ORCH_API_KEY is not taken, where it is given and none of the gateway's."""
    given, change = orch.settings.api_key, kept_keys(orch, observed)
    if given is None or change.wanted.owner_of(given) is not None:
        return None
    return Remark(
        "take the API key in ORCH_API_KEY",
        "it is only for a new gateway without keys; printenv ORCH_API_KEY | orch keys add NAME --stdin adds it",
    )


def wanted_origins(orch: Orchestrator, observed: Observed, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Whose pages the gateway is to let in: those that ORCH_ORIGINS says, else those that it has; and `more`."""
    origins = list(orch.settings.origins if orch.settings.origins is not None else _told(ORIGIN, observed))
    known = set(parse_patterns(origins))
    for origin in more:
        if (pattern := parse_pattern(origin)) not in known:
            known.add(pattern)
            origins.append(origin)
    return tuple(origins)


def wanted_limits(orch: Orchestrator, observed: Observed) -> tuple[str, ...]:
    """What clients may take of the gateway: what ORCH_LIMITS says, else what it was started with."""
    return orch.settings.limits if orch.settings.limits is not None else _told(LIMIT, observed)


def _told(option: str, observed: Observed) -> tuple[str, ...]:
    """What the gateway was started with: as long as nothing else is said, it stays."""
    instance = observed.gateway.instance
    words = instance.launch.argv if instance is not None else ()
    return tuple(word.removeprefix(option) for word in words if word.startswith(option))


def _differs(orch: Orchestrator, observed: Observed, origins: tuple[str, ...], limits: tuple[str, ...]) -> bool:
    """Whether the gateway that runs is another program, or started otherwise, than this one would be."""
    gateway = observed.gateway
    if gateway.status is None or gateway.instance is None:
        return False
    target, name = gateway.instance.target, gateway.instance.name
    own = orch.gateway_launch(target, name, gateway.listeners, origins, limits, take_over=False)
    here = gateway.instance.launch
    return upgrade(observed) != "" or (here.argv, here.container) != (own.argv, own.container)


def upgrade(observed: Observed) -> str:
    """A sentence where the gateway that runs is of another version than this program; it may stay what it is."""
    status = observed.gateway.status
    if status is None or (status.version == __version__ and status.protocol == PROTOCOL):
        return ""
    versions = [status.version, __version__]
    if status.protocol != PROTOCOL:
        versions = [
            f"{version} (protocol {n})" for version, n in zip(versions, (status.protocol, PROTOCOL), strict=True)
        ]
    return f"The running gateway is of orch {versions[0]}, this is {versions[1]}.  orch up --gateway replaces it"


def address(orch: Orchestrator, observed: Observed, asked: str | None) -> str:
    """Where the gateway listens. It never moves by itself: another address than the running one is refused."""
    present = next((listener.address for listener in observed.gateway.listeners), None)
    wanted = asked or (orch.settings.listen if orch.settings.listen_given else None)
    if present is not None and wanted is not None and wanted != present:
        raise PlanRefused(
            f"The gateway listens at {present}, and clients know it there; {wanted} was asked for.",
            hint="To move it: orch down --all, then orch up with the new address.",
        )
    return checked_address(present or wanted or orch.settings.listen)


def checked_address(listen: str) -> str:
    """HOST:PORT, or a HostError that says what is wrong with it."""
    try:
        if split_address(listen)[1]:
            return listen
    except ValueError:
        pass
    raise HostError(f"{listen} is not a valid address to listen on.", hint="HOST:PORT, such as 127.0.0.1:8484.")


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    return is_loopback_host(split_address(listen)[0])


def check_api_key(orch: Orchestrator) -> None:
    """UsageError when ORCH_API_KEY is given and is none."""
    if orch.settings.api_key is not None and not is_key(orch.settings.api_key):
        raise UsageError("ORCH_API_KEY is not a valid API key.", hint=KEY_FORM)


def check_each_origin(said: tuple[str, ...], by: str, how: str) -> None:
    """UsageError when one of them is none; `by` whom they are said, and `how` several are."""
    try:
        parse_patterns(said)
    except ValueError as error:
        raise UsageError(f"{by}: {error}.", hint=f"{how}, without paths; * allows any page.") from error


def check_each_limit(said: tuple[str, ...]) -> None:
    """UsageError when ORCH_LIMITS cannot be what it says."""
    try:
        parse_limits(said)
    except ValueError as error:
        hint = "ORCH_LIMITS=idle_s=600,requests_per_key=8: names and values with commas between; empty: the defaults."
        raise UsageError(f"ORCH_LIMITS: {error}.", hint=hint) from error


def check_limits(orch: Orchestrator, observed: Observed, renew: bool) -> None:
    """The same as `check_origins`, of ORCH_LIMITS."""
    wanted, status = orch.settings.limits, observed.gateway.status
    if wanted is not None and not renew and status is not None and set(status.limits) != set(wanted):
        raise PlanRefused(
            f"The running gateway has these limits besides the defaults: {', '.join(status.limits) or 'none'}; "
            f"ORCH_LIMITS says {', '.join(wanted) or 'none'}.",
            hint="ORCH_LIMITS=... orch up --gateway replaces it with one that has them, without a failed request.",
        )


def check_origins(orch: Orchestrator, observed: Observed, more: tuple[str, ...], renew: bool) -> None:
    """ORCH_ORIGINS, if it is given, must be what the gateway that runs was started with, unless it is replaced; `more`
    may be added to both."""
    wanted, status = orch.settings.origins, observed.gateway.status
    if wanted is None or renew or status is None:
        return
    if {*status.origins} - {*more} != {*wanted} - {*more}:
        raise PlanRefused(
            f"The running gateway allows these origins besides its own: {', '.join(status.origins) or 'none'}; "
            f"ORCH_ORIGINS says {', '.join(wanted) or 'none'}.",
            hint="ORCH_ORIGINS=... orch up --gateway replaces it with one that allows them, without a failed request.",
        )
