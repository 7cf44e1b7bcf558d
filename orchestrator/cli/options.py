"""The app, the options that verbs share, and the one rescue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from orchestrator.core.form import Form
from orchestrator.core.proof import Probe

if TYPE_CHECKING:
    from orchestrator.cli.session import Session

app = typer.Typer(
    name="orch",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _version(asked: bool) -> None:
    if asked:
        from orchestrator import __version__

        typer.echo(f"orch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Serve your own LLM with Ollama, llama.cpp or vLLM behind one address, and move between them."""


def command() -> Callable[..., Any]:
    """The app, as what runs a command line."""
    made = get_command(app)
    _give_flags_a_default(made)
    return made


def _give_flags_a_default(group: Any) -> None:
    """Flags of typer's own have none, and None it has pydantic check, which costs as much as typer itself."""
    group.context_settings["default_map"] = dict.fromkeys(("help", "install_completion", "show_completion"), False)
    for verb in getattr(group, "commands", {}).values():
        _give_flags_a_default(verb)


def engine_names() -> list[str]:
    from orchestrator.app import engines

    return engines.engine_names()


EngineName = Annotated[
    str | None,
    typer.Argument(
        metavar="ENGINE",
        help="Such as llamacpp, vllm or ollama; default: the deployed one.",
        autocompletion=engine_names,
    ),
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", "-p", help="A profile: its name, or the path of a .toml file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on stdout, for programs.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Print what would be done, and stop.")]
TARGET_NAMES = ("docker", "local")


def target_names() -> list[str]:
    return list(TARGET_NAMES)


Target = Annotated[
    str | None,
    typer.Option(
        help="docker or local; default: where it runs, else docker if a daemon and an image are available.",
        autocompletion=target_names,
    ),
]
ReadyMade = Annotated[
    bool | None,
    typer.Option(
        "--ready-made/--no-ready-made",
        help="Take what others have published where the profile knows of it, and do not build it; or build it again.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large download.")]
Timeout = Annotated[float, typer.Option(help="Seconds that an engine has to answer.", min=1)]

Drain = Annotated[float, typer.Option(help="Seconds that requests in flight on the old engine have to finish.", min=0)]
FormOfChange = Annotated[
    Form | None,
    typer.Option(
        "--form",
        help="Start the new engine beside the old one (overlap), or once that has ended, while requests wait "
        "(handover); default: by what fits.",
    ),
]
LongestHold = Annotated[
    float,
    typer.Option(
        "--max-hold",
        help="Seconds that a request may wait in a handover; past it the old engine is back. Node.js gives up at 300.",
        min=1,
        max=3540,
    ),
]
SkippedProbes = Annotated[
    list[Probe] | None,
    typer.Option("--skip-probe", help="What a new engine need not prove before clients meet it; several for several."),
]
KeepOld = Annotated[
    bool,
    typer.Option(
        "--keep-old",
        help="What served before stands by, so that rollback is fast: Ollama without its model, others stopped.",
    ),
]


@contextmanager
def session_of(as_json: bool, one_document: bool = False) -> Iterator[Session]:
    """A Session for one verb. Errors are told on its screen, then leave with their exit code. With `one_document` its
    JSON is that, or an error, and nothing besides."""
    from orchestrator.cli.screen import Human, JsonDocument, JsonLines
    from orchestrator.cli.session import Session
    from orchestrator.errors import OrchError

    try:
        session = Session(as_json)
        if as_json and one_document:
            session.screen = JsonDocument()
    except OrchError as error:
        (JsonLines() if as_json else Human()).error(error)
        raise typer.Exit(error.exit_code) from error
    try:
        yield session
    except OrchError as error:
        session.screen.error(error)
        raise typer.Exit(error.exit_code) from error
    finally:
        session.screen.close()
