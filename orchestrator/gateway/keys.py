"""The API keys of which clients must show one: read from a file, kept as digests, replaced while requests run."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from aiohttp import hdrs

from orchestrator.core.text import decoded
from orchestrator.errors import HostError

API_KEY = "X-Api-Key"
# Where a client shows its key, in lower case: meant for the gateway, so no engine gets to see them.
CREDENTIALS = frozenset({hdrs.AUTHORIZATION.lower(), API_KEY.lower()})

_LARGEST_FILE = 64 << 10
_FORM = "--key-file needs a file with one API key per line."


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _opened(path: str, flags: int) -> int:
    # Opening a pipe waits for a writer without it, before it can be seen that it is one.
    return os.open(path, flags | os.O_NONBLOCK)


def _content(path: Path) -> bytes:
    """The bytes of a private file; raises HostError. What is checked is what is read: one open file."""
    try:
        with io.FileIO(os.fspath(path), opener=_opened) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise HostError(f"The key file {path} is not a regular file.", hint=_FORM)
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise HostError(
                    f"The key file {path} is open to other users (mode {mode:04o}).", hint=f"Run `chmod 600 {path}`."
                )
            if found.st_size > _LARGEST_FILE:
                raise HostError(f"The key file {path} is larger than {_LARGEST_FILE >> 10} KiB.", hint=_FORM)
            return file.readall()
    except OSError as error:
        raise HostError(f"Cannot read the key file {path}: {error.strerror or error}.", hint=_FORM) from error


def _lines(path: Path) -> list[bytes]:
    try:
        return decoded(_content(path)).encode().splitlines()
    except ValueError as error:
        raise HostError(f"The key file {path} cannot be read: it is no UTF-8 text.", hint=_FORM) from error


def read_keys(path: Path) -> frozenset[bytes]:
    """The SHA-256 digests of the keys in `path`, a key per line; blank lines and lines that begin with # are none.

    Raises HostError when the file is not a regular one that only its owner can open, or holds no key, or something
    that cannot be sent as one. No message repeats anything of the content.
    """
    digests = set()
    for number, line in enumerate(_lines(path), start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if not all(0x21 <= byte <= 0x7E for byte in key):
            raise HostError(
                f"Line {number} of the key file {path} is not an API key.",
                hint="A key is ASCII letters, digits and signs without spaces; a comment is a line that begins with #.",
            )
        digests.add(_digest(key))
    if not digests:
        raise HostError(f"The key file {path} holds no API key.", hint=_FORM)
    return frozenset(digests)


class Keys:
    """The keys in force."""

    def __init__(self, path: Path) -> None:
        """Read `path`; raises HostError."""
        self.path = path
        self._digests = read_keys(path)

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> None:
        """Read the file again; raises HostError, and then the keys of before stay in force."""
        self._digests = read_keys(self.path)

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers shows one of the keys, as a bearer token or in X-Api-Key."""
        scheme, _, token = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        shown = (token if scheme.lower() == "bearer" else "", headers.get(API_KEY, ""))
        return any(self._is_one(key.strip()) for key in shown if key)

    def _is_one(self, key: str) -> bool:
        # surrogateescape: a header may hold any bytes.
        digest = _digest(key.encode(errors="surrogateescape"))
        found = False
        # With all of them, so that the time taken says nothing about which one it was.
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found
