"""The token that the hub is shown, and nobody else."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.core.text import decoded
from orchestrator.errors import HostError


class Secret:
    """A token that does not print."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.strip()

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        """The token itself, for a request's header and nothing else."""
        return self._value


def read_token(path: Path) -> Secret:
    """The token in a file of one line. Raises HostError, which names the file and nothing that is in it."""
    try:
        text = decoded(path.read_bytes()).strip()
    except ValueError:
        text = ""  # no token has such characters
    except OSError as error:
        hint = "ORCH_HF_TOKEN_FILE names it; unset it to use HF_TOKEN or the hub's own login"
        raise HostError(f"The token file {path} cannot be read: {error.strerror}.", hint) from error
    if not re.fullmatch(r"[!-~]+", text):
        raise HostError(f"{path} holds no token.", "ORCH_HF_TOKEN_FILE: a file with the token in it, and nothing else")
    return Secret(text)
