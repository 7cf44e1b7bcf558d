"""Steps that clients may see: the gateway itself, its routes, and what is in flight."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from orchestrator.core.gateway_status import GatewayState, gateway_label
from orchestrator.core.gateway_steps import (
    GATEWAY_START_S,
    AwaitGateway,
    ClearGateway,
    DropOldKeyFile,
    EnsureGateway,
    KeepGateway,
    ReadKeys,
    ReplaceGateway,
    RestartGateway,
    WriteKeys,
)
from orchestrator.core.launch import Instance, InstanceState, Launch
from orchestrator.core.model_card import ModelCard
from orchestrator.core.progress import Progress
from orchestrator.core.routes import FIRST_WITH_DIGESTS, Route
from orchestrator.core.steps import Drain, RemoveRoute, SetRoute, VerifyRoute
from orchestrator.drivers.base import World
from orchestrator.errors import HostError
from orchestrator.perform.dispatch import perform
from orchestrator.probes import LOG_LINES, POLL_S, instance_of, verify_routes

# Where nobody is connected to a gateway that was replaced, it has left by then.
LEAVES_S = 3.0
# How a gateway says that it cannot have its address: gateway/sockets.py.
ADDRESS_MARKS = ("is already in use", "Cannot listen on")
# Before what it says: the time, which earlier versions leave out, and that it is an error.
AS_LOGGED = re.compile(r"^([\d:.T+-]+ )?(ERROR|CRITICAL) ")
# In the gateway's directory: what it keeps.
ROUTES = "routes.json"

_Starting = AwaitGateway | ReplaceGateway | RestartGateway | KeepGateway


@perform.register
def ensure_gateway(step: EnsureGateway, world: World, progress: Progress) -> None:
    target, name = world.targets[step.target], step.instance
    before = instance_of(step.target, name, world)
    launch = _launch(step, world, name)
    label = gateway_label(step.listeners)
    runs = before is not None and before.state is InstanceState.RUNNING
    # One that runs is put right as it is: another version of orch may have started it.
    target.ensure(name, before.launch if before is not None and runs else launch, label)
    if runs and _hangs(name, world):
        # Its routes are on disk: a new process is the cure.
        progress("ending the gateway, which hangs", 0, 0)
        target.stop(name, progress)
        target.ensure(name, launch, label)


@perform.register
def await_gateway(step: AwaitGateway, world: World, progress: Progress) -> None:
    _await(step, step.instance, world, progress)


@perform.register
def replace_gateway(step: ReplaceGateway, world: World, progress: Progress) -> None:
    target = world.targets[step.target]
    label = gateway_label(step.listeners)
    target.ensure(step.new, _launch(step, world, step.new, take_over=True), label)
    _await(step, step.new, world, progress)
    # Before it is asked to: it may end at once.
    target.release(step.old)
    world.gateway.hand_over(step.old, step.new)
    # What starts it from now on has its own state to go by.
    target.relabel(step.new, _launch(step, world, step.new), label)


@perform.register
def restart_gateway(step: RestartGateway, world: World, progress: Progress) -> None:
    target = world.targets[step.target]
    status = world.gateway.status_of(step.old)
    if status is None:
        raise HostError("The gateway does not answer.", hint="orch up starts it again.")
    _await_idle(step, world, progress)
    # Told at the last moment: another orch, of another version, may have changed it meanwhile.
    status = world.gateway.status_of(step.old) or status
    target.write_file(step.new, ROUTES, json.dumps(GatewayState(status.routes).to_json()))
    target.stop(step.old, progress)
    target.ensure(step.new, _launch(step, world, step.new), gateway_label(step.listeners))
    _await(step, step.new, world, progress)
    target.remove(step.old)


@perform.register
def keep_gateway(step: KeepGateway, world: World, progress: Progress) -> None:
    target = world.targets[step.target]
    if world.gateway.serving() == step.new:
        return
    target.stop(step.new, progress)
    target.remove(step.new)
    before = instance_of(step.target, step.old, world)
    if before is not None:
        target.ensure(step.old, before.launch, before.label)
        _await(step, step.old, world, progress)


@perform.register
def clear_gateway(step: ClearGateway, world: World, progress: Progress) -> None:
    deadline = world.clock.monotonic() + LEAVES_S
    while (instance := instance_of(step.target, step.instance, world)) is not None:
        if instance.state is InstanceState.STOPPED:
            world.targets[step.target].remove(step.instance)
            return
        if world.clock.monotonic() > deadline:
            return
        progress(f"waiting for {step.instance} to leave", 0, 0)
        world.clock.sleep(POLL_S / 4)


def _launch(
    step: EnsureGateway | ReplaceGateway | RestartGateway, world: World, name: str, take_over: bool = False
) -> Launch:
    return world.gateway_launch(step.target, name, step.listeners, step.origins, step.limits, take_over)


def _await(step: _Starting, name: str, world: World, progress: Progress) -> None:
    """A gateway that answers its admin."""
    deadline = world.clock.monotonic() + GATEWAY_START_S
    first = instance_of(step.target, name, world)
    while _hangs(name, world) or world.gateway.status_of(name) is None:
        now = instance_of(step.target, name, world)
        if now is None or first is None or now.state is not InstanceState.RUNNING or now.last_exit != first.last_exit:
            raise _died(step, name, now, world)
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"The gateway was started at {_addresses(step)}, and did not answer within {GATEWAY_START_S:.0f} s.",
                hint=f"Is this machine overloaded? All of its log: orch logs {name}",
                detail=world.targets[step.target].log_tail(name, LOG_LINES),
            )
        progress("starting the gateway", 0, 0)
        world.clock.sleep(POLL_S / 4)


def _died(step: _Starting, name: str, instance: Instance | None, world: World) -> HostError:
    """Told by what it said last; what the kernel has ended had no last word."""
    log = world.targets[step.target].log_tail(name, LOG_LINES)
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("---")]
    said = AS_LOGGED.sub("", lines[-1]) if lines else "its log says nothing"
    ended = instance.last_exit if instance is not None else None
    if ended is not None and ended.memory_limit is not None:
        said = f"it {ended}"
    hint = f"All of its log: orch logs {name}"
    if any(mark in said for mark in ADDRESS_MARKS):
        hint = "Another address is chosen with --listen HOST:PORT, or ORCH_LISTEN."
    return HostError(f"The gateway did not start at {_addresses(step)}: {said}", hint=hint, detail=log)


def _addresses(step: _Starting) -> str:
    return ", ".join(listener.address for listener in step.listeners)


def _await_idle(step: RestartGateway, world: World, progress: Progress) -> None:
    deadline = world.clock.monotonic() + step.timeout_s
    while (status := world.gateway.status_of(step.old)) is not None and status.traffic.in_flight:
        if world.clock.monotonic() > deadline:
            raise HostError(
                f"{status.traffic.in_flight} requests are in flight on a gateway that cannot hand over.",
                hint="Run the same command again when there are none; orch down --all does not wait for them.",
            )
        progress("waiting for requests in flight to end", 0, 0)
        world.clock.sleep(POLL_S / 4)


@perform.register
def write_keys(step: WriteKeys, world: World, progress: Progress) -> None:
    world.keys.write(step.keys)


@perform.register
def read_keys(step: ReadKeys, world: World, progress: Progress) -> None:
    status = world.gateway.status()
    if status is None or status.protocol < FIRST_WITH_DIGESTS:
        # One that is started reads them then; an earlier one has a file of its own, which stays until it is replaced.
        return
    mark = world.gateway.read_keys()
    if mark != world.keys.read().mark:
        raise HostError("The gateway uses other API keys than those that are stored.", hint="orch logs gateway")


@perform.register
def drop_old_key_file(step: DropOldKeyFile, world: World, progress: Progress) -> None:
    world.keys.drop_old_file()


@perform.register
def set_route(step: SetRoute, world: World, progress: Progress) -> None:
    urls = {instance.name: instance.url for instance in world.targets[step.target].observe()}

    def led(route: Route) -> Route:
        backend = route.backend
        there = route.led_to(replace(backend, url=urls.get(backend.instance, backend.url)))
        return there if route.card is None else replace(there, card=_as_stored(route.card, world))

    world.gateway.set_routes(step.owner, tuple(map(led, step.routes)))


def _as_stored(card: ModelCard, world: World) -> ModelCard:
    """With what the store says of the artifact, now that it is there. A view's size is that of the weights."""
    manifest = world.store.get(card.key) if card.key else None
    if manifest is None:
        return card
    size = card.size if manifest.links or card.base else manifest.size
    return card.model_copy({"size": size, "made_at": manifest.created})


@perform.register
def remove_route(step: RemoveRoute, world: World, progress: Progress) -> None:
    world.gateway.remove_routes(step.owner)


@perform.register
def verify_route(step: VerifyRoute, world: World, progress: Progress) -> None:
    verify_routes(step.names, step.timeout_s, world, progress)


@perform.register
def drain(step: Drain, world: World, progress: Progress) -> None:
    if world.gateway.status() is None:
        return
    left = world.gateway.drain(step.instance, step.timeout_s, cancel=step.cut, progress=progress)
    if left and not step.cut:
        raise HostError(
            f"{left} requests are in flight on {step.instance} after {step.timeout_s:.0f} s.",
            hint="None was cut. A larger --drain waits longer for them.",
        )


def _hangs(name: str, world: World) -> bool:
    """It takes a question and does not answer it; not the same as nobody being there."""
    try:
        world.gateway.status_of(name)
    except HostError:
        return True
    return False
