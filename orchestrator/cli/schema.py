"""The verb that prints JSON schemas: schema."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import app, session_of


@app.command()
def schema(
    verb: Annotated[
        list[str] | None, typer.Argument(metavar="[VERB]...", help="Such as: status; or of two words: lora add.")
    ] = None,
) -> None:
    """Print the JSON Schema of what a verb prints with --json: of its document, or of each of its lines."""
    with session_of(False) as session:
        import json

        from orchestrator.app.schemas import schema_names, schema_of

        if verb:
            text = json.dumps(schema_of(" ".join(verb)), indent=2)
            session.screen.say(text)
        else:
            rows = [{"verb": name, "schema": urn} for name, urn in schema_names().items()]
            session.screen.table("Schemas", ("verb", "schema"), rows)
