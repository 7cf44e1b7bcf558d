"""One GET, read by a thread of its own into a lane that many of them share."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any, Final

TICK: Final = 0.2
# Of at most 64 KiB each, as the network hands them over: what is in memory at once, over all streams.
LANE_ITEMS: Final = 64

# What threads hand over: who, and what. The one that takes it out is the only one that writes files.
Lane = Queue[tuple[Any, Any]]


def hand_over(lane: Lane, who: object, what: object, left: threading.Event) -> bool:
    """False when nobody waits for it any more."""
    while not left.is_set():
        try:
            lane.put((who, what), timeout=TICK)
        except Full:
            continue
        return True
    return False


@dataclass(frozen=True)
class Head:
    """An answer before its body: where it came from after redirects, and its headers by lower-case name."""

    status: int
    url: str
    headers: dict[str, str]

    def extent(self) -> tuple[int, int | None]:
        """Where the body begins in the file, and the file's size as far as the answer tells."""
        if found := re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("content-range", "")):
            return int(found[1] or 0), None if found[2] == "*" else int(found[2])
        length = self.headers.get("content-length") if "content-encoding" not in self.headers else None
        return 0, int(length) if length else None


class Stream:
    """Hands over the Head, then bytes, then None; or the exception that ended it.

    A read from a stalled connection ends after ten seconds at the earliest, and nothing wakes it before. So whoever
    does not want it any more leaves it: the thread ends with its next bytes or its timeout; it is a daemon and touches
    no file.
    """

    def __init__(self, url: str, headers: dict[str, str], lane: Lane) -> None:
        self.url, self._headers, self._lane = url, headers, lane
        self._left = threading.Event()
        threading.Thread(target=self._read, name="hub-stream", daemon=True).start()

    def leave(self) -> None:
        """Nothing is wanted of it any more."""
        self._left.set()

    def _read(self) -> None:
        try:
            self._ask()
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes it out of the lane
            hand_over(self._lane, self, error, self._left)

    def _ask(self) -> None:
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", self.url, headers=self._headers, timeout=timeout) as response:
            if response.is_error and response.status_code != 416:
                response.read()
                try:
                    hf_raise_for_status(response)
                except (ValueError, AttributeError, TypeError) as error:
                    # The client (2.4) falls over bodies that are no text, or other JSON than an object.
                    raise errors.HfHubHTTPError(f"HTTP status {response.status_code}", response=response) from error
            headers = {name.lower(): value for name, value in response.headers.items()}
            wanted = hand_over(self._lane, self, Head(response.status_code, str(response.url), headers), self._left)
            for chunk in response.iter_bytes() if wanted else ():
                if chunk and not hand_over(self._lane, self, chunk, self._left):
                    return
        hand_over(self._lane, self, None, self._left)


def network_errors() -> tuple[type[Exception], ...]:
    """What the client raises for the network and for HTTP, whichever HTTP library it was built on."""
    from huggingface_hub import errors

    return (errors.HTTPError, errors.OfflineModeIsEnabled)  # type: ignore[attr-defined]
