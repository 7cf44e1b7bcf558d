"""From what the user typed to what is wanted: which profile, which weights, which adapters, which address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import HostError, PlanRefused, ProfileError, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.deployment import Adapter, Desired
    from orchestrator.core.observed import Observed
    from orchestrator.core.plan import Door
    from orchestrator.core.profile import Profile
    from orchestrator.core.resolved import Resolved, Supply
    from orchestrator.core.weights import HubSource, WeightsFacts

DEFAULT_PROFILE = "qwen3-8b"


def load_profile(name_or_path: str, observed: Observed) -> Profile:
    """A profile by path, by the name of one that was deployed (as it was recorded), or of a shipped one."""
    from orchestrator import resources
    from orchestrator.core.profile import parse_profile

    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path).expanduser()
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path} cannot be read.", detail=str(error)) from error
        return parse_profile(text, str(path), path.resolve().parent)
    if name_or_path in observed.desired:
        return observed.desired[name_or_path].wish.profile
    shipped = resources.model_profiles()
    if name_or_path not in shipped:
        known = sorted({*shipped, *observed.desired})
        raise ProfileError(
            f"There is no profile named {name_or_path}.",
            hint=f"Known: {', '.join(known)}; or give its file: -p FILE.toml",
        )
    return parse_profile(shipped[name_or_path].read_text("utf-8"), shipped[name_or_path].name)


def default_profile(observed: Observed) -> str:
    """The profile that a verb means when none is named: the deployed one, else the stopped one, else the shipped one.

    PlanRefused when there are several.
    """
    names = observed.deployed or tuple(sorted(observed.desired))
    if len(names) > 1:
        state = "deployed" if observed.deployed else "stopped"
        raise PlanRefused(f"Several profiles are {state}: {', '.join(names)}.", hint="Say which: --profile NAME")
    return names[0] if names else DEFAULT_PROFILE


def deployed(profile: str | None, observed: Observed) -> Desired:
    """What is wanted of a deployed profile (None: of the only one). PlanRefused when it is not deployed."""
    name = profile if profile is not None else default_profile(observed)
    if name not in observed.desired and profile is not None:
        name = load_profile(name, observed).name
    present = observed.desired.get(name)
    if present is None:
        what = f"{name} is" if profile is not None else "Nothing is"
        raise PlanRefused(f"{what} not deployed." if profile else f"{what} deployed.", hint="orch up ENGINE")
    if present.stopped:
        raise PlanRefused(f"{name} is stopped.", hint=f"orch up -p {name}")
    return present


def pinned(session: Session, profile: Profile, observed: Observed) -> Profile:
    """The profile with its hub revisions resolved to commits; offline, the commits that are deployed already."""
    present = observed.desired.get(profile.name)
    known = present.wish.profile if present is not None else None
    source = profile.weights.hub
    if source is not None and not source.pinned:
        commit = _commit(session, source, known.weights.hub if known is not None else None)
        weights = profile.weights.model_copy(update={"revision": commit})
        profile = profile.model_copy(update={"weights": weights})
    artifacts = dict(profile.artifacts)
    for recipe, ready in profile.artifacts.items():
        if ready.hub is not None and not ready.hub.pinned:
            before = known.artifacts.get(recipe) if known is not None else None
            commit = _commit(session, ready.hub, before.hub if before is not None else None, ready.file)
            artifacts[recipe] = ready.model_copy(update={"revision": commit})
    return profile.model_copy(update={"artifacts": artifacts})


def _commit(session: Session, source: HubSource, known: HubSource | None, file: str | None = None) -> str:
    try:
        names = [file] if file is not None else None
        return session.world.hub.snapshot(source, 30.0, names).source.revision
    except HostError:
        if known is None or known.repo != source.repo:
            raise
        return known.revision


def weights_facts(session: Session, profile: Profile) -> WeightsFacts:
    """What is known of the profile's weights; its hub revision must be a commit."""
    source: HubSource | None = profile.weights.hub
    if source is not None:
        return session.catalog.of_hub(source)
    return session.catalog.of_directory(profile.weights, session.progress)


def resolve_desired(
    session: Session, desired: Desired, observed: Observed, to_run: bool = True
) -> tuple[Resolved, Desired]:
    """What is wanted, on this host; with it the same with its adapters fitted to these weights."""
    from orchestrator.engines.resolve import fitted, resolve

    shipped = session.shipped(observed, desired.wish.profile)
    weights = weights_facts(session, desired.wish.profile)
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, shipped) for a in desired.adapters)
    desired = desired.model_copy(update={"adapters": adapters})
    return resolve(desired.wish, adapters, weights, observed.host, shipped, to_run), desired


def supply_of_wish(
    session: Session, desired: Desired, observed: Observed
) -> tuple[tuple[Supply, ...], tuple[Adapter, ...]]:
    """What it takes to have all that a wish may be served with, on whatever host; with its adapters, fitted."""
    from orchestrator.engines.resolve import fitted
    from orchestrator.engines.supply import needed

    profile = desired.wish.profile
    weights, shipped = weights_facts(session, profile), session.shipped(observed, profile)
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, shipped) for a in desired.adapters)
    return needed(desired.wish, weights, adapters, shipped), adapters


def read_adapter(session: Session, name: str, directory: Path, desired: Desired, observed: Observed) -> Adapter:
    """An adapter from a PEFT directory, checked against the weights as far as they are there."""
    from orchestrator.engines.resolve import fitted

    weights = weights_facts(session, desired.wish.profile)
    base = Path(weights.path) if weights.size else None
    facts = session.builder.adapter(directory, base)
    digest = facts.source.removeprefix("dir:")
    known = next((a for a in desired.adapters if a.name == name and a.digest == digest), None)
    origin = known.origin if known is not None else str(directory.resolve())
    return fitted(name, digest, facts.rank, origin, weights, session.shipped(observed, desired.wish.profile))


def with_adapter(desired: Desired, adapter: Adapter) -> Desired:
    """The same with one adapter more, or another version of it in its place."""
    present = [a.name for a in desired.adapters]
    adapters = tuple(adapter if a.name == adapter.name else a for a in desired.adapters)
    if adapter.name not in present:
        adapters = (*adapters, adapter)
    return desired.model_copy(update={"adapters": adapters})


def with_profile_adapters(session: Session, desired: Desired, before: Profile | None, observed: Observed) -> Desired:
    """The same with the adapters that a profile which was just given brings along, without those that the profile
    `before` it listed and it does not."""
    kept = {entry.name for entry in desired.wish.profile.adapters}
    dropped = {entry.name for entry in before.adapters} - kept if before is not None else set()
    adapters = tuple(adapter for adapter in desired.adapters if adapter.name not in dropped)
    desired = desired.model_copy(update={"adapters": adapters})
    for entry in desired.wish.profile.adapters:
        desired = with_adapter(desired, read_adapter(session, entry.name, Path(entry.path), desired, observed))
    return desired


def door(session: Session, observed: Observed, asked: str | None, target: str) -> Door:
    """The gateway as it is, or is to be; with an API key where others than this machine can reach it."""
    from orchestrator.core.launch import DOCKER
    from orchestrator.core.plan import Door
    from orchestrator.core.steps import BuildImage, PullImage

    listen = address(session, observed, asked)
    running = observed.gateway.instance
    where = running.target if running is not None else target
    if observed.gateway.well:
        return Door(listen, where)
    if running is None and not is_loopback(listen) and session.settings.api_key is None and session.api_key() is None:
        raise PlanRefused(
            f"{listen} can be reached by others, so clients have to send an API key.",
            hint=f"Choose one: ORCH_API_KEY=$(openssl rand -hex 24) orch up --listen {listen}",
        )
    if where != DOCKER:
        return Door(listen, where)
    reference, base = session.gateway_image()
    if isinstance(base, str):
        return Door(listen, where, (BuildImage(reference, base),))
    return Door(listen, where, (PullImage(base), BuildImage(reference, base.reference)))


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    from orchestrator.gateway import sockets

    return sockets.is_loopback(listen.rpartition(":")[0].strip("[]"))


def chosen_target(session: Session, engine: str | None, asked: str | None, present: Desired | None) -> str:
    """Where an engine is to run: as asked, where it is, by ORCH_TARGET; else in Docker if a daemon answers and an image
    is pinned that this machine can use, else as a process."""
    from orchestrator.core.launch import DOCKER, LOCAL
    from orchestrator.engines.resolve import pinned_image

    target = asked or (present.wish.target if present is not None else None) or session.settings.target
    if target is None:
        possible = engine is not None and pinned_image(engine, session.host, session.pins)
        target = DOCKER if possible and not session.docker_facts.problem else LOCAL
    if target not in session.world.targets:
        raise PlanRefused(f"There is no target {target}.", hint=f"Known: {', '.join(session.world.targets)}")
    return target


def observed_for(session: Session, desired: Desired, observed: Observed) -> Observed:
    """The snapshot, made again with the Docker daemon in it where only now it is known that one is needed."""
    from orchestrator.core.launch import DOCKER

    if desired.wish.target != DOCKER or session.docker.in_use:
        return observed
    session.docker.attend()
    return session.observe()


def check_api_key(session: Session, observed: Observed) -> None:
    """ORCH_API_KEY, if it is given, must be one, and the gateway that runs must ask for one."""
    key, status = session.settings.api_key, observed.gateway.status
    if key is None:
        return
    if not re.fullmatch(r"[!-~]+", key) or key.startswith("#"):
        raise UsageError(
            "ORCH_API_KEY is no API key.", hint="ASCII letters, digits and signs, without spaces, not beginning with #."
        )
    if status is not None and not status.keys:
        raise PlanRefused(
            "The gateway that runs asks for no API key.",
            hint="orch down --all, then orch up with ORCH_API_KEY: it starts with one.",
        )


def take_api_key(session: Session, observed: Observed) -> None:
    """ORCH_API_KEY, if it is given, is what clients must send from now on, and nothing else is."""
    from orchestrator.drivers.keys import tell_of_change, write_key

    key, running = session.settings.api_key, observed.gateway
    if key is None or key == session.api_key():
        return
    write_key(session.settings.keys, key)
    if running.status is not None and running.instance is not None and running.instance.pid is not None:
        tell_of_change(running.instance.pid)


def address(session: Session, observed: Observed, asked: str | None) -> str:
    """Where the gateway listens. It never moves by itself: another address than the running one is refused."""
    present = observed.gateway.instance.label if observed.gateway.instance is not None else None
    wanted = asked or (session.settings.listen if session.settings.listen_given else None)
    if present is not None and wanted is not None and wanted != present:
        raise PlanRefused(
            f"The gateway listens at {present}, and clients know it there; {wanted} was asked for.",
            hint="To move it: orch down --all, then orch up with the new address.",
        )
    return checked_address(present or wanted or session.settings.listen)


def checked_address(listen: str) -> str:
    """HOST:PORT, or a HostError that says what is wrong with it."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise HostError(f"{listen} is no address to listen at.", hint="HOST:PORT, such as 127.0.0.1:8484.")
    return listen
