"""Which of a repository's files orch fetches, and what the hub states of each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.core.weights import INDEX, SINGLE, WANTED, HubFile, HubSource, files_that_count
from orchestrator.errors import SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
NAMES_SHOWN: Final = 5


def weights_of(source: HubSource, siblings: Sequence[RepoSibling]) -> tuple[HubFile, ...]:
    """Safetensors, tokenizer and config, small ones first. Never pickles, never code, nothing below the top level."""
    names = [sibling.rfilename for sibling in siblings]
    if not any(name.endswith(".safetensors") and WANTED.fullmatch(name) for name in names):
        pickled = any(name.endswith(PICKLED) for name in names)
        what = "has its weights only as pickles, which can run code when they are read" if pickled else "has no weights"
        hint = (
            "take a repository with *.safetensors at its top level, or convert them yourself and use a local directory"
        )
        raise SourceError(f"{source} {what}.", hint)
    # Which shards an index names is known when it is here.
    counted = files_that_count(names, lambda: names) if {SINGLE, INDEX} & {*names} else filter(WANTED.fullmatch, names)
    wanted = {*counted}
    files = [_stated(source, sibling) for sibling in siblings if sibling.rfilename in wanted]
    return tuple(sorted(files, key=lambda file: (file.path.endswith(".safetensors"), file.path)))


def named(source: HubSource, siblings: Sequence[RepoSibling], names: Sequence[str]) -> tuple[HubFile, ...]:
    """Exactly these files, in this order. Raises SourceError when one is not there, with names like it."""
    there = {sibling.rfilename: sibling for sibling in siblings}
    for name in names:
        if name not in there or _unsafe(name):
            raise SourceError(f"{source} has no file {name}.", _names_like(name, list(there)))
    return tuple(_stated(source, there[name]) for name in dict.fromkeys(names))


def _unsafe(name: str) -> bool:
    """Whether it would lie outside of the directory that it is fetched into, or among what is unfinished there."""
    return any(part.startswith(".") or not part for part in name.split("/")) or "\\" in name


def _names_like(name: str, there: list[str]) -> str:
    """What may have been meant: the names closest to it, or at least those of its kind."""
    lower = {other.lower(): other for other in there}
    close = [lower[other] for other in difflib.get_close_matches(name.lower(), lower, NAMES_SHOWN)]
    kind = [other for other in there if other.endswith(f".{name.rpartition('.')[2]}")][:NAMES_SHOWN]
    if found := close or kind:
        return f"it has {', '.join(found)}"
    return f"it has no file like it; it has {', '.join(there[:NAMES_SHOWN]) or 'none at all'}"


def _stated(source: HubSource, sibling: RepoSibling) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if (
        not isinstance(size, int)
        or size < 0
        or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", sha256 or sibling.blob_id or "")
    ):
        raise SourceError(f"The hub states no size and hash for {sibling.rfilename} of {source}.", "ask for a commit")
    return HubFile(sibling.rfilename, size, sha256, sibling.blob_id)
