"""The verbs for container images: ls, pull, pin, gc, and save and load for a machine without network."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    OnlyPlan,
    ProfileName,
    Target,
    app,
    engine_names,
    session_of,
)
from orchestrator.core.tools import TOOLS
from orchestrator.errors import HostError, UsageError

if TYPE_CHECKING:
    from orchestrator.app.images import Pinned
    from orchestrator.app.images_gc import ImageVerdict
    from orchestrator.app.offline import Loaded
    from orchestrator.cli.session import Session

images = typer.Typer(
    help="Container images of engines, gateway and llama.cpp's tools, by digest.", no_args_is_help=True
)
app.add_typer(images, name="images")

COLUMNS = ("for", "image", "short_digest", "state", "runs_here")


def owner_names() -> list[str]:
    from orchestrator.app import engines

    return engines.image_owners()


def accelerator_names() -> list[str]:
    return ["cpu", "cuda", "rocm"]


OneAccelerator = Annotated[
    str | None,
    typer.Option("--accelerator", help="cpu, cuda or rocm; default: this machine's.", autocompletion=accelerator_names),
]


@images.command("ls")
def images_ls(as_json: AsJson = False) -> None:
    """The images that are pinned or used: what they are, which are here, which this machine can run, and whose they are
    now."""
    with session_of(as_json) as session:
        from orchestrator.app.images import listing

        found = listing(session.orch)
        if found.problem:
            session.screen.result({"docker": found.problem}, f"{found.problem} What is here is not known.")
        if found.gateway_problem:
            session.screen.result({"gateway": found.gateway_problem}, found.gateway_problem)
        session.screen.table("Images", COLUMNS, found.rows)
        if not as_json:
            for row in found.rows:
                if row["used_by"]:
                    session.screen.say(f"In use: {row['image']} {row['short_digest']} by {', '.join(row['used_by'])}.")


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
        from orchestrator.app.images import accelerator_named, confirm_pulled, plan_pull
        from orchestrator.core.plan import Plan

        wanted = accelerator_named(accelerator) if accelerator is not None else None
        made: list[Plan] = []

        def make_plan() -> Plan:
            made.append(plan_pull(session.orch, engines or [], wanted))
            return made[-1]

        try:
            session.plan_and_run("images pull", make_plan, plan)
        finally:
            # What came before an interrupt has come.
            if made and not plan:
                confirm_pulled(session.orch, made[-1])


@images.command("pin")
def images_pin(
    engine: Annotated[str, typer.Argument(help="Such as ollama or vllm, or tools.", autocompletion=owner_names)],
    image: Annotated[str | None, typer.Argument(metavar="IMAGE:TAG", help="As docker pull takes it.")] = None,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            help="What it computes on: cpu, cuda, rocm; may be repeated. Default: this machine's.",
            autocompletion=accelerator_names,
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Remove your pin and use the shipped ones again.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Go back to what was pinned before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Use this image for an engine: its tag is resolved to a digest now, and the digest is kept."""
    with session_of(as_json) as session:
        from orchestrator.app.images import accelerator_here, accelerator_named, back_to_pin, pin_image, reset_pin
        from orchestrator.app.runs import alone

        orch = session.orch
        here = accelerator_here(orch, engine)
        if [image is not None, reset, back].count(True) != 1:
            raise UsageError("Give an image, --reset or --back.", hint=f"orch images pin {engine} IMAGE:TAG")
        if back and accelerator:
            raise UsageError("--back goes back for all accelerators.", hint=f"orch images pin {engine} --back")
        chosen = tuple(accelerator_named(name) for name in accelerator or ())
        with alone(orch, f"images pin {engine}"):
            if image is not None:
                _tell_pinned(session, pin_image(orch, engine, image, chosen or (here,)))
                return
            if back:
                name = back_to_pin(orch, engine)
                text = f"{name or 'What is shipped'} applies again for {engine}."
                session.screen.result({"back": engine, "pinned": name}, text)
                return
            reset_pin(orch, engine, chosen)
            session.screen.result({"reset": engine}, f"The shipped pins of {engine} apply again.")


@images.command("gc")
def images_gc(plan: OnlyPlan = False, as_json: AsJson = False) -> None:
    """Remove orch's images that no container, recorded profile, rollback or pin needs."""
    with session_of(as_json) as session:
        from orchestrator.app.images_gc import image_verdicts, remove_images
        from orchestrator.app.runs import alone

        orch, screen = session.orch, session.screen
        with nullcontext() if plan else alone(orch, "images gc"):
            found = image_verdicts(orch)
            removable = [verdict for verdict in found if not verdict.stays]
            screen.table("Stays", ("image", "size", "why"), [_verdict_row(one) for one in found if one.stays])
            screen.table("Goes", ("image", "size", "why"), [_verdict_row(one) for one in removable])
            stay = {} if plan else remove_images(orch, removable)
        for verdict, why in stay.items():
            screen.result({"image": verdict.name, "do": "stay", "why": why}, f"{verdict.name} stays: {why}")
        size = sum(verdict.facts.size for verdict in removable if verdict not in stay)
        if plan:
            screen.result({"would_free": size}, f"It would free up to {size / 1e6:.1f} MB.")
        else:
            screen.result({"freed": size}, f"Up to {size / 1e6:.1f} MB freed: images share layers.")


def _verdict_row(verdict: ImageVerdict) -> dict[str, object]:
    do = "stay" if verdict.stays else "go"
    return {"image": verdict.name, "id": verdict.facts.id, "size": verdict.facts.size, "do": do, "why": verdict.why}


@images.command("save")
def images_save(
    file: Annotated[Path, typer.Argument(help="The file to write; on a large disk.", dir_okay=False)],
    profile: ProfileName = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated. Default: the one that serves.", autocompletion=engine_names),
    ] = None,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """One file with all that a profile needs elsewhere: images, artifacts, the profile, and a lock of all that."""
    with session_of(as_json) as session:
        from orchestrator.app.offline import save

        lock = save(session.orch, file, profile, engine or [], target)
        summary = f"{file}: {lock.total / 1e6:.1f} MB, {len(lock.images)} images, {len(lock.entries)} store entries."
        session.screen.result(
            {
                "saved": str(file),
                "size": lock.total,
                "images": [image.name for image in lock.images],
                "entries": [manifest.key for manifest in lock.entries],
                "left_out": lock.left_out,
            },
            "\n".join(
                (
                    summary,
                    *(f"Left out: {one}." for one in lock.left_out),
                    f"On the other machine: orch images load {file.name}",
                )
            ),
        )


@images.command("load")
def images_load(
    file: Annotated[Path, typer.Argument(help="A file of orch images save.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Load such a file: everything is checked, and what is already here is left alone. What `orch up` would lack here
    is told (exit code 4)."""
    with session_of(as_json) as session:
        from orchestrator.app.offline import load
        from orchestrator.app.runs import alone

        screen = session.screen
        with alone(session.orch, "images load"):
            done = load(session.orch, file)
        for name in done.loaded:
            screen.result({"loaded": name}, f"Loaded {name}.")
        for name in done.here:
            screen.result({"here": name}, f"{name} is already here.")
        for left_out in done.left_out:
            screen.result({"left_out": left_out}, f"The file leaves out {left_out}.")
        if done.gateway_unfit:
            text = (
                f"The file's image for the gateway cannot be used here: {done.gateway_unfit}. Install orch with the "
                "Python of where it was saved, or name an image that has this one: ORCH_GATEWAY_BASE=IMAGE:TAG."
            )
            screen.result({"unfit": done.gateway_unfit}, text)
        if done.gateway_base:
            base = f"ORCH_GATEWAY_BASE={done.gateway_base}"
            screen.result({"set": base}, f"Set {base}, as where it was saved: the gateway's image is on it.")
        for one in done.engines:
            if one.saved_for is not one.computes_on:
                saved, here = one.saved_for.value, one.computes_on.value
                text = f"{one.engine} was saved for {saved}; this machine computes on {here}."
                screen.result({"differs": one.engine, "saved": saved, "here": here}, text)
            if one.pinned is not None:
                text = f"{one.pinned.name} is pinned for {one.engine} now, as where it was saved."
                screen.result({"pinned": one.pinned.reference, "engine": one.engine}, text)
            for missing in one.missing:
                text = f"Missing for {one.engine}: orch up would have to {missing}."
                screen.result({"missing": missing, "engine": one.engine}, text)
            if one.refused:
                text = f"{one.engine} cannot be served here: {one.refused}"
                screen.result({"refused": one.refused, "engine": one.engine}, text)
            if not one.missing and not one.refused:
                screen.result({"next": one.command}, f"Serve it: {one.command}")
        if not done.is_whole:
            raise _not_whole(file, done)


def _not_whole(file: Path, done: Loaded) -> HostError:
    """All of the file is here, and orch up needs more."""
    fetching = [one.command for one in done.engines if one.missing and not one.refused]
    hint = "Save it again where it was made, with an orch of this version and this Python."
    if fetching:
        hint += f" Or where there is a network: {'; '.join(fetching)}"
    return HostError(f"{file.name} is loaded, and orch up cannot serve all of it here without a network.", hint=hint)


def _tell_pinned(session: Session, made: Pinned) -> None:
    screen, pin = session.screen, made.pin
    if made.moves:
        text = f"{pin.name} may mean another image later; orch keeps the digest that it has now."
        screen.result({"moves": pin.name}, text)
    if made.named.note:
        note = f"{made.named.note.rstrip('.')}. The image that is here is used, {made.who}."
        screen.result({"note": note}, note)
    before, after = made.cells_before, made.cells
    # Of an image that is not here there is nothing to compare.
    keys = [key for key in after if key in ("image", "digest") or key in before]
    rows = [
        {"of": key, "before": before.get(key, ""), "now": after[key]} for key in keys if before.get(key) or after[key]
    ]
    kinds = ", ".join(kind.value for kind in pin.accelerators)
    screen.table(f"{made.engine} for {kinds}", ("of", "before", "now"), rows)
    takes = (
        "The next orch build gguf --in-container uses it."
        if made.engine == TOOLS
        else f"What {made.engine} serves from another image is upgraded to it by orch up (orch status shows it)."
    )
    end = takes if made.changed else "That is the same image as before."
    fields = {"pinned": pin.reference, "engine": made.engine, "local": pin.local, "changed": made.changed}
    screen.result(fields, end)
