"""The verbs for container images that a registry has: ls, pull, pin. What needs none is in images_offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import ENGINE_NAMES, AsJson, OnlyPlan, app, engine_names, session_of
from orchestrator.errors import HostError, OrchError, PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.image_names import ImageDetails, NamedImage
    from orchestrator.core.pins import Accelerator, ImagePin
    from orchestrator.core.steps import Action, Plan, Skip
    from orchestrator.engines.base import Pins

images = typer.Typer(
    help="Container images of engines, gateway and llama.cpp's tools, by digest.", no_args_is_help=True
)
app.add_typer(images, name="images")

VERIFIED = "verified.json"
COLUMNS = ("for", "image", "short_digest", "state", "runs_here")


def owner_names() -> list[str]:
    return [*(name for name in engine_names() if name != "llamacpp"), "tools"]


def image_pins(session: Session) -> Pins:
    """The pins of engines, and of llama.cpp's tools."""
    from orchestrator import resources
    from orchestrator.core.tools import TOOLS

    return {**session.pins, TOOLS: resources.tools_pin(session.settings.pins)}


def accelerator_names() -> list[str]:
    return ["cpu", "cuda", "rocm"]


OneAccelerator = Annotated[
    str | None,
    typer.Option("--accelerator", help="cpu, cuda or rocm; default: this machine's.", autocompletion=accelerator_names),
]


@images.command("ls")
def images_ls(as_json: AsJson = False) -> None:
    """The images that are pinned: what they are, which are here, and which this machine can run."""
    with session_of(as_json) as session:
        problem = session.docker_facts.problem
        if problem:
            session.screen.result({"docker": problem}, f"{problem} What is here is not known.")
        confirmed = verified(session)
        rows = [
            _row(session, engine, pin, confirmed, not problem)
            for engine, pins in image_pins(session).items()
            for pin in pins.docker
        ]
        session.screen.table("Images", COLUMNS, [*rows, *_gateway_rows(session, confirmed, not problem)])


@images.command("pull")
def images_pull(
    engines: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENGINE]...",
            help="Also: tools. Default: all engines that have an image for this machine.",
            autocompletion=owner_names,
        ),
    ] = None,
    accelerator: OneAccelerator = None,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Pull by digest what this machine would use, and make the gateway's image: a later `up` needs no network."""
    with session_of(as_json) as session:
        wanted = accelerator_of(accelerator)
        pins: list[ImagePin] = []

        def make_plan() -> Plan:
            from orchestrator.core.steps import Plan

            attend(session)
            observed = session.observe()
            items = tuple(_pull_items(session, engines or [], wanted, observed.images))
            pins.extend(_pins_of(items))
            return Plan("images pull", items, commit=len(items))

        try:
            session.carry_out("images pull", make_plan, plan)
        finally:
            if not plan:
                _confirm(session, pins)


@images.command("pin")
def images_pin(
    engine: Annotated[str, typer.Argument(help="ollama, vllm or tools.", autocompletion=owner_names)],
    image: Annotated[str | None, typer.Argument(metavar="IMAGE:TAG", help="As docker pull takes it.")] = None,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            help="What it computes on: cpu, cuda, rocm; may be given again. Default: this machine's.",
            autocompletion=accelerator_names,
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Remove your pin; the shipped ones count again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Use this image for an engine: its tag is resolved to a digest now, and the digest is kept."""
    with session_of(as_json) as session:
        _computes_on(session, engine)
        if (image is None) != reset:
            raise UsageError("Give an image, or --reset.", hint=f"orch images pin {engine} IMAGE:TAG")
        chosen = tuple(kind for name in accelerator or () if (kind := accelerator_of(name)) is not None)
        with session.exclusive(f"images pin {engine}"):
            if image is None:
                _reset(session, engine, chosen)
            else:
                _pin(session, engine, image, chosen or (_computes_on(session, engine),))


def attend(session: Session) -> None:
    """From now on the daemon is asked. HostError when there is none that can be used."""
    if problem := session.docker_facts.problem:
        raise HostError(problem, hint=session.docker_facts.hint)
    session.docker.attend()


def accelerator_of(name: str | None) -> Accelerator | None:
    """What was typed, as a value; UsageError when it is no accelerator."""
    from orchestrator.core.pins import Accelerator

    if name is None:
        return None
    try:
        return Accelerator(name.lower())
    except ValueError as error:
        raise UsageError(f"{name} is no accelerator.", hint="cpu, cuda or rocm.") from error


def verified(session: Session) -> Mapping[str, str]:
    """The images that pulls have confirmed: by reference, when (UTC, ISO 8601)."""
    from orchestrator.drivers.files import read_json

    path = session.settings.pins / VERIFIED
    try:
        value = read_json(path)
    except ValueError as error:
        raise HostError(
            f"{path} is damaged: {error}.", hint="Remove it; orch images pull confirms images again."
        ) from error
    return {str(key): str(when) for key, when in value.items()} if isinstance(value, dict) else {}


def put_pin(session: Session, engine: str, pin: ImagePin) -> None:
    """Make it the user's pin for its accelerators, beside those for others."""
    from orchestrator.core.pins import EnginePin
    from orchestrator.core.toml_text import toml_text
    from orchestrator.drivers.files import write_atomic

    kept = tuple(_without(_own(session, engine), pin.accelerators))
    whole = EnginePin(engine=engine, docker=(pin, *kept))
    text = f"# Made by orch images pin; orch images pin {engine} --reset removes it.\n"
    text += toml_text(whole.model_dump(mode="json", exclude_defaults=True))
    write_atomic(session.settings.pins / f"{engine}.toml", text.encode())


def _own(session: Session, engine: str) -> tuple[ImagePin, ...]:
    from orchestrator.core.pins import EnginePin
    from orchestrator.core.profile import parse_part

    path = session.settings.pins / f"{engine}.toml"
    return parse_part(EnginePin, path.read_text("utf-8"), str(path)).docker if path.is_file() else ()


def _without(pins: Iterable[ImagePin], accelerators: Iterable[Accelerator]) -> Iterator[ImagePin]:
    """The pins as far as they are for others than these accelerators."""
    gone = set(accelerators)
    for pin in pins:
        left = tuple(kind for kind in pin.accelerators if kind not in gone)
        if left:
            yield pin.model_copy(update={"accelerators": left})


def _computes_on(session: Session, engine: str) -> Accelerator:
    """What the engine computes on in a container on this machine; PlanRefused when there is no such engine."""
    from orchestrator.core.launch import DOCKER
    from orchestrator.core.pins import Accelerator
    from orchestrator.core.tools import TOOLS
    from orchestrator.engines.resolve import computes_on, engine_sheet

    if engine == TOOLS:
        return Accelerator.CPU
    if not engine_sheet(engine).in_containers:
        raise PlanRefused(f"orch runs {engine} as a process of its own only: it has no image.")
    return computes_on(engine_sheet(engine), DOCKER, session.host)


def _runs(session: Session, engine: str, pin: ImagePin, details: ImageDetails | None) -> str:
    """ "yes", or why this machine does not run it."""
    from orchestrator.core.images import driver_cannot
    from orchestrator.core.pins import Accelerator

    accelerator = _computes_on(session, engine)
    if accelerator not in pin.accelerators:
        return f"not for {accelerator.value}"
    facts = details.facts if details is not None else None
    return (driver_cannot(pin, facts, session.host) if accelerator is Accelerator.CUDA else "") or "yes"


def _row(session: Session, engine: str, pin: ImagePin, confirmed: Mapping[str, str], asked: bool) -> dict[str, Any]:
    details = session.images.details(pin.reference) if asked else None
    runs = _runs(session, engine, pin, details) if engine != "gateway" else "yes"
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
        "stated_by": "verified by a pull" if sure else pin.source,
        "state": ("confirmed" if sure else "here") if details is not None else "not here" if asked else "?",
    }


def _gateway_rows(session: Session, confirmed: Mapping[str, str], asked: bool) -> Iterator[dict[str, Any]]:
    """The gateway's base and its image."""
    try:
        reference, base = session.gateway_image()
    except OrchError as error:
        session.screen.result({"gateway": error.message}, f"{error.message} {error.hint}")
        return
    if not isinstance(base, str):
        yield _row(session, "gateway", base, confirmed, asked)
    built = [(reference, reference)]
    if isinstance(base, str):
        built = [(session.settings.gateway_base or base, base), *built]
    for name, image in built:
        details = session.images.details(image) if asked else None
        yield {
            "for": "gateway",
            "image": name,
            "accelerators": ["cpu"],
            "short_digest": details.facts.id.removeprefix("sha256:")[:12] if details is not None else "",
            "here": "yes" if details is not None else "no" if asked else "?",
            "size": details.facts.size if details is not None else 0,
            "runs_here": "yes",
            "state": "here" if details is not None else "not here" if asked else "?",
            "stated_by": "made here" if name == reference else "ORCH_GATEWAY_BASE",
        }


def _pull_items(
    session: Session, engines: list[str], wanted: Accelerator | None, here: Mapping[str, Any]
) -> Iterator[Action | Skip]:
    from orchestrator.core.steps import Action, BuildImage, PullImage, Skip

    for engine in dict.fromkeys(engines or (name for name, pin in session.pins.items() if pin.docker)):
        kind = wanted or _computes_on(session, engine)
        pin = _first(session, engine, kind, wanted is None)
        if pin is None:
            if engines:
                raise PlanRefused(
                    f"No image of {engine} that this machine can run is pinned for {kind.value}.",
                    hint=f"orch images pin {engine} IMAGE:TAG --accelerator {kind.value}; orch images ls shows all.",
                )
            yield Skip(f"pull an image of {engine}", f"none that can be run is pinned for {kind.value}")
        else:
            step = PullImage(pin)
            yield Skip(step.what, "it is here") if pin.reference in here else Action(step)
    reference, base = session.gateway_image()
    if not isinstance(base, str):
        step = PullImage(base)
        why = "it is here" if base.reference in here else "all that is made of it is here" if reference in here else ""
        yield Skip(step.what, why) if why else Action(step)
    build = BuildImage(reference, base if isinstance(base, str) else base.reference)
    yield Skip(build.what, "it is here") if reference in here else Action(build)


def _first(session: Session, engine: str, kind: Accelerator, of_this_machine: bool) -> ImagePin | None:
    """The image that an engine would be started from: the first for the accelerator that the driver here runs."""
    _computes_on(session, engine)
    for pin in image_pins(session)[engine].docker:
        runs = not of_this_machine or _runs(session, engine, pin, session.images.details(pin.reference)) == "yes"
        if kind in pin.accelerators and runs:
            return pin
    return None


def _pins_of(items: Iterable[Action | Skip]) -> Iterator[ImagePin]:
    from orchestrator.core.steps import Action, PullImage

    for item in items:
        if isinstance(item, Action) and isinstance(item.step, PullImage):
            yield item.step.image


def _confirm(session: Session, pins: list[ImagePin]) -> None:
    """Keep which of these are here by their digest: the daemon has checked it when it pulled them."""
    from datetime import UTC, datetime

    from orchestrator.drivers.files import write_json

    if not pins:
        return
    now, before = datetime.now(UTC).isoformat(timespec="seconds"), verified(session)
    found = {pin.reference: session.images.details(pin.reference) for pin in pins if not pin.local}
    sure = {ref: now for ref, details in found.items() if details is not None and ref in details.facts.references}
    if sure.keys() - before.keys():
        write_json(session.settings.pins / VERIFIED, {**sure, **before})


@dataclass(frozen=True)
class _Side:
    """One column of what changes: a pin, and the image if it is here."""

    pin: ImagePin | None
    details: ImageDetails | None

    def cells(self) -> dict[str, str]:
        """What is known, by what it is."""
        if self.pin is None:
            return {}
        cells = {"image": self.pin.name, "digest": self.pin.digest}
        if self.details is not None:
            facts = self.details.facts
            cells |= {"version": self.details.version, "requires": facts.requires}
            cells |= {"entrypoint": " ".join(facts.entrypoint), "size": f"{facts.size / 1e6:.1f} MB"}
        return cells


def _pin(session: Session, engine: str, name: str, accelerators: tuple[Accelerator, ...]) -> None:
    from datetime import UTC, datetime

    from orchestrator.core.image_names import LATEST, moves, split_name
    from orchestrator.core.pins import ImagePin

    if "@" in name:
        raise UsageError(f"{name} names a digest.", hint="Give IMAGE:TAG; its digest is found out and kept.")
    attend(session)
    image, tag = split_name(name)
    session.progress("asking the registry", 0, 0)
    named = session.images.resolve(f"{image}:{tag or LATEST}")
    today = datetime.now(UTC).date().isoformat()
    source = f"pinned by the user on {today}, {_who(named)}"
    fields = {"image": image, "tag": tag or LATEST, "digest": named.digest, "accelerators": accelerators}
    pin = ImagePin.model_validate({**fields, "verified": False, "source": source, "local": named.local})
    kinds = set(accelerators)
    old = next((one for one in image_pins(session)[engine].docker if kinds & set(one.accelerators)), None)
    put_pin(session, engine, pin)
    if not tag or moves(tag):
        text = f"{pin.name} means another image some day; what is kept is the digest that it has now."
        session.screen.result({"moves": pin.name}, text)
    if named.note:
        told = f"{named.note.rstrip('.')}. The image that is here is taken, {_who(named)}."
        session.screen.result({"note": told}, told)
    before = _Side(old, session.images.details(old.reference) if old is not None else None).cells()
    after = _Side(pin, session.images.details(pin.reference)).cells()
    # Of an image that is not here there is nothing to compare.
    keys = [key for key in after if key in ("image", "digest") or key in before]
    rows = [{"of": key, "before": before.get(key, ""), "now": after[key]} for key in keys]
    session.screen.table(
        f"{engine} for {', '.join(kind.value for kind in accelerators)}", ("of", "before", "now"), rows
    )
    same = old is not None and old.reference == pin.reference
    first = "orch up starts a new generation with" if engine in ENGINE_NAMES else "orch build gguf --in-container uses"
    end = "That is the same image as before." if same else f"The next {first} it."
    session.screen.result({"pinned": pin.reference, "engine": engine, "local": pin.local, "changed": not same}, end)


def _who(named: NamedImage) -> str:
    if named.local:
        return "by its image ID: no registry states it"
    return "by the digest that it was pulled with" if named.note else "as its registry states it"


def _reset(session: Session, engine: str, accelerators: tuple[Accelerator, ...]) -> None:
    """Remove the user's pin, or what of it is for these accelerators."""
    mine = _own(session, engine)
    left = tuple(_without(mine, accelerators)) if accelerators else ()
    if left == mine:
        raise PlanRefused(f"You have pinned no such image of {engine}.", hint="orch images ls")
    (session.settings.pins / f"{engine}.toml").unlink()
    for pin in reversed(left):
        put_pin(session, engine, pin)
    session.screen.result({"reset": engine}, f"The shipped pins of {engine} count again.")
