"""The verbs for what engines are made of: pull, engines, profile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, ProfileName, app, session_of
from orchestrator.errors import HostError, PlanRefused, ProfileError, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.environment import EnvironmentSpec
    from orchestrator.core.steps import Plan, Step

engines = typer.Typer(help="Environments of engines and builders, made and pinned by orch.", no_args_is_help=True)
profiles = typer.Typer(help="Profiles of models, GPUs and engine pins.", no_args_is_help=True)
app.add_typer(engines, name="engines")
app.add_typer(profiles, name="profile")


@app.command()
def pull(
    profile: ProfileName = None,
    repo: Annotated[str | None, typer.Option(help="OWNER/NAME@REVISION, without a profile.")] = None,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Download weights into the store. Checked against what the hub states, resumed where it stopped."""
    with session_of(as_json) as session:

        def make_plan() -> Plan:
            from orchestrator.cli.wishes import default_profile, load_profile, pinned
            from orchestrator.core.steps import FetchWeights
            from orchestrator.core.weights import REPOSITORY, HubSource

            if repo is not None:
                if profile is not None:
                    raise UsageError("Give a repository or a profile, not both.")
                name, _, revision = repo.partition("@")
                if not re.fullmatch(REPOSITORY, name):
                    raise UsageError(f"{repo!r} is no repository.", hint="OWNER/NAME or OWNER/NAME@REVISION.")
                source = HubSource(name, revision or "main")
                if not source.pinned:
                    source = session.world.hub.snapshot(source, timeout=30.0).source
            else:
                observed = session.observe()
                loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
                if loaded.weights.hub is None:
                    raise PlanRefused(f"The weights of {loaded.name} are a local directory: nothing to pull.")
                source = loaded.weights.hub
            key = session.catalog.of_hub(source).key
            return _one_step("pull", FetchWeights(source, key), done=session.store.get(key) is not None)

        session.carry_out("pull", make_plan, plan, alone=False)


@engines.command("ls")
def engines_ls(as_json: AsJson = False) -> None:
    """The engines and builders, what they run from, and whether it is installed."""
    with session_of(as_json) as session:
        from orchestrator import resources
        from orchestrator.drivers.host import read_host
        from orchestrator.engines import ENGINES

        host = read_host()
        rows: list[dict[str, object]] = []
        for name, sheet in ENGINES.items():
            lacking, _ = sheet.missing(host)
            if not sheet.needs_environment():
                rows.append({"engine": name, "environment": "", "state": lacking or "ready", "size": 0})
        environments = session.environments.observe()
        rows += [
            {"engine": e.engine, "environment": e.name, "state": e.problem or "ready", "size": e.size}
            for e in environments
        ]
        present = {environment.name for environment in environments}
        for spec in (_spec(session, "vllm"), *(session.builder_spec(name) for name in resources.builder_pins())):
            if spec.name not in present:
                rows.append({"engine": spec.engine, "environment": spec.name, "state": "not installed", "size": 0})
        session.screen.table("Engines", ("engine", "environment", "size", "state"), rows)


@engines.command("install")
def engines_install(
    engine: Annotated[str, typer.Argument(help="vllm, or llmcompressor, which makes NVFP4 (W4A4); others need none.")],
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Install the environment of an engine or builder now. Otherwise the first command that needs it does."""
    with session_of(as_json) as session:

        def make_plan() -> Plan:
            from orchestrator.core.steps import EnsureEnvironment

            spec = _spec(session, engine)
            present = {e.name: e for e in session.environments.observe()}.get(spec.name)
            done = present is not None and not present.problem
            return _one_step("engines install", EnsureEnvironment(spec), done=done)

        session.carry_out(f"engines install {engine}", make_plan, plan)


@engines.command("rm")
def engines_rm(
    name: Annotated[str, typer.Argument(help="An environment, as `orch engines ls` shows it.")], as_json: AsJson = False
) -> None:
    """Remove an environment that no engine runs from."""
    with session_of(as_json) as session, session.exclusive("engines rm"):
        if name not in {environment.name for environment in session.environments.observe()}:
            raise PlanRefused(f"There is no environment {name}.", hint="orch engines ls")
        users = [i.name for i in session.local.observe() if i.launch.environment == name]
        if users:
            raise PlanRefused(f"{name} is in use by {', '.join(users)}.", hint="orch down first.")
        session.environments.remove(name)
        session.screen.result({"removed": name}, f"Removed {name}.")


@profiles.command("ls")
def profile_ls(as_json: AsJson = False) -> None:
    """The shipped profiles: models, GPUs, engine pins."""
    with session_of(as_json) as session:
        from orchestrator import resources
        from orchestrator.core.profile import parse_profile

        rows: list[dict[str, object]] = []
        for name, path in resources.model_profiles().items():
            rows.append(
                {"kind": "model", "name": name, "about": parse_profile(path.read_text("utf-8"), path.name).description}
            )
        rows += [{"kind": "gpu", "name": n, "about": gpu.description} for n, gpu in resources.gpu_profiles().items()]
        for name, pin in resources.engine_pins().items():
            image = ", ".join(image.name for image in pin.docker) or "no image pinned"
            local = ", ".join(f"{build.version} ({build.accelerator.value})" for build in pin.local)
            rows.append({"kind": "engine", "name": name, "about": "; ".join(filter(None, (local, image)))})
        for name, pin in resources.builder_pins().items():
            local = ", ".join(f"{build.version} ({build.accelerator.value})" for build in pin.local)
            rows.append({"kind": "builder", "name": name, "about": local})
        session.screen.table("Profiles", ("kind", "name", "about"), rows)


@profiles.command("show")
def profile_show(name: Annotated[str, typer.Argument(help="A shipped profile.")], as_json: AsJson = False) -> None:
    """Print a shipped profile: the file to copy and change."""
    with session_of(as_json) as session:
        path = _shipped(name)
        text = path.read_text("utf-8")
        session.screen.result({"name": name, "text": text}, text.rstrip())


@profiles.command("check")
def profile_check(path: Annotated[Path, typer.Argument(help="A .toml file.")], as_json: AsJson = False) -> None:
    """Read a profile and report every problem at once."""
    with session_of(as_json) as session:
        from orchestrator.core.profile import parse_profile

        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path} cannot be read.", detail=str(error)) from error
        profile = parse_profile(text, str(path), path.resolve().parent)
        if profile.weights.path is not None and not Path(profile.weights.path).is_dir():
            raise ProfileError(f"{path} has 1 problem.", detail=f"weights.path: no directory: {profile.weights.path}")
        session.screen.result({"ok": profile.name}, f"{path} is a good profile named {profile.name}.")


def _one_step(verb: str, step: Step, done: bool) -> Plan:
    from orchestrator.core.steps import Action, Plan, Skip

    item = Skip(step.what, "it is there already") if done else Action(step)
    return Plan(verb, (item,), commit=1)


def _spec(session: Session, engine: str) -> EnvironmentSpec:
    from orchestrator import resources
    from orchestrator.drivers.host import read_host
    from orchestrator.engines.resolve import engine_sheet

    if engine in resources.builder_pins():
        return session.builder_spec(engine)
    sheet = engine_sheet(engine)
    if not sheet.needs_environment():
        raise PlanRefused(f"{engine} needs no environment of its own.", hint="orch engines ls")
    index = session.settings.torch_index
    pin = resources.engine_pins()[engine]
    spec = pin.environment(sheet.accelerator(read_host()), (index,) if index is not None else None)
    if spec is None:
        raise HostError(f"No build of {engine} is pinned for this machine.")
    return spec


def _shipped(name: str) -> Path:
    from orchestrator import resources

    root = resources.root() / "profiles"
    found = {
        path.stem: path
        for kind in ("engines", "builders", "gpus", "models")
        for path in sorted((root / kind).glob("*.toml"))
    }
    if name not in found:
        raise ProfileError(f"There is no profile named {name}.", hint=f"Known: {', '.join(sorted(found))}")
    return found[name]
