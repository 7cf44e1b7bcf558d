"""The Hugging Face hub: what a revision means, and its files on disk, verified.

The hub's own client answers what is where (revisions, names, errors, redirects, tokens). The bytes are read here,
because its download path, as of huggingface_hub 2.4, cannot do what orch promises: `hf_hub_download` writes to a file
with a random name that no later call finds again, deletes it on any error, and hands over 10 MiB at a time, so that a
killed download starts anew and an interrupt waits for the network; hf-xet writes to that same file.

What lies in xet storage comes over plain HTTP too, which the hub serves for every file up to 50 GB, in ranges. hf-xet
1.8 can stream a range of a file, so it could be resumed as well. It is not used because it would be a second way for
the same bytes, with retries, buffers and proxies of its own, for the public hub only (mirrors speak plain HTTP); the
line is filled by several connections either way, and what xet saves by not sending blocks twice is little for weights.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.core.artifact import FileEntry
from orchestrator.core.progress import Progress, silent
from orchestrator.core.progress_view import amount
from orchestrator.core.weights import HubFile, HubSnapshot, HubSource
from orchestrator.drivers.cancellable import cancellable
from orchestrator.drivers.hub.choice import named, weights_of
from orchestrator.drivers.hub.here import Here
from orchestrator.drivers.hub.http_errors import detail, retry_after, shown, transient, translated
from orchestrator.drivers.hub.meter import Meter
from orchestrator.drivers.hub.part import PIECE
from orchestrator.drivers.hub.stream import network_errors
from orchestrator.drivers.hub.token import Secret, read_token
from orchestrator.drivers.hub.transfer import HubConnection, Transfer
from orchestrator.errors import HostError, OrchError, SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
# Before the first file nobody sees what is waited for: a longer wait is told instead.
SHORT_WAIT_S: Final = 5.0
PARALLEL: Final = 4
FULL: Final = "free some disk space and run it again: it goes on where it stopped"


class Hub:
    """The hub at `endpoint` (default: HF_ENDPOINT, else the public one).

    The token is `token`, else what `token_file` holds, else HF_TOKEN, the file at HF_TOKEN_PATH or the login that the
    hub's client keeps. Offline, every request is a HostError. `pauses`: seconds before each new try after a failure of
    the network or the hub, or an answer of something else; when they are used up, it is final. `parallel`: so many
    requests at once, of files and of `piece` bytes of one file (of a file under 1 GB: smaller ones).
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: Secret | None = None,
        offline: bool = False,
        pauses: Sequence[float] = PAUSES,
        token_file: Path | None = None,
        parallel: int = PARALLEL,
        piece: int = PIECE,
    ) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token = token
        self._token_file = token_file
        self._offline = offline
        self._pauses = pauses
        self._parallel = parallel
        self._piece = piece

    def __repr__(self) -> str:
        return f"Hub({shown(self._endpoint or 'default endpoint')})"

    def snapshot(
        self, source: HubSource, timeout: float, names: Sequence[str] | None = None, progress: Progress = silent
    ) -> HubSnapshot:
        """Asks what the revision is now and which of its files orch would fetch, with sizes and hashes.

        `names`: exactly these files (`Qwen3-8B-Q6_K.gguf`, `Q6_K/model.gguf`); None: safetensors with tokenizer and
        config. `timeout` (seconds) bounds each wait for the network; `progress` is called meanwhile, and what it raises
        ends the waiting at once. Raises SourceError (no such repository, revision
        or file, no safetensors, another commit than the pinned one) and HostError (unreachable, access refused).
        """
        self._ready(source)
        from huggingface_hub.errors import HFValidationError

        try:
            info = cancellable(
                lambda: self._info(source, timeout), lambda: progress(f"asking the hub for {source.repo}", 0, 0), "hub"
            )
        except HFValidationError as error:
            what = f"{source.repo} is not a repository's name."
            raise SourceError(what, "write OWNER/NAME", detail(error)) from error
        except network_errors() as error:
            raise translated(error, source, shown(self._where())) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "HF_ENDPOINT must be a hub; a proxy may have answered instead"
            raise HostError(f"{shown(self._where())} did not answer like a hub.", hint, detail(error)) from error
        resolved = HubSource(source.repo, info.sha or "")
        if not resolved.pinned or (source.pinned and resolved != source):
            raise SourceError(f"The hub answers {source} with commit {info.sha}.", "check the revision and HF_ENDPOINT")
        siblings = info.siblings or []
        files = weights_of(source, siblings) if names is None else named(source, siblings, names)
        return HubSnapshot(resolved, files)

    def _info(self, source: HubSource, timeout: float) -> ModelInfo:
        """What the hub knows of a revision; asked again where that may help soon."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(endpoint=self._endpoint, token=self._auth(), library_name="orch")
        ask = partial(api.model_info, source.repo, revision=source.revision, timeout=timeout, files_metadata=True)
        for pause in self._pauses[:2]:
            try:
                return ask()
            except HfHubHTTPError as error:
                wait = max(pause, retry_after(error) or 0.0)
                if not transient(error) or wait > SHORT_WAIT_S:
                    raise
                time.sleep(wait)
        return ask()

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        """Brings every file of the snapshot into `into`, which holds nothing else of the hub's afterwards.

        Files that are there and right stay; an incomplete one is continued, also after kill -9. Progress counts bytes
        over all files, tells of each that is under way, and may raise Interrupted, which leaves what came so far.
        Raises SourceError (bytes that were again not what the hub states) and HostError (unreachable, access refused,
        disk full).
        """
        source, meter = snapshot.source, Meter(progress, snapshot.source.repo, snapshot.size)
        try:
            here = Here(into, snapshot.files, self._piece)
            found = here.check(progress, source.repo)
            missing = here.missing(found)
            _refuse_full(into, missing)
            meter.done = snapshot.size - missing
            to_fetch = [file for file in snapshot.files if file.path not in found]
            transfer = Transfer(to_fetch, here, self._connection(source), meter)
            entries = found | (transfer.run() if to_fetch else {})
            here.settle()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = f"{into} cannot be written: {error.strerror}."
            raise HostError(what, FULL if full else "check the directory", detail(error)) from error
        meter.report()
        return tuple(entries[file.path] for file in snapshot.files)

    def _connection(self, source: HubSource) -> HubConnection:
        hint = "the hub or a proxy before it serves other bytes than it states; try again later or pin another commit"

        def unlike(problem: str, file: HubFile) -> OrchError:
            return SourceError(f"{file.path} of {source} is not what the hub states: {problem}.", hint)

        def explain(error: Exception, file: HubFile) -> OrchError:
            return translated(error, source, shown(self._where()), file.path)

        return HubConnection(partial(self._request, source), explain, unlike, self._pauses, self._parallel)

    def _request(
        self, source: HubSource, file: HubFile, begin: int, end: int | None, direct: str
    ) -> tuple[str, dict[str, str]]:
        """Address and headers for bytes of a file. Where the hub has redirected to before, no token is shown."""
        self._ready(source)
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = direct or hf_hub_url(source.repo, file.path, revision=source.revision, endpoint=self._endpoint)
        headers = build_hf_headers(token=False if direct else self._auth(), library_name="orch")
        headers["Accept-Encoding"] = "identity"
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        return url, headers

    def _auth(self) -> str | None:
        if self._token is not None:
            return self._token.reveal()
        return read_token(self._token_file).reveal() if self._token_file is not None else None

    def _where(self) -> str:
        from huggingface_hub import constants

        return self._endpoint or constants.ENDPOINT

    def _ready(self, source: HubSource) -> None:
        """Before every request: orch is online, the client is quiet, endpoint and proxy are addresses."""
        if self._offline:
            raise HostError(f"{source} is not here, and orch is offline.", "go online once to download it")
        _quiet()
        try:
            address = urlsplit(self._where())
            sound = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise HostError(f"{shown(self._where())} is not the address of a hub.", "write HF_ENDPOINT as https://HOST")
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        try:
            get_session()
        except (ImportError, ValueError) as error:
            hint = "write HTTPS_PROXY, HTTP_PROXY and ALL_PROXY as http://HOST:PORT; orch does not speak SOCKS"
            raise HostError("The proxy that the environment names cannot be used.", hint, detail(error)) from error


def _quiet() -> None:
    """Makes the hub's client quiet: no telemetry (which would ask the hub for more), no warnings on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    hub_logging.set_verbosity(logging.CRITICAL)


def _refuse_full(directory: Path, size: int) -> None:
    """Says before the first byte that `size` bytes more will not fit."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise HostError(f"{directory} has {amount(free)} free, and {amount(size)} are still to come.", FULL)
