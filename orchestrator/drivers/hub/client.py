"""The Hugging Face hub: what a revision means, and its files on disk, verified.

The hub's own client answers what is where (revisions, names, errors, redirects, tokens). The bytes are read here,
because its download path, as of huggingface_hub 2.4, cannot do what orch promises: `hf_hub_download` writes to a file
with a random name that no later call finds again, deletes it on any error, and hands over 10 MiB at a time, so that a
killed download starts anew and an interrupt waits for the network; hf-xet writes to that same file. What lies in xet
storage comes here over plain HTTP, which the hub serves for every file up to 50 GB.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.core.artifact import FileEntry
from orchestrator.core.progress import Progress
from orchestrator.core.weights import HubFile, HubSnapshot, HubSource
from orchestrator.drivers.hub.choice import named, weights_of
from orchestrator.drivers.hub.download import Meter, Stream, Sums, network_errors
from orchestrator.errors import HostError, OrchError, SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# Where incomplete files lie inside the directory, named by their hash: bytes of another commit are never continued.
PARTIAL: Final = ".partial"
PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TRANSIENT: Final = (408, 429, 500, 502, 503, 504)
FULL: Final = "free some disk space and run it again: it goes on where it stopped"
NETWORK: Final = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE; the download goes on where it stopped"


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


class _UnlikeError(Exception):
    """Bytes that are not what the hub states; says what was expected and what came."""


class Hub:
    """The hub at `endpoint` (default: HF_ENDPOINT, else the public one).

    `token` defaults to HF_TOKEN or the login that the hub's client keeps. Offline, every request is a HostError.
    `pauses`: seconds before each new try after a failure of the network or the hub; when they are used up, it is final.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: Secret | None = None,
        offline: bool = False,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token = token
        self._offline = offline
        self._pauses = pauses

    def __repr__(self) -> str:
        return f"Hub({self._endpoint or 'default endpoint'})"

    def snapshot(self, source: HubSource, timeout: float, names: Sequence[str] | None = None) -> HubSnapshot:
        """Asks what the revision is now and which of its files orch would fetch, with sizes and hashes.

        `names`: exactly these files (`Qwen3-8B-Q6_K.gguf`, `Q6_K/model.gguf`); None: safetensors with tokenizer and
        config. `timeout` (seconds) bounds each wait for the network. Raises SourceError (no such repository, revision
        or file, no safetensors, another commit than the pinned one) and HostError (unreachable, access refused).
        """
        self._ready(source)
        from huggingface_hub.errors import HFValidationError

        try:
            info = self._info(source, timeout)
        except HFValidationError as error:
            what = f"{source.repo} is not a repository's name."
            raise SourceError(what, "write OWNER/NAME", _detail(error)) from error
        except network_errors() as error:
            raise self._translated(error, source) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "HF_ENDPOINT must be a hub; a proxy may have answered instead"
            raise HostError(f"{self._where()} did not answer like a hub.", hint, _detail(error)) from error
        resolved = HubSource(source.repo, info.sha or "")
        if not resolved.pinned or (source.pinned and resolved != source):
            raise SourceError(f"The hub answers {source} with commit {info.sha}.", "check the revision and HF_ENDPOINT")
        siblings = info.siblings or []
        files = weights_of(source, siblings) if names is None else named(source, siblings, names)
        return HubSnapshot(resolved, files)

    def _info(self, source: HubSource, timeout: float) -> ModelInfo:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(endpoint=self._endpoint, token=self._auth(), library_name="orch")
        for pause in self._pauses[:2]:
            try:
                return api.model_info(source.repo, revision=source.revision, timeout=timeout, files_metadata=True)
            except HfHubHTTPError as error:
                if not _transient(error):
                    raise
                time.sleep(pause)
        return api.model_info(source.repo, revision=source.revision, timeout=timeout, files_metadata=True)

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        """Brings every file of the snapshot into `into`, which holds nothing else of the hub's afterwards.

        Files that are there and right stay; an incomplete one is continued, also after kill -9. Progress counts bytes
        over all files and may raise Interrupted, which leaves what came so far. Raises SourceError (bytes that twice
        were not what the hub states) and HostError (unreachable, access refused, disk full).
        """
        meter = Meter(progress, snapshot.source.repo, snapshot.size)
        try:
            (into / PARTIAL).mkdir(parents=True, exist_ok=True)
            _refuse_full(into, snapshot.size)
            entries = tuple(self._file(snapshot.source, file, into, meter) for file in snapshot.files)
            shutil.rmtree(into / PARTIAL)
            _sync(into)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = f"{into} cannot be written: {error.strerror}."
            raise HostError(what, FULL if full else "check the directory", _detail(error)) from error
        meter.report()
        return entries

    def _file(self, source: HubSource, file: HubFile, into: Path, meter: Meter) -> FileEntry:
        target = into / file.path
        base = meter.done
        if target.is_file() and not target.is_symlink() and target.stat().st_size == file.size:
            sums = Sums(file)
            sums.read(target, file.size, meter)
            if sums.problem() is None:
                return sums.entry()
            meter.done = base
        part = into / PARTIAL / (file.sha256 or file.blob_id or "")
        problem = ""
        for _ in range(2):
            try:
                sums = self._download(source, file, part, meter)
                if (unlike := sums.problem()) is not None:
                    raise _UnlikeError(unlike)
            except _UnlikeError as error:
                problem = str(error)
                part.unlink(missing_ok=True)
                meter.done = base
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            return sums.entry()
        hint = "the hub or a proxy before it serves other bytes than it states; try again later or pin another commit"
        raise SourceError(f"{file.path} of {source} is not what the hub states: {problem}.", hint)

    def _download(self, source: HubSource, file: HubFile, part: Path, meter: Meter) -> Sums:
        """Continues `part` until it has the stated size, through as many failures in a row as there are pauses."""
        failures, sums = 0, Sums(file)
        with part.open("ab") as out:
            if out.tell() > file.size:
                out.seek(out.truncate(0))
            sums.read(part, out.tell(), meter)
            while sums.size < file.size:
                before = sums.size
                try:
                    self._stream(source, file, out, sums, meter)
                except network_errors() as error:
                    failures = 0 if sums.size > before else failures
                    if failures == len(self._pauses) or not _transient(error):
                        raise self._translated(error, source, file.path) from error
                    meter.pause(self._pauses[failures])
                    failures += 1
            out.flush()
            os.fsync(out.fileno())
        return sums

    def _stream(self, source: HubSource, file: HubFile, out: BufferedWriter, sums: Sums, meter: Meter) -> None:
        """One GET of what is missing, appended to `out`."""
        self._ready(source)
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(source.repo, file.path, revision=source.revision, endpoint=self._endpoint)
        headers = build_hf_headers(token=self._auth(), library_name="orch") | {"Accept-Encoding": "identity"}
        if sums.size:
            headers["Range"] = f"bytes={sums.size}-"
        with Stream(url, headers, meter.report) as stream:
            start, total = stream.extent()
            if total is not None and total != file.size:
                raise _UnlikeError(f"expected {file.size} bytes, got {total}")
            if start == 0 and sums.size:
                out.truncate(0)
                meter.add(-sums.size)
                sums.restart()
            if start != sums.size:
                raise _UnlikeError(f"expected bytes from {sums.size}, got them from {start}")
            while chunk := stream.chunk():
                if sums.size + len(chunk) > file.size:
                    raise _UnlikeError(f"expected {file.size} bytes, got more")
                out.write(chunk)
                sums.add(chunk)
                meter.add(len(chunk))
        if sums.size < file.size:
            raise _UnlikeError(f"expected {file.size} bytes, got {sums.size}")

    def _auth(self) -> str | bool | None:
        return self._token.reveal() if self._token else None

    def _where(self) -> str:
        from huggingface_hub import constants

        return self._endpoint or constants.ENDPOINT

    def _ready(self, source: HubSource) -> None:
        """Before every request: orch is online, the client is quiet, the endpoint is an address."""
        if self._offline:
            raise HostError(f"{source} is not here, and orch is offline.", "go online once to download it")
        _quiet()
        try:
            address = urlsplit(self._where())
            sound = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise HostError(f"{self._where()} is not the address of a hub.", "write HF_ENDPOINT as https://HOST")

    def _translated(self, error: Exception, source: HubSource, path: str = "") -> OrchError:
        """What the client's error means to the user; a signed URL's secrets do not get into `detail`."""
        from huggingface_hub import errors

        what, detail = f"{path} of {source}" if path else str(source), _detail(error)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return HostError(f"{what} is not here, and HF_HUB_OFFLINE is set.", "unset it to download", detail)
        if not isinstance(error, errors.HfHubHTTPError):
            return HostError(f"{self._where()} cannot be reached.", NETWORK, detail)
        status = error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            hint = f"accept its licence at {self._where()}/{source.repo}, then set HF_TOKEN to a token of that account"
            return HostError(f"Access to {source.repo} has to be granted first.", hint, detail)
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = "check the spelling (OWNER/NAME); if it is private, set HF_TOKEN"
            return SourceError(f"The hub has no repository {source.repo}, or does not show it.", hint, detail)
        if status in (401, 403):
            return HostError(f"The hub refuses {what} ({status}).", "set HF_TOKEN to a token that may read it", detail)
        if isinstance(error, errors.RevisionNotFoundError):
            hint = "name a branch, a tag or a commit of it"
            return SourceError(f"{source.repo} has no revision {source.revision}.", hint, detail)
        if status in (404, 410):
            return SourceError(f"The hub does not have {what}.", "check the repository's files", detail)
        return HostError(
            f"The hub failed at {what} ({status}).", "try again later: it goes on where it stopped", detail
        )


def _quiet() -> None:
    """Makes the hub's client quiet: no telemetry (which would ask the hub for more), no warnings on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    hub_logging.set_verbosity(logging.CRITICAL)


def _transient(error: Exception) -> bool:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    return not isinstance(error, errors.OfflineModeIsEnabled)


def _detail(error: Exception) -> str:
    """The error's text without the signatures of signed addresses and without a token that a header was refused for."""
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", f"{type(error).__name__}: {error}")
    return re.sub(r"Bearer .*", "Bearer ...", text)


def _refuse_full(directory: Path, size: int) -> None:
    """Says before the first byte that `size` bytes, less what lies here already, will not fit."""
    needed = size - sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(directory).free
    if needed > free:
        what = f"{directory} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are still to come."
        raise HostError(what, FULL)


def _sync(directory: Path) -> None:
    """Makes the names in a directory as durable as the files."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
