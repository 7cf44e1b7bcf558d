"""What a container says of itself: its labels, and record.json beside its files for what has changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import part
from orchestrator.core.launch import Launch
from orchestrator.drivers import files

HOME, INSTANCE, LABEL, LAUNCH, PORT = "orch.home", "orch.instance", "orch.label", "orch.launch", "orch.port"
RECORD = "record.json"


@dataclass(frozen=True)
class Record:
    """Launch and label as they are now; `problem` says what cannot be read, and then the rest is empty."""

    launch: Launch
    label: str
    port: int | None
    problem: str = ""


def labels(home: Path, name: str, launch: Launch, label: str, port: int) -> dict[str, str]:
    """A new container's labels."""
    text = json.dumps(part.plain(launch), separators=(",", ":"), ensure_ascii=False)
    return {HOME: str(home), INSTANCE: name, LABEL: label, LAUNCH: text, PORT: str(port)}


def write(directory: Path, container: str, launch: Launch, label: str) -> None:
    """What is changed about a container (its ID) from now on."""
    document = {"container": container, "label": label, "launch": part.plain(launch)}
    files.write_atomic(directory / RECORD, json.dumps(document, indent=1).encode(), mode=0o600)


def forget(directory: Path) -> None:
    """Before a new container: nothing has changed about it."""
    (directory / RECORD).unlink(missing_ok=True)


def read(directory: Path, container: str, of_container: Mapping[str, str]) -> Record:
    """The labels, and what has changed since."""
    try:
        port = int(of_container[PORT])
        launch, label = part.read_json(Launch, of_container[LAUNCH]), of_container[LABEL]
        changed = files.read_json(directory / RECORD)
        if changed is None:
            return Record(launch, label, port)
        if not isinstance(changed, dict) or not isinstance(changed.get("label"), str):
            raise ValueError(f"{directory / RECORD}: no record")
        if changed.get("container") == container:
            launch, label = part.read(Launch, changed["launch"]), changed["label"]
        return Record(launch, label, port)
    except KeyError as error:
        return Record(Launch(()), "", None, f"its label {error} is missing")
    except (ValueError, OSError) as error:
        return Record(Launch(()), "", None, str(error).splitlines()[0])
