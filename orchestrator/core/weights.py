"""Where weights come from."""

from __future__ import annotations

import re
from dataclasses import dataclass

REPOSITORY = r"[\w.-]+/[\w.-]+"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource:
    """A hub repository (`OWNER/NAME`) at a revision: a branch, a tag, or best a 40-digit commit."""

    repo: str
    revision: str

    @property
    def pinned(self) -> bool:
        """True when the revision is a commit, so that nobody needs to be asked what it means."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.revision}"


@dataclass(frozen=True)
class HubFile:
    """A file as the hub states it: size in bytes; sha256 for LFS/xet files, else the git blob id (SHA-1)."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class HubSnapshot:
    """A source resolved to a commit, with the files that orch would fetch: safetensors, tokenizer, config."""

    source: HubSource
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class WeightsFacts:
    """Weights as this machine knows them before any work.

    `source` names their content (`hub:REPO@COMMIT` or `dir:SHA256`), `key` their entry in the store (for a local
    directory: none is made), `path` where they are or will be, `fetch` what to download for it (None: a local
    directory). `size` in bytes and `kv_token_bytes` (KV cache per token at 16 bit) are 0 until the files are there.
    """

    source: str
    key: str
    path: str
    fetch: HubSource | None = None
    size: int = 0
    kv_token_bytes: int = 0
