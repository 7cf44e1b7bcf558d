"""What the hub's client and the network raise, in words for people; which of it passes, and when."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

from orchestrator.core.weights import HubSource
from orchestrator.errors import HostError, OrchError, SourceError

TRANSIENT: Final = (408, 425, 429)  # and what begins with 5
# Whoever asks for more is asked again after this.
LONGEST_WAIT_S: Final = 300.0
NETWORK: Final = (
    "check the network, HF_ENDPOINT, HF_HUB_OFFLINE and the proxy (HTTPS_PROXY, NO_PROXY); "
    "the download goes on where it stopped"
)


def transient(error: Exception) -> bool:
    """Whether it may pass by itself."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in TRANSIENT or error.response.status_code >= 500
    return not isinstance(error, errors.OfflineModeIsEnabled)


def retry_after(error: Exception) -> float | None:
    """Seconds that the answer asks to wait, LONGEST_WAIT_S at most; None when it does not say.

    By Retry-After, in seconds or as a date (RFC 9110, 10.2.3), or by the hub's own `RateLimit: "api";r=0;t=SECONDS`.
    """
    from huggingface_hub import errors

    if not isinstance(error, errors.HfHubHTTPError):
        return None
    said, limit = (error.response.headers.get(name, "").strip() for name in ("retry-after", "ratelimit"))
    if said.isdecimal():
        seconds = float(said)
    elif found := re.search(r";\s*r=0\s*;\s*t=(\d+)", limit):
        seconds = float(found[1])
    else:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, min(seconds, LONGEST_WAIT_S))


def refused(error: Exception) -> str:
    """The error in a few words, for whoever watches."""
    from huggingface_hub import errors

    if not isinstance(error, errors.HfHubHTTPError):
        return "the network failed"
    status = error.response.status_code
    return f"the hub asks to wait ({status})" if status == 429 else f"the hub failed ({status})"


def translated(error: Exception, source: HubSource, where: str, path: str = "") -> OrchError:
    """What an error means to the user, at the hub `where`, as shown; a signed address's secrets are not in `detail`."""
    from huggingface_hub import errors

    what, details = f"{path} of {source}" if path else str(source), detail(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HostError(f"{what} is not here, and HF_HUB_OFFLINE is set.", "unset it to download", details)
    if not isinstance(error, errors.HfHubHTTPError):
        return HostError(f"{where} cannot be reached.", NETWORK, details)
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        hint = f"accept its licence at {where}/{source.repo}, then set HF_TOKEN to a token of that account"
        return HostError(f"Access to {source.repo} has to be granted first.", hint, details)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check the spelling (OWNER/NAME); if it is private, set HF_TOKEN"
        return SourceError(f"The hub has no repository {source.repo}, or does not show it.", hint, details)
    if status in (401, 403):
        return HostError(f"The hub refuses {what} ({status}).", "set HF_TOKEN to a token that may read it", details)
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "name a branch, a tag or a commit of it"
        return SourceError(f"{source.repo} has no revision {source.revision}.", hint, details)
    if status in (404, 410):
        return SourceError(f"The hub does not have {what}.", "check the repository's files", details)
    wait = retry_after(error)
    when = f"try again later, in {wait:.0f} s" if wait else "try again later"
    more = "; a token (HF_TOKEN) may ask more often" if status == 429 else ""
    return HostError(f"The hub failed at {what} ({status}).", f"{when}: it goes on where it stopped{more}", details)


def shown(address: str) -> str:
    """An address as people may see it: without its user and password, also where a "/" or "@" in them spoils it."""
    return re.sub(r"^(\w+://)?.*@", r"\1", address)


def detail(error: Exception) -> str:
    """The error's text without what is secret in it: signatures of addresses, a proxy's password, a token that a header
    was refused for."""
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", str(error) or type(error).__name__)
    return re.sub(r"Bearer .*", "Bearer ...", re.sub(r"://[^\s/]+@", "://...@", text))
