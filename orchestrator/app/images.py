"""Container images as they are pinned: what they are, which are here, which this machine runs; pulling and pinning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator import resources
from orchestrator.core.image_names import LATEST, ImageDetails, NamedImage, moves, split_name
from orchestrator.core.launch import DOCKER
from orchestrator.core.pins import Accelerator, EnginePin, ImagePin
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.prerequisites import BuildImage, Prerequisite, PullImage, Storage
from orchestrator.core.toml_text import toml_text
from orchestrator.core.tools import TOOLS
from orchestrator.drivers.files import read_json, write_atomic, write_json
from orchestrator.engines import engine_sheet
from orchestrator.engines.driver_support import driver_cannot
from orchestrator.engines.resolve import computes_on
from orchestrator.errors import HostError, OrchError, PlanRefused, UsageError
from orchestrator.planning.images_gc import image_uses
from orchestrator.planning.prerequisites import prerequisite_items

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator
    from orchestrator.core.observed import Observed
    from orchestrator.engines.base import Pins

# Who uses an image, in a word or two each, by what names it exactly.
Users = Mapping[str, list[str]]
VERIFIED = "verified.json"
# Beside the pins: what they were before they were changed.
BEFORE = "before"


@dataclass(frozen=True)
class Listing:
    """Rows of what is pinned, and of what is used and not pinned any more; `problem` says why it is not known what is
    here, `gateway_problem` why there is no image for the gateway. Both are empty where there is none."""

    rows: tuple[Mapping[str, Any], ...]
    problem: str = ""
    gateway_problem: str = ""


@dataclass(frozen=True)
class Pinned:
    """What pinning has changed: the pin, the one before, what is known of both images by what it is, what the name
    means now, and whether the tag is one that moves."""

    engine: str
    pin: ImagePin
    before: ImagePin | None
    cells_before: Mapping[str, str]
    cells: Mapping[str, str]
    named: NamedImage
    moves: bool

    @property
    def changed(self) -> bool:
        """Whether it is another image than before."""
        return self.before is None or self.before.reference != self.pin.reference

    @property
    def who(self) -> str:
        """Who says what the name means."""
        if self.named.local:
            return "by its image ID: no registry states it"
        return "by the digest that it was pulled with" if self.named.note else "as its registry states it"


def image_pins(orch: Orchestrator) -> Pins:
    """The pins of engines, and of llama.cpp's tools."""
    return {**orch.pins, TOOLS: resources.tools_pin(orch.settings.pins)}


def attend(orch: Orchestrator) -> None:
    """From now on the daemon is asked. HostError when there is none that can be used."""
    if problem := orch.docker_facts.problem:
        raise HostError(problem, hint=orch.docker_facts.hint)
    orch.attend_docker()


def accelerator_named(name: str) -> Accelerator:
    """What was typed, as a value; UsageError when it is no accelerator."""
    try:
        return Accelerator(name.lower())
    except ValueError as error:
        raise UsageError(f"{name} is not an accelerator.", hint="cpu, cuda or rocm.") from error


def accelerator_here(orch: Orchestrator, engine: str) -> Accelerator:
    """What the engine computes on in a container on this machine; PlanRefused when there is no such engine."""
    if engine == TOOLS:
        return Accelerator.CPU
    if not engine_sheet(engine).in_containers:
        raise PlanRefused(f"orch runs {engine} only as a local process: it has no image.")
    return computes_on(engine_sheet(engine), DOCKER, orch.host)


def listing(orch: Orchestrator) -> Listing:
    """All images that are pinned, and the gateway's; and whose they are now."""
    problem = orch.docker_facts.problem
    confirmed, asked = verified(orch), not problem
    observed = orch.observe()
    pinned = [(engine, pin) for engine, pins in image_pins(orch).items() for pin in pins.docker]
    known = {pin.reference for _, pin in pinned}
    pinned += [(engine, pin) for engine, pin in _recorded(observed) if pin.reference not in known]
    users: dict[str, list[str]] = {}
    for use in image_uses(observed):
        users.setdefault(use.image, []).append(use.who)
    rows = [_row(orch, engine, pin, confirmed, asked, users) for engine, pin in pinned]
    try:
        rows += _gateway_rows(orch, confirmed, asked, users)
    except OrchError as error:
        return Listing(tuple(rows), problem, f"{error.message} {error.hint}".strip())
    return Listing(tuple(rows), problem)


def _recorded(observed: Observed) -> Iterator[tuple[str, ImagePin]]:
    """What profiles are served by, and what rollback goes back to."""
    found = {}
    for desired in observed.desired.values():
        for served in (desired.served, desired.before):
            if served is not None and served.resolution is not None and served.resolution.image is not None:
                found[served.resolution.image.reference] = (served.spec.engine, served.resolution.image)
    yield from found.values()


def plan_pull(orch: Orchestrator, engines: list[str], wanted: Accelerator | None) -> Plan:
    """The plan to have here what this machine would use (or what is pinned for `wanted`), and the gateway's image."""
    attend(orch)
    observed = orch.observe()
    items: list[Action | Skip] = []
    for engine in dict.fromkeys(engines or (name for name, pin in orch.pins.items() if pin.docker)):
        kind = wanted or accelerator_here(orch, engine)
        pin = _first(orch, engine, kind, wanted is None)
        if pin is not None:
            items += prerequisite_items((PullImage(pin),), observed)
        elif engines:
            raise PlanRefused(
                f"No image of {engine} that this machine can run is pinned for {kind.value}.",
                hint=f"orch images pin {engine} IMAGE:TAG --accelerator {kind.value}; orch images ls shows all.",
            )
        else:
            items.append(Remark(f"pull an image of {engine}", f"none that runs here is pinned for {kind.value}"))
    reference, base = orch.gateway_image()
    if isinstance(base, str):
        items += prerequisite_items((BuildImage(reference, base),), observed)
    else:
        items += prerequisite_items((PullImage(base), BuildImage(reference, base.reference)), observed)
    return Plan("images pull", tuple(items), commit=len(items))


def confirm_pulled(orch: Orchestrator, plan: Plan) -> None:
    """Keep which images of a plan are here by their digest: the daemon has checked it when it pulled them."""
    steps = [action.step for action in plan.actions if isinstance(action.step, Prerequisite)]
    pulled = [step.key for step in steps if step.storage is Storage.IMAGES and step.download is not None]
    if not pulled:
        return
    now, before = datetime.now(UTC).isoformat(timespec="seconds"), verified(orch)
    found = {reference: orch.images.details(reference) for reference in pulled}
    sure = {ref: now for ref, details in found.items() if details is not None and ref in details.facts.references}
    if sure.keys() - before.keys():
        write_json(orch.settings.pins / VERIFIED, {**sure, **before})


def verified(orch: Orchestrator) -> Mapping[str, str]:
    """The images that pulls have confirmed: by reference, when (UTC, ISO 8601)."""
    path = orch.settings.pins / VERIFIED
    try:
        value = read_json(path)
    except ValueError as error:
        raise HostError(
            f"{path} is damaged: {error}.", hint="Remove it; orch images pull confirms images again."
        ) from error
    return {str(key): str(when) for key, when in value.items()} if isinstance(value, dict) else {}


def put_pin(orch: Orchestrator, engine: str, pin: ImagePin) -> None:
    """Make it the user's pin for its accelerators, beside those for others."""
    _keep(orch, engine, (pin, *_without(resources.own_images(orch.settings.pins, engine), pin.accelerators)))


def pin_image(orch: Orchestrator, engine: str, name: str, accelerators: tuple[Accelerator, ...]) -> Pinned:
    """Pin IMAGE:TAG by the digest that it has now. UsageError where the name has a digest already."""
    if "@" in name:
        raise UsageError(f"{name} names a digest.", hint="Give IMAGE:TAG; its digest is looked up and kept.")
    attend(orch)
    image, tag = split_name(name)
    orch.progress("asking the registry", 0, 0)
    named = orch.images.resolve(f"{image}:{tag or LATEST}")
    today = datetime.now(UTC).date().isoformat()
    fields = {"image": image, "tag": tag or LATEST, "digest": named.digest, "accelerators": accelerators}
    pin = ImagePin.model_validate({**fields, "verified": False, "source": "", "local": named.local})
    kinds = set(accelerators)
    old = next((one for one in image_pins(orch)[engine].docker if kinds & set(one.accelerators)), None)
    before = _cells(old, orch.images.details(old.reference) if old is not None else None)
    after = _cells(pin, orch.images.details(pin.reference))
    made = Pinned(engine, pin, old, before, after, named, not tag or moves(tag))
    put_pin(orch, engine, pin.model_copy(update={"source": f"pinned by the user on {today}, {made.who}"}))
    _want_again(orch, pin)
    return made


def _want_again(orch: Orchestrator, pin: ImagePin) -> None:
    """Whoever pins what was gone back from wants it after all: the next `up` takes it."""
    for profile, desired in orch.records.desired().items():
        before = desired.before.resolution if desired.before is not None else None
        if desired.held and before is not None and before.program == pin.reference:
            orch.records.record(profile, desired.model_copy({"held": False}))


def reset_pin(orch: Orchestrator, engine: str, accelerators: tuple[Accelerator, ...]) -> None:
    """Remove the user's pin, or what of it is for these accelerators; PlanRefused when there is none."""
    mine = resources.own_images(orch.settings.pins, engine)
    left = tuple(_without(mine, accelerators)) if accelerators else ()
    if left == mine:
        raise PlanRefused(f"You have pinned no such image of {engine}.", hint="orch images ls")
    _keep(orch, engine, left)


def back_to_pin(orch: Orchestrator, engine: str) -> str:
    """What was pinned for an engine before its pins were changed counts again, and the other way round; by name. Empty
    where those that are shipped do. PlanRefused when nothing was changed."""
    before = orch.settings.pins / BEFORE / f"{engine}.toml"
    if not before.is_file():
        raise PlanRefused(f"The pins of {engine} were never changed.", hint="orch images ls")
    _write(orch, engine, before.read_bytes())
    return ", ".join(pin.name for pin in resources.own_images(orch.settings.pins, engine))


def pins_before(orch: Orchestrator, engine: str) -> tuple[ImagePin, ...]:
    """What `back_to_pin` would go back to, of the user's."""
    kept = orch.settings.pins / BEFORE
    path = kept / f"{engine}.toml"
    return resources.own_images(kept, engine) if path.is_file() and path.stat().st_size else ()


def _keep(orch: Orchestrator, engine: str, pins: tuple[ImagePin, ...]) -> None:
    """Have these pins of the user's, and no others."""
    text = ""
    if pins:
        text = f"# Made by orch images pin; orch images pin {engine} --reset removes it.\n"
        text += toml_text(EnginePin(engine=engine, docker=pins).model_dump(exclude_defaults=True))
    _write(orch, engine, text.encode())


def _write(orch: Orchestrator, engine: str, text: bytes) -> None:
    """What was there is kept first: a kill between the two loses no pin that counts. Empty: no pin of the user's."""
    path = orch.settings.pins / f"{engine}.toml"
    now = path.read_bytes() if path.is_file() else b""
    if now == text:
        return
    write_atomic(orch.settings.pins / BEFORE / path.name, now)
    if text:
        write_atomic(path, text)
    else:
        path.unlink()


def _without(pins: Iterable[ImagePin], accelerators: Iterable[Accelerator]) -> Iterator[ImagePin]:
    """The pins as far as they are for others than these accelerators."""
    gone = set(accelerators)
    for pin in pins:
        left = tuple(kind for kind in pin.accelerators if kind not in gone)
        if left:
            yield pin.model_copy(update={"accelerators": left})


def _runs(orch: Orchestrator, engine: str, pin: ImagePin, details: ImageDetails | None) -> str:
    """ "yes", or why this machine does not run it."""
    accelerator = accelerator_here(orch, engine)
    if accelerator not in pin.accelerators:
        return f"not for {accelerator.value}"
    facts = details.facts if details is not None else None
    return (driver_cannot(pin, facts, orch.host) if accelerator is Accelerator.CUDA else "") or "yes"


def _first(orch: Orchestrator, engine: str, kind: Accelerator, of_this_machine: bool) -> ImagePin | None:
    """The image that an engine would be started from: the first for the accelerator that the driver here runs."""
    accelerator_here(orch, engine)
    for pin in image_pins(orch)[engine].docker:
        runs = not of_this_machine or _runs(orch, engine, pin, orch.images.details(pin.reference)) == "yes"
        if kind in pin.accelerators and runs:
            return pin
    return None


def _row(
    orch: Orchestrator, engine: str, pin: ImagePin, confirmed: Mapping[str, str], asked: bool, users: Users
) -> dict[str, Any]:
    details = orch.images.details(pin.reference) if asked else None
    runs = _runs(orch, engine, pin, details) if engine != "gateway" else "yes"
    by_pull = details is not None and pin.reference in details.facts.references
    sure = pin.verified or by_pull or pin.reference in confirmed
    requires = details.facts.requires if details is not None else ""
    return {
        "for": engine,
        "image": pin.name,
        "accelerators": [kind.value for kind in pin.accelerators],
        "digest": pin.digest,
        "short_digest": pin.digest.removeprefix("sha256:")[:12],
        "local": pin.local,
        "verified": sure,
        "here": "yes" if details is not None else "no" if asked else "?",
        "size": details.facts.size if details is not None else 0,
        "requires": requires,
        "needs": requires.split()[0].split(",")[0] if requires else "",
        "runs_here": runs,
        "used_by": users.get(pin.reference, []),
        "stated_by": "verified by a pull" if sure else pin.source,
        "state": ("confirmed" if sure else "here") if details is not None else "not here" if asked else "?",
    }


def _gateway_rows(
    orch: Orchestrator, confirmed: Mapping[str, str], asked: bool, users: Users
) -> Iterator[dict[str, Any]]:
    """The gateway's base and its image."""
    reference, base = orch.gateway_image()
    if not isinstance(base, str):
        yield _row(orch, "gateway", base, confirmed, asked, users)
    built = [(reference, reference)]
    if isinstance(base, str):
        built = [(orch.settings.gateway_base or base, base), *built]
    for name, image in built:
        details = orch.images.details(image) if asked else None
        yield {
            "for": "gateway",
            "image": name,
            "accelerators": ["cpu"],
            "short_digest": details.facts.id.removeprefix("sha256:")[:12] if details is not None else "",
            "here": "yes" if details is not None else "no" if asked else "?",
            "size": details.facts.size if details is not None else 0,
            "runs_here": "yes",
            "used_by": users.get(image, []),
            "state": "here" if details is not None else "not here" if asked else "?",
            "stated_by": "made here" if name == reference else "ORCH_GATEWAY_BASE",
        }


def _cells(pin: ImagePin | None, details: ImageDetails | None) -> dict[str, str]:
    """What is known of a pin and its image, by what it is."""
    if pin is None:
        return {}
    cells = {"image": pin.name, "digest": pin.digest}
    if details is not None:
        facts = details.facts
        cells |= {"version": details.version, "requires": facts.requires}
        cells |= {"entrypoint": " ".join(facts.entrypoint), "size": f"{facts.size / 1e6:.1f} MB"}
    return cells
