"""The logs of engines and the gateway, wherever they run, in turn or as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.gateway_status import GATEWAY, generation_of, is_gateway
from orchestrator.core.launch import Instance, InstanceState
from orchestrator.drivers.base import Target
from orchestrator.errors import HostError, OrchError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

TICK_S = 0.1
# A look at the instances costs; between two of them an engine may be stopped to be started again at once.
LOOK_S = 1.0
LOOKS = 2


@dataclass(frozen=True)
class Source:
    """A log: whose, and the target that has it."""

    name: str
    target: Target


@dataclass(frozen=True)
class Place:
    """What could be read of a target: its instances and the names of its logs."""

    target: Target
    instances: tuple[Instance, ...]
    logs: tuple[str, ...]


def places(orch: Orchestrator) -> tuple[list[Place], list[HostError]]:
    """All targets that answer, and what the others said."""
    found, silent = [], []
    for target in orch.targets.values():
        try:
            found.append(Place(target, target.observe(), target.logs()))
        except HostError as error:
            silent.append(error)
    return found, silent


def sources(orch: Orchestrator, names: list[str]) -> tuple[list[Source], list[HostError]]:
    """The logs of these names, of none: of what serves; and what targets said that do not answer, and are left out.

    PlanRefused when there is no such log; the target's own HostError when it may be there.
    """
    found, silent = places(orch)
    wanted = [_gateway(found) if name == GATEWAY else name for name in names] or _serving(orch, found)
    chosen = [_source(name, found) for name in dict.fromkeys(wanted)]
    missing = [name for name, source in zip(dict.fromkeys(wanted), chosen, strict=True) if source is None]
    if (missing or not wanted) and silent:
        raise silent[0]
    known = ", ".join(sorted({name for place in found for name in place.logs})) or "none"
    if missing:
        raise PlanRefused(f"There is no log of {', '.join(missing)}.", hint=f"Logs: {known}")
    if not wanted:
        raise PlanRefused("Nothing is being served. Say whose log.", hint=f"Logs: {known}")
    return [source for source in chosen if source is not None], silent


def _serving(orch: Orchestrator, found: list[Place]) -> list[str]:
    """The engines that the gateway leads to, then the gateway; all that runs where the gateway does not tell."""
    alive = [instance.name for place in found for instance in place.instances if _lives(instance)]
    try:
        status = orch.gateway.status()
    except HostError:
        status = None
    known = {name for place in found for name in place.logs}
    engines = {route.backend.instance for route in status.routes} if status is not None else set()
    engines = engines & known or {name for name in alive if not is_gateway(name)}
    return sorted(engines) + sorted(filter(is_gateway, alive), key=generation_of)


def _gateway(found: list[Place]) -> str:
    """The newest gateway that lives; where none does, of which there is a log."""
    alive = {one.name for place in found for one in place.instances if is_gateway(one.name) and _lives(one)}
    names = alive or {name for place in found for name in place.logs if is_gateway(name)}
    return max(names, key=generation_of, default=GATEWAY)


def _source(name: str, found: list[Place]) -> Source | None:
    """The target where it lives, else where it is, else one that has a log of it."""
    ranked = sorted(found, key=lambda place: _rank(name, place))
    return Source(name, ranked[0].target) if ranked and _rank(name, ranked[0]) < 3 else None


def _rank(name: str, place: Place) -> int:
    present = [instance for instance in place.instances if instance.name == name]
    if any(_lives(instance) for instance in present):
        return 0
    return 1 if present else 2 if name in place.logs else 3


def _lives(instance: Instance) -> bool:
    return instance.state is not InstanceState.STOPPED


def printed(source: Source, lines: int) -> Iterator[str]:
    """The last lines of a log."""
    yield from source.target.log(source.name, lines, lambda: False) or ()


def followed(chosen: list[Source], lines: int, interrupted: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """(name, line) of all logs as they come, until the user asks to stop, or until nothing lives that they are of.

    What ends one of them (a target that does not answer any more) is a line of it; the others go on.
    """
    coming: queue.Queue[tuple[str, str | BaseException | None]] = queue.Queue()
    ended = threading.Event()

    def going_on() -> bool:
        return not ended.is_set() and not interrupted()

    def read(source: Source) -> None:
        try:
            for line in source.target.log(source.name, lines, _Watch(source, going_on)) or ():
                coming.put((source.name, line))
        except OrchError as error:
            coming.put((source.name, f"--- {error.message}"))
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            coming.put((source.name, error))
        finally:
            coming.put((source.name, None))

    for source in chosen:
        threading.Thread(target=read, args=(source,), daemon=True, name=f"following {source.name}").start()
    left = len(chosen)
    try:
        while left and not interrupted():
            try:
                name, said = coming.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if isinstance(said, BaseException):
                raise said
            if said is None:
                left -= 1
            else:
                yield name, said
    finally:
        ended.set()


class _Watch:
    """Whether to go on with a log: as long as `going_on`, and its instance lives; looked at now and then, and only
    when it was gone twice is it gone, so that its last lines are read too."""

    def __init__(self, source: Source, going_on: Callable[[], bool]) -> None:
        self._source = source
        self._going_on = going_on
        self._next = time.monotonic()
        self._gone = 0

    def __call__(self) -> bool:
        if not self._going_on():
            return False
        if time.monotonic() >= self._next:
            alive = any(one.name == self._source.name and _lives(one) for one in self._source.target.observe())
            self._gone = 0 if alive else self._gone + 1
            self._next = time.monotonic() + LOOK_S
        return self._gone < LOOKS
