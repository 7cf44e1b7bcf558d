"""Finds what orch ships, templates/, profiles/ and schemas/, in an installed wheel or in a checkout, and reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.core.pins import EnginePin, GatewayBases, GpuProfile, ImagePin
from orchestrator.core.profile import parse_part
from orchestrator.core.reference import Reference
from orchestrator.core.text import decoded
from orchestrator.core.tools import TOOLS
from orchestrator.errors import OrchError, ProfileError


@cache
def root() -> Path:
    """The directory that holds templates/, profiles/ and schemas/."""
    package = Path(__file__).parent
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent


def model_profiles() -> dict[str, Path]:
    """The shipped profiles of models, by name."""
    return {path.stem: path for path in sorted((root() / "profiles" / "models").glob("*.toml"))}


def gpu_profiles() -> dict[str, GpuProfile]:
    """The shipped GPU profiles, by name."""
    paths = sorted((root() / "profiles" / "gpus").glob("*.toml"))
    return {path.stem: parse_part(GpuProfile, path.read_text("utf-8"), path.name) for path in paths}


def engine_pins() -> dict[str, EnginePin]:
    """The shipped engine pins, by engine."""
    return {path.stem: _pin(path, None) for path in sorted((root() / "profiles" / "engines").glob("*.toml"))}


def engine_pin(engine: str, own: Path) -> EnginePin:
    """What is pinned of an engine: shipped, which may be nothing, and before it the images in `own` (ENGINE.toml)."""
    return _pin(root() / "profiles" / "engines" / f"{engine}.toml", own)


def tools_pin(own: Path | None = None) -> EnginePin:
    """The shipped pin of llama.cpp's converter and quantizer, which has images only; `own` as for engines."""
    return _pin(root() / "profiles" / "images" / f"{TOOLS}.toml", own)


def builder_pins() -> dict[str, EnginePin]:
    """The shipped pins of programs that make artifacts, by name; pinned like engines, and run in environments only."""
    return {path.stem: _pin(path, None) for path in sorted((root() / "profiles" / "builders").glob("*.toml"))}


def instrument_pins() -> dict[str, EnginePin]:
    """The shipped pins of programs that measure, by name; pinned like engines, and run in environments only."""
    return {path.stem: _pin(path, None) for path in sorted((root() / "profiles" / "instruments").glob("*.toml"))}


def reference() -> Reference:
    """The figures of the article that orch started from."""
    path = root() / "profiles" / "reference" / "article.toml"
    return parse_part(Reference, path.read_text("utf-8"), path.name)


def calibration_texts() -> Path:
    """The shipped calibration texts, JSONL: few and short, for trying things out."""
    return root() / "profiles" / "calibration" / "default.jsonl"


def _pin(path: Path, own: Path | None) -> EnginePin:
    shipped = path.is_file()
    pin = parse_part(EnginePin, path.read_text("utf-8"), path.name) if shipped else EnginePin(engine=path.stem)
    mine = own_images(own, path.stem) if own is not None else ()
    return pin.model_copy(update={"docker": (*mine, *pin.docker)}) if mine else pin


def own_images(own: Path, engine: str) -> tuple[ImagePin, ...]:
    """The images of an engine that the user pinned, from ENGINE.toml in the directory of their pins."""
    path = own / f"{engine}.toml"
    if not path.is_file():
        return ()
    try:
        text = decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ProfileError(
            f"{path} cannot be read: {error}.", hint="Save it as UTF-8, or remove it and pin again."
        ) from error
    return parse_part(EnginePin, text, str(path)).docker


def gateway_bases() -> dict[str, ImagePin]:
    """The base images of the gateway's, by the Python that they have ("3.12")."""
    text = (root() / "profiles" / "images" / "gateway.toml").read_text("utf-8")
    return {base.python: base for base in parse_part(GatewayBases, text, "gateway.toml").bases}


def schemas() -> dict[str, Path]:
    """The shipped JSON schemas, by name: of what a verb prints with --json ("lora-add"), and "common" of what several
    print."""
    return {path.stem: path for path in sorted((root() / "schemas").glob("*.json"))}


def render_template(name: str, values: Mapping[str, Any]) -> str:
    """A template under templates/, strictly: a variable that is not given is a bug, and raised as one. In pages
    (.html.j2) values are text, whatever they hold."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    environment = Environment(
        loader=FileSystemLoader(root() / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=name.endswith(".html.j2"),
    )
    try:
        return environment.get_template(name).render(values)
    except TemplateError as error:
        raise OrchError(f"The template {name} could not be rendered.", detail=str(error)) from error
