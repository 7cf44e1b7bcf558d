"""What clients did with a gateway in the last days, as it writes it down: a line of JSON for each minute and public
name with traffic. Pure.

The lines of a day (UTC) are a file, so that old ones go by removing files, and two gateways, while one follows the
other, only ever append. What each of them saw of a minute is a line of its own: sums are of both. orch's own requests
are in none.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

from orchestrator.core import json_fields as fields
from orchestrator.core.live_load import LiveLoad

# The directory, beside the gateway's admin socket: a gateway's own state goes with its generation.
DIRECTORY = "traffic"
KEPT_DAYS = 8
MINUTE_S = 60
_VERSION = 1
_SUFFIX = ".jsonl"
# Times until a first token are counted in buckets: of the one with number n the upper bound is 1 ms * 2 ** (n / 4), so
# that each is 19% above the one before. The last has all that is longer than 17 minutes.
_FIRST_S = 0.001
_PER_DOUBLING = 4
_LAST = 80
# So many requests at a time are told exactly; above that it is the next multiple of an eighth of a power of two.
_EXACT = 32


def bucket_of(seconds: float) -> int:
    """The number of a time's bucket."""
    if seconds <= _FIRST_S:
        return 0
    return min(_LAST, math.ceil(_PER_DOUBLING * math.log2(seconds / _FIRST_S) - 1e-9))


def bound_of(number: int) -> float:
    """The upper bound of a bucket, in seconds."""
    return float(_FIRST_S * 2 ** (number / _PER_DOUBLING))


def level_of(requests: int) -> int:
    """As what so many requests at a time are told: never as less, and by at most an eighth as more."""
    if requests <= _EXACT:
        return requests
    step = 1 << (requests - 1).bit_length() - 4
    return -(-requests // step) * step


@dataclass(frozen=True)
class AtATime:
    """How many there were at a time: the `most`, and for how many `seconds` there were 0, 1, ... (see `level_of`)."""

    most: int = 0
    seconds: Mapping[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As it stands in a line: milliseconds are enough."""
        told = {str(level): round(seconds, 3) for level, seconds in sorted(self.seconds.items())}
        return {"max": self.most, "seconds": {level: seconds for level, seconds in told.items() if seconds}}

    @classmethod
    def from_json(cls, value: object) -> AtATime:
        """Read what `to_json` wrote; ValueError says which field is wrong."""
        document = fields.mapping(value, "at a time")
        seconds = fields.mapping(document.get("seconds"), "seconds")
        return cls(fields.whole(document, "max"), {int(level): fields.number(seconds, level, 0.0) for level in seconds})


@dataclass(frozen=True)
class Line:
    """What one gateway saw of a profile in one `minute` (seconds since 1970).

    Of a public name (`route`): its `requests` that came and `errors` that were an engine's or the gateway's, times
    until the first token by number of bucket, tokens in and out as engines told them; `adapter`: it is a LoRA's.
    `users` were in flight or waiting, and `waiting` at the gateway for a pause to end or a turn. Of all names together
    (`route` is None, and the counts are 0): the same two, and with those who wait those that do so in the engine.
    """

    minute: int
    profile: str
    route: str | None = None
    engine: str = ""
    adapter: bool = False
    requests: int = 0
    errors: int = 0
    users: AtATime = field(default_factory=AtATime)
    waiting: AtATime = field(default_factory=AtATime)
    ttft: Mapping[int, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0

    def to_text(self) -> str:
        """One line, with its end."""
        told = asdict(self) | {
            "users": self.users.to_json(),
            "waiting": self.waiting.to_json(),
            "ttft": {str(number): count for number, count in sorted(self.ttft.items())},
        }
        return json.dumps({"version": _VERSION, **told}, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Line:
        """Read what `to_text` wrote, in this version or a later one; ValueError says what is wrong."""
        document = fields.mapping(json.loads(text), "line")
        ttft = fields.mapping(document.get("ttft"), "ttft")
        return cls(
            minute=fields.whole(document, "minute"),
            profile=fields.text(document, "profile"),
            route=None if document.get("route") is None else fields.text(document, "route"),
            engine=str(document.get("engine", "")),
            adapter=fields.truth(document, "adapter"),
            requests=fields.whole(document, "requests"),
            errors=fields.whole(document, "errors"),
            users=AtATime.from_json(document.get("users")),
            waiting=AtATime.from_json(document.get("waiting")),
            ttft={int(number): fields.whole(ttft, number) for number in ttft},
            tokens_in=fields.whole(document, "tokens_in"),
            tokens_out=fields.whole(document, "tokens_out"),
        )


def file_name(at: float) -> str:
    """The file that has the lines of a time, in seconds since 1970."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}{_SUFFIX}"


def is_old(name: str, now: float) -> bool:
    """Whether a file of the directory has only lines that are not kept any longer; others are nobody's business."""
    try:
        day = datetime.strptime(name.removesuffix(_SUFFIX), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return False
    return name.endswith(_SUFFIX) and day + timedelta(days=KEPT_DAYS + 1) <= datetime.fromtimestamp(now, UTC)


def files_since(at: float, now: float) -> tuple[str, ...]:
    """The files with lines from a time until now, the oldest first."""
    first, last = (datetime.fromtimestamp(moment, UTC).date() for moment in (at, now))
    days = range((last - first).days + 1)
    return tuple(f"{first + timedelta(days=number)}{_SUFFIX}" for number in days)


def read(texts: Iterable[str]) -> list[Line]:
    """The lines that can be read: a kill or a full disk may have left half a line, which is passed over."""
    found = []
    for text in texts:
        try:
            found.append(Line.from_text(text))
        except (ValueError, TypeError, RecursionError):
            continue
    return found


def live_load_of(lines: Iterable[Line], profile: str, now: float, hours: float) -> LiveLoad | None:
    """What clients did with a profile in the `hours` before `now` (seconds since 1970); None where it had no requests.

    The hours that were counted begin with the first line that there is, of whatever profile. Percentiles of users are
    of the time that any was there, those of times until a first token are interpolated within a bucket, as Prometheus
    does it.
    """
    since = now - hours * 3600
    lines = list(lines)
    kept = [line for line in lines if since <= line.minute + MINUTE_S and line.minute <= now]
    mine = [line for line in kept if line.profile == profile]
    named = [line for line in mine if line.route is not None]
    together = [line for line in mine if line.route is None]
    if not named:
        return None
    users, waiting = (_seconds(line.users for line in together), _seconds(line.waiting for line in together))
    # While nobody was there, nobody waited either: those seconds say nothing of how many there are.
    idle = users.pop(0, 0.0)
    waiting[0] = max(0.0, waiting.get(0, 0.0) - idle)
    ttft = sum((Counter(line.ttft) for line in named), Counter[int]())
    counted = min(hours, (now - min(line.minute for line in lines)) / 3600)
    return LiveLoad(
        hours=counted,
        requests=sum(line.requests for line in named),
        errors=sum(line.errors for line in named),
        users_p50=_level(users, 0.5),
        users_p95=_level(users, 0.95),
        users_max=max((line.users.most for line in together), default=0),
        waiting_p95=_level(waiting, 0.95),
        ttft_p50_ms=_milliseconds(ttft, 0.5),
        ttft_p95_ms=_milliseconds(ttft, 0.95),
        adapters=len({line.route for line in named if line.adapter and line.requests}),
    )


def _seconds(told: Iterable[AtATime]) -> dict[int, float]:
    found: dict[int, float] = {}
    for one in told:
        for level, seconds in one.seconds.items():
            found[level] = found.get(level, 0.0) + seconds
    return found


def _level(seconds: Mapping[int, float], part: float) -> float:
    """So many, or fewer, there were in a part of the time."""
    wanted = part * sum(seconds.values())
    passed = 0.0
    for level in sorted(seconds):
        passed += seconds[level]
        if passed >= wanted:
            return float(level)
    return 0.0


def _milliseconds(counts: Mapping[int, int], part: float) -> float | None:
    """A part of the times is no longer than this; None without any."""
    wanted = part * sum(counts.values())
    passed = 0.0
    for number in sorted(counts):
        if passed + counts[number] >= wanted and counts[number]:
            least = bound_of(number - 1) if number else 0.0
            return 1000 * (least + (bound_of(number) - least) * (wanted - passed) / counts[number])
        passed += counts[number]
    return None
