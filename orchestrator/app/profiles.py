"""Profiles: by path, as they are recorded, or shipped; at commits; and what is known of their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import resources
from orchestrator.core.deployment import Desired
from orchestrator.core.observed import Observed
from orchestrator.core.pins import EnginePin
from orchestrator.core.profile import Profile, parse_profile
from orchestrator.core.text import decoded
from orchestrator.core.weights import HubSource, WeightsFacts
from orchestrator.engines.settings import read_settings
from orchestrator.errors import HostError, PlanRefused, ProfileError, UsageError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

DEFAULT_PROFILE = "qwen3-8b"


def is_path(name_or_path: str) -> bool:
    """Whether this is a profile's file, and not its name."""
    return "/" in name_or_path or name_or_path.endswith(".toml")


def load_profile(name_or_path: str, observed: Observed) -> Profile:
    """A profile by path, by the name of one that was deployed (as it was recorded), or of a shipped one."""
    if is_path(name_or_path):
        return profile_in(name_or_path)
    if name_or_path in observed.desired:
        return observed.desired[name_or_path].spec.profile
    shipped = resources.model_profiles()
    if name_or_path not in shipped:
        known = sorted({*shipped, *observed.desired})
        raise ProfileError(
            f"There is no profile named {name_or_path}.",
            hint=f"Known: {', '.join(known)}; or give its file, FILE.toml",
        )
    return _shipped(shipped[name_or_path])


def profile_in(path: str) -> Profile:
    """The profile in a file, by what was typed."""
    return read_profile(Path(path).expanduser())


def read_profile(path: Path) -> Profile:
    """The profile in a file; ProfileError with every problem at once."""
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ProfileError(f"{path} cannot be read: {error}.", hint="Save it as UTF-8.") from error
    return parse_profile(text, str(path), read_settings, path.resolve().parent)


def _shipped(path: Path) -> Profile:
    return parse_profile(path.read_text("utf-8"), path.name, read_settings)


def shipped_profiles() -> list[dict[str, str]]:
    """What is shipped, of which kind, and about what."""
    rows = [
        {"kind": "model", "name": name, "about": _shipped(path).description}
        for name, path in resources.model_profiles().items()
    ]
    rows += [{"kind": "gpu", "name": name, "about": gpu.description} for name, gpu in resources.gpu_profiles().items()]
    for name, pin in resources.engine_pins().items():
        image = ", ".join(image.name for image in pin.docker) or "no image pinned"
        rows.append({"kind": "engine", "name": name, "about": "; ".join(filter(None, (_builds(pin), image)))})
    for name, pin in resources.builder_pins().items():
        rows.append({"kind": "builder", "name": name, "about": _builds(pin)})
    for name, pin in resources.instrument_pins().items():
        rows.append({"kind": "instrument", "name": name, "about": _builds(pin)})
    return rows


def shipped_file(name: str) -> Path:
    """The file of anything that is shipped under profiles/: a model, a GPU, pins."""
    root = resources.root() / "profiles"
    found = {
        path.stem: path
        for kind in ("engines", "builders", "instruments", "gpus", "models")
        for path in sorted((root / kind).glob("*.toml"))
    }
    if name not in found:
        raise ProfileError(f"There is no profile named {name}.", hint=f"Known: {', '.join(sorted(found))}")
    return found[name]


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
    """What is wanted of a deployed profile (None: of the only one), by its name. PlanRefused when it is not deployed;
    UsageError for a file, whose contents would not count."""
    if profile is not None and is_path(profile):
        name = profile_in(profile).name
        raise UsageError(
            f"{profile} is a file, and this command uses what is deployed, whatever the file says now.",
            hint=f"Give the name instead: -p {name}. The file is applied by orch up -p {profile}.",
        )
    name = profile if profile is not None else default_profile(observed)
    present = observed.desired.get(name)
    if present is None:
        said = f"{name} is not deployed." if profile is not None else "Nothing is deployed."
        raise PlanRefused(said, hint="orch up ENGINE -p PROFILE")
    if present.stopped:
        raise PlanRefused(f"{name} is stopped.", hint=f"orch up -p {name}")
    return present


def pinned(orch: Orchestrator, profile: Profile, observed: Observed) -> Profile:
    """The profile with its hub revisions resolved to commits; offline, the commits that are deployed already."""
    present = observed.desired.get(profile.name)
    known = present.spec.profile if present is not None else None
    source = profile.weights.hub
    if source is not None and not source.pinned:
        commit = _commit(orch, source, known.weights.hub if known is not None else None)
        weights = profile.weights.model_copy(update={"revision": commit})
        profile = profile.model_copy(update={"weights": weights})
    taken = {}
    for recipe, ready in profile.ready_made.items():
        if ready.hub is not None and not ready.hub.pinned:
            before = {**known.published, **known.artifacts}.get(recipe) if known is not None else None
            commit = _commit(orch, ready.hub, before.hub if before is not None else None, ready.file)
            taken[recipe] = ready.model_copy(update={"revision": commit})
    # What is not taken stays at its branch: nobody has to ask the hub what that means.
    artifacts = {recipe: taken.get(recipe, ready) for recipe, ready in profile.artifacts.items()}
    of_others = taken.keys() - artifacts.keys()
    published = {recipe: taken[recipe] if recipe in of_others else one for recipe, one in profile.published.items()}
    return profile.model_copy(update={"artifacts": artifacts, "published": published})


def named_profile(orch: Orchestrator, name: str | None, observed: Observed, ready_made: bool | None = None) -> Profile:
    """The profile of that name or path (None: the one that is meant), at commits; see `preferring` for `ready_made`."""
    loaded = load_profile(name or default_profile(observed), observed).preferring(ready_made)
    return pinned(orch, loaded, observed)


def weights_facts(orch: Orchestrator, profile: Profile) -> WeightsFacts:
    """What is known of the profile's weights; its hub revision must be a commit."""
    source: HubSource | None = profile.weights.hub
    if source is not None:
        facts = orch.catalog.of_hub(source)
    else:
        facts = orch.catalog.of_directory(profile.weights, orch.progress)
    if profile.chat.template is None:
        return facts
    return replace(facts, template=_template(Path(profile.chat.template)))


def _template(file: Path) -> str:
    """A chat template of the user's. ProfileError where it is none."""
    # Few profiles have one, and Jinja is loaded for it.
    from orchestrator.artifacts.chat_rendering import template_problem

    hint = "chat.template in the profile names it: a Jinja file in UTF-8."
    try:
        text = decoded(file.read_bytes())
    except OSError as error:
        raise ProfileError(f"The chat template {file} cannot be read: {error.strerror}.", hint=hint) from error
    except ValueError as error:
        raise ProfileError(f"The chat template {file} cannot be read: {error}.", hint=hint) from error
    if problem := template_problem(text):
        raise ProfileError(f"The chat template {file} is not valid: {problem}.", hint=hint)
    return text


def _builds(pin: EnginePin) -> str:
    return ", ".join(f"{build.version} ({build.accelerator.value})" for build in pin.local)


def _commit(orch: Orchestrator, source: HubSource, known: HubSource | None, file: str | None = None) -> str:
    try:
        names = [file] if file is not None else None
        return orch.hub.snapshot(source, 30.0, names, orch.progress).source.revision
    except HostError:
        if known is None or known.repo != source.repo:
            raise
        return known.revision
