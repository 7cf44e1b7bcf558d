"""The API keys of which clients must show one: read from a file of digests, replaced while requests run."""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
import os
import secrets
import stat
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import hdrs

from orchestrator.core.keys import KeyRing, digest_of, moment, utc
from orchestrator.core.text import decoded
from orchestrator.drivers import files
from orchestrator.errors import HostError

log = logging.getLogger("orchestrator.gateway")

API_KEY = "X-Api-Key"
# Where a client shows its key, in lower case: meant for the gateway, so no engine gets to see them.
CREDENTIALS = frozenset({hdrs.AUTHORIZATION.lower(), API_KEY.lower()})
# How often it is written down which keys are in use, at most.
USE_EVERY_S = 60.0
# How long a credential for orch's own questions is good.
CREDENTIAL_S = 600.0

_LARGEST_FILE = 1 << 20
_HINT = "orch keys add NAME writes it; it is needed for a gateway that others can reach."


def _opened(path: str, flags: int) -> int:
    # Opening a pipe waits for a writer without it, before it can be seen that it is one.
    return os.open(path, flags | os.O_NONBLOCK)


def _content(path: Path) -> bytes:
    """The bytes of a private file; raises HostError. What is checked is what is read: one open file."""
    try:
        with io.FileIO(os.fspath(path), opener=_opened) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise HostError(f"The key file {path} is not a regular file.", hint=_HINT)
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise HostError(
                    f"The key file {path} is open to other users (mode {mode:04o}).", hint=f"Run `chmod 600 {path}`."
                )
            if found.st_size > _LARGEST_FILE:
                raise HostError(f"The key file {path} is larger than {_LARGEST_FILE >> 10} KiB.", hint=_HINT)
            return file.readall()
    except OSError as error:
        raise HostError(f"Cannot read the key file {path}: {error.strerror or error}.", hint=_HINT) from error


def read_keys(path: Path) -> KeyRing:
    """The keys in `path`, as orch writes them by now or as it did. Raises HostError when it is not a regular file that
    only its owner can open, or not that. No message repeats anything of the content."""
    content = _content(path)
    try:
        text = decoded(content)
        # A gateway that an earlier version has started is started again by this one as it was: with a file of keys.
        return KeyRing.from_text(text) if text[:1] in ("{", "[") else KeyRing.of_lines(text, datetime.now(UTC))
    except ValueError as error:
        raise HostError(f"The key file {path} cannot be read: {error}.", hint=_HINT) from error


def _shown(headers: Mapping[str, str]) -> list[str]:
    """What may be a key."""
    scheme, _, token = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    shown = (token if scheme.lower() == "bearer" else "", headers.get(API_KEY, ""))
    return [key.strip() for key in shown if key]


class Keys:
    """The keys in force, those of `path`; where there is no such file, none. `needed`: others than this machine can
    reach the gateway, so that it never serves without. `use` is the file in which it stands when each was used last."""

    def __init__(self, path: Path | None, use: Path, needed: bool) -> None:
        """Read the file; raises HostError."""
        self._path = path
        self._use = use
        self._needed = needed
        self._ring = KeyRing()
        self._good: list[tuple[str, float | None]] = []
        self._open_until: float | None = None
        self._issued: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._changed = False
        if path is not None and (needed or path.exists()):
            self.reload()
        elif needed:
            raise HostError("Others can reach the gateway, and they need no API key.", hint=_HINT)

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def mark(self) -> str:
        """Of what is in force; see KeyRing."""
        return self._ring.mark

    @property
    def demanded(self) -> bool:
        """Whether clients have to show one now."""
        if self._needed:
            return True
        return bool(self._ring.keys) and (self._open_until is None or time.time() >= self._open_until)

    def reload(self) -> None:
        """Read the file again; raises HostError, and then the keys of before stay in force."""
        if self._path is None:
            return
        ring = read_keys(self._path)
        if self._needed and not ring.keys:
            raise HostError(f"The key file {self._path} holds no API key, and others can reach the gateway.", _HINT)
        self._ring = ring
        self._good = [
            (digest, until.timestamp() if until is not None else None)
            for key in ring.keys
            for digest, until in key.good
        ]
        self._open_until = moment(ring.open_until).timestamp() if ring.open_until else None
        log.info("%s was read; API keys: %d.", self._path, len(ring))

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers shows one of the keys, as a bearer token or in X-Api-Key."""
        return any(map(self._is_one, _shown(headers)))

    def shows_issued(self, headers: Mapping[str, str]) -> bool:
        """Whether such a request shows a credential of `issue`: it is orch's own."""
        return bool(self._issued) and any(self._is_issued(digest_of(key)) for key in _shown(headers))

    def name_of(self, headers: Mapping[str, str]) -> str:
        """The name of the key that such a request shows, "" where it is none, or orch's own."""
        return next((name for key in _shown(headers) if (name := self._ring.owner_of(key) or "")), "")

    def issue(self) -> str:
        """A credential that is good for CREDENTIAL_S seconds, for whoever can reach the admin socket."""
        now = time.monotonic()
        self._issued = {digest: until for digest, until in self._issued.items() if until > now}
        credential = secrets.token_urlsafe(32)
        self._issued[digest_of(credential)] = now + CREDENTIAL_S
        return credential

    def _is_one(self, key: str) -> bool:
        shown, now = digest_of(key), time.time()
        found = ""
        # With all of them, so that the time taken says nothing about which one it was.
        for digest, until in self._good:
            if hmac.compare_digest(digest, shown) and (until is None or now < until):
                found = digest
        if found:
            self._used[found] = now
            self._changed = True
            return True
        return self._is_issued(shown)

    def _is_issued(self, shown: str) -> bool:
        issued, now = False, time.monotonic()
        for digest, until in self._issued.items():
            issued |= hmac.compare_digest(digest, shown) and now < until
        return issued

    @property
    def used(self) -> Mapping[str, str]:
        """When each key was used last since this gateway started, by its digest."""
        return {digest: utc(datetime.fromtimestamp(at, UTC)) for digest, at in self._used.items()}

    async def keep_use(self) -> None:
        """Write down which keys are in use, once a minute at most, for ever."""
        while True:
            await asyncio.sleep(1.0)
            if self._changed:
                await asyncio.to_thread(self.write_use)
                await asyncio.sleep(USE_EVERY_S - 1.0)

    def write_use(self) -> None:
        """The same at once. A gateway that this one has replaced writes there too: the later time counts."""
        if not self._changed:
            return
        self._changed = False
        try:
            said = files.read_json(self._use)
        except (HostError, ValueError):
            said = None
        before = said if isinstance(said, dict) else {}
        used = self.used
        latest = {digest: max(str(before.get(digest, "")), used.get(digest, "")) for digest, _ in self._good}
        try:
            files.write_json(self._use, {digest: at for digest, at in latest.items() if at}, mode=0o600)
        except HostError as error:
            log.error("Which API keys are in use cannot be recorded: %s", error.message)
