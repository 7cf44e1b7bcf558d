"""A Profile: what the user wrote about one public model, its engines, limits and adapters."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from orchestrator.core.artifact import Recipe
from orchestrator.core.part import Must, Part, Unfit, Unknown
from orchestrator.core.toml_text import toml_text
from orchestrator.core.weights import REPOSITORY, HubSource
from orchestrator.errors import PlanRefused, ProfileError

# Instances, directories and processes are named after profiles and adapters.
Name = Annotated[str, Must(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
PublicName = Annotated[str, Must(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]

# Which artifacts a profile prefers, where others have published what could be built here.
BUILT: Literal["built"] = "built"
READY_MADE: Literal["ready-made"] = "ready-made"

# What a profile says of engines: a table of settings each, by the engine's name.
EngineTables = dict[str, dict[str, Any]]
# Reads such tables by what the engines that there are take, and completes them; raises Unfit with every problem. It is
# handed to whoever reads profiles, because only engines know their settings (engines/settings.py).
ReadSettings = Callable[[Mapping[str, Any], Unknown], EngineTables]

PartT = TypeVar("PartT", bound=Part)


class Weights(Part):
    """Upstream weights: a hub repository with a revision, or a local directory (relative to the profile's file)."""

    repo: Annotated[str, Must(pattern=f"^{REPOSITORY}$")] | None = None
    revision: Annotated[str, Must(min_length=1)] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either repo and revision, or path")
        if self.repo is not None and self.revision is None:
            raise ValueError("repo needs a revision; best a 40-digit commit")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision goes with repo, not with path")

    @property
    def hub(self) -> HubSource | None:
        """The hub source, or None for a local directory."""
        return HubSource(self.repo, self.revision) if self.repo and self.revision else None


class ReadyMade(Part):
    """An artifact that others have built, taken instead of building it: of a hub repository one `file` (GGUF) or what
    an engine needs of it (NVFP4, FP8); or a file or directory here, relative to the profile's file."""

    repo: Annotated[str, Must(pattern=f"^{REPOSITORY}$")] | None = None
    revision: Annotated[str, Must(min_length=1)] | None = None
    file: Annotated[str, Must(pattern=r"^[\w-][\w./-]*\.gguf$")] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either repo and revision, or path")
        if self.repo is not None and self.revision is None:
            raise ValueError("repo needs a revision; best a 40-digit commit")
        if self.path is not None and (self.revision is not None or self.file is not None):
            raise ValueError("revision and file go with repo, not with path")

    @property
    def hub(self) -> HubSource | None:
        """The hub source, or None for what is here."""
        return HubSource(self.repo, self.revision) if self.repo and self.revision else None


class CalibrationTexts(Part):
    """What NVFP4 (W4A4) is calibrated with: the first `samples` texts of a JSONL file (relative to the profile's; None:
    the few that orch ships), of each at most `tokens` tokens. Published checkpoints took 512 of 2048."""

    path: str | None = None
    samples: Annotated[int, Must(ge=1, le=100_000)] = 512
    tokens: Annotated[int, Must(ge=16, le=131_072)] = 2048


class Serving(Part):
    """What every engine must offer. context is in tokens per request, prompt and answer together.

    memory_mib is the most host memory that an engine in a container may take; None: nine tenths of the machine's.
    tool_parser and reasoning_parser are vLLM's; None: those that fit the chat template, where orch knows; "": none.
    """

    context: Annotated[int, Must(ge=128, le=1_048_576)]
    parallel: Annotated[int, Must(ge=1, le=256)] = 4
    memory_mib: Annotated[int, Must(ge=16)] | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None


class Chat(Part):
    """How a chat becomes a prompt, where that is not left to the model: a Jinja file (relative to the profile's) that
    takes the place of its own chat templates."""

    template: str | None = None


class Sampling(Part):
    """Defaults for requests that do not say; None leaves it to the model's generation_config.json."""

    temperature: Annotated[float, Must(ge=0, le=2)] | None = None
    top_p: Annotated[float, Must(gt=0, le=1)] | None = None
    top_k: Annotated[int, Must(ge=0)] | None = None
    min_p: Annotated[float, Must(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Must(gt=0)] | None = None
    seed: int | None = None

    @property
    def said(self) -> tuple[tuple[str, float], ...]:
        """What it says, by name."""
        return tuple((name, value) for name, value in self.model_dump().items() if value is not None)


# Of one base.
MOST_ADAPTERS = 64


class Lora(Part):
    """Room for adapters: how many at once, and the largest rank."""

    max_adapters: Annotated[int, Must(ge=0, le=MOST_ADAPTERS)] = 4
    max_rank: Annotated[int, Must(ge=1, le=512)] = 16


class AdapterEntry(Part):
    """A LoRA that the profile brings along: its public name and its PEFT directory."""

    name: PublicName
    path: str


class Profile(Part):
    """One public model. `public_names[0]` is the name that engines serve under; clients may use all of them. What the
    settings of `engines` mean is for each engine's sheet to say.

    `artifacts` are taken ready-made in any case, `published` where ready-made ones are preferred (`prefer`, in a file
    under [artifacts]).
    """

    name: Name
    description: str = ""
    public_names: Annotated[tuple[PublicName, ...], Must(min_length=1)]
    weights: Weights
    serving: Serving
    chat: Chat = Chat()
    sampling: Sampling = Sampling()
    lora: Lora = Lora()
    engines: EngineTables = field(default_factory=dict)
    calibration: CalibrationTexts = CalibrationTexts()
    adapters: tuple[AdapterEntry, ...] = ()
    artifacts: dict[Recipe, ReadyMade] = field(default_factory=dict)
    published: dict[Recipe, ReadyMade] = field(default_factory=dict)
    prefer: Literal["built", "ready-made"] = BUILT

    def __post_init__(self) -> None:
        for table, known in (("artifacts", self.artifacts), ("published", self.published)):
            for recipe, ready in known.items():
                if problem := _problem_of(recipe, ready, table):
                    raise ValueError(f"{table}.{recipe.value}: {problem}")
        names = [*self.public_names, *(adapter.name for adapter in self.adapters)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names used twice: {', '.join(twice)}")

    @property
    def served_name(self) -> str:
        """The one name that engines know; the others are the gateway's aliases."""
        return self.public_names[0]

    @property
    def ready_made(self) -> dict[Recipe, ReadyMade]:
        """What is taken ready-made, and not built."""
        return {**(self.published if self.prefer == READY_MADE else {}), **self.artifacts}

    def preferring(self, ready_made: bool | None) -> Profile:
        """The same with ready-made artifacts preferred, or those built here; None: as it says itself. PlanRefused where
        it knows of none."""
        if ready_made is None:
            return self
        if ready_made and not self.artifacts and not self.published:
            raise PlanRefused(
                f"{self.name} does not know of a ready-made artifact.",
                hint='Name one in the profile, such as [published."gguf-q6_k"] with repo, revision and file.',
            )
        return self.model_copy({"prefer": READY_MADE if ready_made else BUILT})


def _problem_of(recipe: Recipe, ready: ReadyMade, table: str) -> str:
    """Why a ready-made artifact cannot be named like this; empty: it can."""
    if not recipe.served or recipe is Recipe.WEIGHTS:
        return "not an artifact; weights are named under [weights]"
    if ready.repo is not None and bool(recipe.quant) != (ready.file is not None):
        return "a GGUF is one file of a repository: name it with file" if recipe.quant else "file is for GGUFs"
    if ready.path is not None and table == "published":
        return "what is here is named under [artifacts]; give repo and revision"
    return ""


def parse_profile(text: str, where: str, settings: ReadSettings, base: Path | None = None) -> Profile:
    """A Profile from TOML. `where` names the file in messages; relative paths are taken from `base`.

    Raises ProfileError with every problem at once, each with its path in the file.
    """
    document = _load_toml(text, where)
    problems = _lift_preference(document)
    tables = document.get("engines", {})
    if isinstance(tables, dict):
        try:
            document["engines"] = settings(tables, "forbid")
        except Unfit as error:
            document["engines"] = {}
            problems += error.problems
    try:
        profile = Profile.model_validate(document)
    except Unfit as error:
        raise _all_problems([*error.problems, *problems], where) from error
    if problems:
        raise _all_problems(problems, where)
    return _absolute(profile, base) if base is not None else profile


def profile_toml(profile: Profile) -> str:
    """A profile as a file has it: what `parse_profile` reads."""
    document = profile.model_dump()
    prefer = document.pop("prefer")
    if prefer != BUILT:
        document["artifacts"] = {"prefer": prefer, **document["artifacts"]}
    return toml_text(document)


def _lift_preference(document: dict[str, Any]) -> list[Any]:
    """In a file `prefer` is beside the tables of [artifacts], by recipe; the problems with it."""
    problems = []
    if "prefer" in document:
        said = document.pop("prefer")
        problems.append({"loc": ("prefer",), "type": "value_error", "msg": "belongs under [artifacts]", "input": said})
    tables = document.get("artifacts")
    if isinstance(tables, dict) and "prefer" in tables:
        document["artifacts"] = {name: table for name, table in tables.items() if name != "prefer"}
        if (said := tables["prefer"]) in (BUILT, READY_MADE):
            document["prefer"] = said
        else:
            known = f"has to be {BUILT} or {READY_MADE}"
            problems.append({"loc": ("artifacts", "prefer"), "type": "value_error", "msg": known, "input": said})
    return problems


def parse_part(kind: type[PartT], text: str, where: str) -> PartT:
    """Any other TOML file of profiles/ (GPUs, engine pins), with the same errors as a Profile."""
    try:
        return kind.model_validate(_load_toml(text, where))
    except Unfit as error:
        raise _all_problems(error.problems, where) from error


def _load_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where} is not valid TOML.", detail=str(error)) from error


def _all_problems(found: list[Any], where: str) -> ProfileError:
    problems = []
    for entry in found:
        path = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in entry["loc"])) or "(top level)"
        given = entry["input"]
        shown = f" (given: {json.dumps(given, default=str)})" if isinstance(given, str | int | float | bool) else ""
        message = "unknown key" if entry["type"] == "extra_forbidden" else entry["msg"].removeprefix("Value error, ")
        problems.append(f"{path}: {message}{shown}")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ProfileError(
        f"{where} has {count}.",
        hint="`orch profile show qwen3-8b` prints a complete profile to compare with.",
        detail="\n".join(problems),
    )


def _place(path: str | None, base: Path) -> str | None:
    return str((base / Path(path).expanduser()).resolve()) if path is not None else None


def _absolute(profile: Profile, base: Path) -> Profile:
    def placed(part: PartT, path: str | None) -> PartT:
        return part.model_copy(update={"path": _place(path, base)}) if path is not None else part

    return profile.model_copy(
        update={
            "weights": placed(profile.weights, profile.weights.path),
            "chat": profile.chat.model_copy(update={"template": _place(profile.chat.template, base)}),
            "calibration": placed(profile.calibration, profile.calibration.path),
            "adapters": tuple(placed(entry, entry.path) for entry in profile.adapters),
            "artifacts": {recipe: placed(ready, ready.path) for recipe, ready in profile.artifacts.items()},
        }
    )
