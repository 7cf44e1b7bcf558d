"""The verbs for profiles of models, GPUs and engine pins: ls, show, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import ProfileError

profiles = typer.Typer(help="Profiles of models, GPUs and engine pins.", no_args_is_help=True)
app.add_typer(profiles, name="profile")


@profiles.command("ls")
def profile_ls(as_json: AsJson = False) -> None:
    """The shipped profiles: models, GPUs, engine pins."""
    with session_of(as_json) as session:
        from orchestrator.app.profiles import shipped_profiles

        session.screen.table("Profiles", ("kind", "name", "about"), shipped_profiles())


@profiles.command("show")
def profile_show(name: Annotated[str, typer.Argument(help="A shipped profile.")], as_json: AsJson = False) -> None:
    """Print a shipped profile: the file to copy and change."""
    with session_of(as_json) as session:
        from orchestrator.app.profiles import shipped_file

        text = shipped_file(name).read_text("utf-8")
        session.screen.result({"name": name, "text": text}, text.rstrip())


@profiles.command("check")
def profile_check(path: Annotated[Path, typer.Argument(help="A .toml file.")], as_json: AsJson = False) -> None:
    """Read a profile and report every problem at once."""
    with session_of(as_json) as session:
        from orchestrator.app.profiles import read_profile

        profile = read_profile(path)
        if profile.weights.path is not None and not Path(profile.weights.path).is_dir():
            raise ProfileError(f"{path} has 1 problem.", detail=f"weights.path: no directory: {profile.weights.path}")
        session.screen.result({"ok": profile.name}, f"{path} is a valid profile named {profile.name}.")
