"""The API keys that the gateway asks its clients for: names, digests, until when. Never the keys themselves.

A KeyRing has a JSON form (`to_text`, `from_text`); `from_text` raises ValueError with the place of the fault. Times are
UTC, ISO 8601, to the second; "" is never.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from orchestrator.core import json_fields as fields

VERSION = 1
# In the directory of the gateways' admin sockets: when a key was used last, by its digest.
KEY_USE = "key-use.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(key: str) -> str:
    """What is kept of a key. Nobody can guess 256 random bits, so nothing slower than SHA-256 is needed."""
    # surrogateescape: what a client shows may hold any bytes.
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def is_key(text: str) -> bool:
    """Whether a text can be sent as a key: visible ASCII. One that begins with # would be a comment in a key file."""
    return re.fullmatch(r"[!-~]+", text) is not None and not text.startswith("#")


def is_name(text: str) -> bool:
    """Whether a key can be called so."""
    return _NAME.fullmatch(text) is not None


def utc(time: datetime) -> str:
    """A moment as it is kept."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Replaced:
    """What was another key's digest before, and is good until then."""

    digest: str
    until: str


@dataclass(frozen=True)
class ApiKey:
    """A key by its name; `digest` is its SHA-256 in hex. `before` are those that it has replaced: several, because a
    replacement that was killed has shown its key to nobody."""

    name: str
    digest: str
    created: str
    expires: str = ""
    before: tuple[Replaced, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> ApiKey:
        """Read what `asdict` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "key")
        listed = (fields.mapping(one, "before") for one in fields.listed(document.get("before", []), "before"))
        before = tuple(Replaced(_digest(one), fields.text(one, "until")) for one in listed)
        created, expires = fields.text(document, "created"), _text(document, "expires")
        for time in (created, *([expires] if expires else []), *(one.until for one in before)):
            moment(time)
        return cls(fields.text(document, "name"), _digest(document), created, expires, before)

    @property
    def good(self) -> Iterator[tuple[str, datetime | None]]:
        """The digests that a client's key may have, and until when (None: for good)."""
        expires = moment(self.expires) if self.expires else None
        yield self.digest, expires
        yield from ((one.digest, moment(one.until)) for one in self.before)


@dataclass(frozen=True)
class KeyRing:
    """All of them. Without any, no client needs one; until `open_until` none does either."""

    keys: tuple[ApiKey, ...] = ()
    open_until: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, name: str) -> ApiKey | None:
        """The key of that name."""
        return next((key for key in self.keys if key.name == name), None)

    def owner_of(self, key: str) -> str | None:
        """The name of the key that this one is, or was before it was replaced; good or not."""
        digest = digest_of(key)
        known = (
            (one.name, old) for one in self.keys for old in (one.digest, *(before.digest for before in one.before))
        )
        return next((name for name, old in known if old == digest), None)

    def added(self, key: ApiKey, open_until: str = "") -> KeyRing:
        """With one more; until then clients without any are let in."""
        return KeyRing((*self.keys, key), open_until)

    def removed(self, name: str) -> KeyRing:
        """Without that of a name."""
        left = tuple(key for key in self.keys if key.name != name)
        return KeyRing(left, self.open_until if left else "")

    def rotated(self, name: str, digest: str, now: datetime, until: str) -> KeyRing:
        """With another key by that name, good for as long as the one before was; those before it are good until then at
        most ("": no longer)."""

        def turned(key: ApiKey) -> ApiKey:
            if key.name != name:
                return key
            former = (Replaced(key.digest, key.expires or until), *key.before)
            good = (one for one in former if until and moment(one.until) > now)
            before = tuple(Replaced(one.digest, min(one.until, until)) for one in good)
            expires = utc(now + (moment(key.expires) - moment(key.created))) if key.expires else ""
            return ApiKey(name, digest, utc(now), expires, before)

        return replace(self, keys=tuple(map(turned, self.keys)))

    def is_good(self, now: datetime) -> bool:
        """Whether any of them lets somebody in."""
        return any(until is None or until > now for key in self.keys for _, until in key.good)

    @property
    def mark(self) -> str:
        """Equal for two that let the same in; "" for none at all. Not of the text: another version writes another."""
        good = sorted([key.name, digest, until and utc(until)] for key in self.keys for digest, until in key.good)
        of_it = json.dumps([self.open_until, good])
        return hashlib.sha256(of_it.encode()).hexdigest()[:16] if self.keys else ""

    def to_text(self) -> str:
        """As it is kept."""
        document = {"version": VERSION, "open_until": self.open_until, "keys": [asdict(key) for key in self.keys]}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def of_lines(cls, text: str, written: datetime) -> KeyRing:
        """What versions before wrote: the keys as they are, one a line, without names."""
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
        keys: dict[str, int] = {}
        for number, line in lines:
            if not line or line.startswith("#"):
                continue
            if not is_key(line):
                raise ValueError(f"line {number} is not an API key")
            keys.setdefault(line, number)
        if not keys:
            raise ValueError("it has no API key")
        return cls(tuple(ApiKey(f"key-{n}", digest_of(key), utc(written)) for n, key in enumerate(keys, start=1)))

    @classmethod
    def from_text(cls, text: str) -> KeyRing:
        """Read what `to_text` wrote; ValueError says what is wrong, and repeats nothing of it."""
        try:
            value: object = json.loads(text)
        except ValueError:
            raise ValueError("it is not JSON") from None
        document = fields.mapping(value, "the file")
        if document.get("version") != VERSION:
            raise ValueError(f"version {VERSION} is needed")
        keys = tuple(map(ApiKey.from_json, fields.listed(document.get("keys"), "keys")))
        if len({key.name for key in keys}) != len(keys):
            raise ValueError("a name occurs twice")
        open_until = _text(document, "open_until")
        if open_until:
            moment(open_until)
        return cls(keys, open_until)


NO_KEYS = KeyRing()


def _digest(document: Mapping[str, object]) -> str:
    digest = fields.text(document, "digest")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("digest: 64 hexadecimal digits are needed")
    return digest


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key}: a string is needed")
    return value


def moment(text: str) -> datetime:
    """What `utc` wrote; ValueError when it is none."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("a time is needed, such as 2026-01-31T12:00:00Z") from None
