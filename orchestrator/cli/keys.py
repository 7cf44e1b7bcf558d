"""The verbs for the gateway's API keys: add, ls, rm, rotate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, app, session_of
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.plan import Plan

keys = typer.Typer(help="API keys that clients of the gateway show: hashed at rest, shown once.", no_args_is_help=True)
app.add_typer(keys, name="keys")

# Of a key that somebody has made up.
SHORTEST = 12
COLUMNS = ("name", "created", "expires", "last_used", "state")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What to call it, such as who has it.")]
FromStdin = Annotated[bool, typer.Option("--stdin", help="Take the key from standard input instead of making one.")]


@keys.command("add")
def keys_add(
    name: Name,
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="How long it is good: 90d, 12h.")] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="On loopback: how long clients without a key are still let in. Default: as before; with the first "
            "key not at all.",
        ),
    ] = None,
    stdin: FromStdin = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Add a key that clients may send, and show it this once. No request is interrupted."""
    with session_of(as_json) as session:
        from orchestrator.app.keys import duration, plan_adding

        until, let_in = (duration(time) if time is not None else None for time in (expires, grace))
        key = _key("add", name, stdin)
        orch = session.orch
        _change(session, name, key, lambda: plan_adding(orch, name, key, orch.observe(), until, let_in), plan, stdin)


@keys.command("rotate")
def keys_rotate(
    name: Name,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key is still good; 0: not at all.")
    ] = "24h",
    stdin: FromStdin = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Replace a key with a new one, and show it this once. Clients have time to change theirs."""
    with session_of(as_json) as session:
        from orchestrator.app.keys import duration, plan_rotating

        good_for, key = duration(grace), _key("rotate", name, stdin)
        orch = session.orch
        _change(session, name, key, lambda: plan_rotating(orch, name, key, orch.observe(), good_for), plan, stdin)


@keys.command("rm")
def keys_rm(
    name: Name,
    open_again: Annotated[
        bool, typer.Option("--open", help="Even the last one: then whoever is on this machine is let in.")
    ] = False,
    plan: OnlyPlan = False,
    as_json: AsJson = False,
) -> None:
    """Withdraw a key: new requests with it are refused. Those in flight go on."""
    with session_of(as_json) as session:
        from orchestrator.app.keys import plan_removing

        orch = session.orch
        session.plan_and_run(
            f"keys rm {name}", lambda: plan_removing(orch, name, orch.observe(), open_again), only_plan=plan
        )


@keys.command("ls")
def keys_ls(as_json: AsJson = False) -> None:
    """The keys by name, and when each was used last."""
    with session_of(as_json) as session:
        from orchestrator.app.keys import key_rows, open_until

        rows = [asdict(row) for row in key_rows(session.orch)]
        if until := open_until(session.orch):
            session.screen.result({"open_until": until}, f"Clients without an API key are let in until {until}.")
        if not rows and not as_json:
            session.screen.result({}, "There are no API keys: whoever is on this machine is let in.")
            return
        session.screen.table("API keys", COLUMNS, rows)


def _key(verb: str, name: str, stdin: bool) -> str:
    if not stdin:
        from orchestrator.app.keys import made_key

        return made_key()
    if sys.stdin.isatty():
        raise UsageError("--stdin takes the key from a pipe.", hint=f"printf %s KEY | orch keys {verb} {name} --stdin")
    key = sys.stdin.buffer.read().decode("ascii", errors="replace").strip()
    if len(key) < SHORTEST:
        said = f"has only {len(key)} characters" if key else "is empty"
        raise UsageError(
            f"The API key on standard input {said}; whoever guesses it is let in.",
            hint=f"{SHORTEST} characters at least; orch keys {verb} {name} makes one.",
        )
    return key


def _change(session: Session, name: str, key: str, make_plan: Callable[[], Plan], only_plan: bool, known: bool) -> None:
    """Tell the key where it is not known already, and then have it be one: whoever is killed in between has seen it."""

    def planned() -> Plan:
        made = make_plan()
        if not only_plan and not known:
            session.screen.result({"name": name, "key": key}, f"The API key {name}, which is not shown again:\n{key}")
            # Whoever has read it counts on it: `| head -1`.
            session.goes_on_unread = True
        return made

    session.plan_and_run(f"keys {name}", planned, only_plan=only_plan)
