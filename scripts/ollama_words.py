"""What all parts of the Ollama stand-in share: its environment, its errors, Go's JSON and durations, its log lines."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

VERSION = "0.40.2"
# Go's largest duration, in seconds: what "for ever" means to Ollama (expires_at is then in the year 2319).
FOREVER_S = (2**63 - 1) / 1e9
KEEP_ALIVE_S = LOAD_TIMEOUT_S = 300.0

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|[+-]?0")


class ApiError(Exception):
    """An answer that is an error: `status` is its HTTP status if nothing was sent before it, `text` what it says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True)
class Settings:
    """The environment of `ollama serve`, as read. Durations in seconds; `context` 0 when it is not set.

    Two are the stand-in's own, for what only large models show: a load takes at least `load_s` (STAND_IN_LOAD_S), the
    rewriting of an imported file `create_s` (STAND_IN_CREATE_S).
    """

    host: str
    port: int
    models: Path
    keep_alive_s: float
    load_timeout_s: float
    parallel: int
    context: int
    max_queue: int
    max_loaded: int
    kv_cache_type: str
    flash_attention: str
    prune: bool
    go_template: bool
    template_kwargs: str
    gpu: bool
    home: Path
    load_s: float = 0.0
    create_s: float = 0.0

    @staticmethod
    def read(env: Mapping[str, str], gpu: bool) -> Settings:
        """Settings of `env`; what cannot be read becomes the default, as in Ollama. KeyError without HOME."""
        home = Path(env["HOME"])
        host, port = _address(env.get("OLLAMA_HOST", ""))
        return Settings(
            host=host,
            port=port,
            models=Path(env.get("OLLAMA_MODELS") or home / ".ollama" / "models"),
            keep_alive_s=_seconds(env.get("OLLAMA_KEEP_ALIVE", ""), KEEP_ALIVE_S),
            load_timeout_s=_seconds(env.get("OLLAMA_LOAD_TIMEOUT", ""), LOAD_TIMEOUT_S) or FOREVER_S,
            parallel=_unsigned(env, "OLLAMA_NUM_PARALLEL", 1) or 1,
            context=_unsigned(env, "OLLAMA_CONTEXT_LENGTH", 0),
            max_queue=_unsigned(env, "OLLAMA_MAX_QUEUE", 512),
            max_loaded=_unsigned(env, "OLLAMA_MAX_LOADED_MODELS", 0) or 3,
            kv_cache_type=env.get("OLLAMA_KV_CACHE_TYPE", ""),
            flash_attention=_flash(env.get("OLLAMA_FLASH_ATTENTION", "")),
            prune=env.get("OLLAMA_NOPRUNE", "") not in ("1", "true"),
            go_template=env.get("OLLAMA_GO_TEMPLATE", "").lower() not in ("0", "f", "false"),
            template_kwargs=env.get("LLAMA_ARG_CHAT_TEMPLATE_KWARGS", ""),
            gpu=gpu,
            home=home,
            load_s=float(env.get("STAND_IN_LOAD_S", "0")),
            create_s=float(env.get("STAND_IN_CREATE_S", "0")),
        )

    def shown(self, env: Mapping[str, str]) -> str:
        """The map in the first log line."""
        values = {name: value for name, value in env.items() if name.startswith(("OLLAMA_", "CUDA_VISIBLE"))}
        values |= {"OLLAMA_HOST": f"http://{self.host}:{self.port}", "OLLAMA_MODELS": str(self.models)}
        values |= {"OLLAMA_KV_CACHE_TYPE": self.kv_cache_type, "OLLAMA_NUM_PARALLEL": str(self.parallel)}
        values |= {"OLLAMA_CONTEXT_LENGTH": str(self.context), "OLLAMA_MAX_QUEUE": str(self.max_queue)}
        return f"map[{' '.join(f'{name}:{values[name]}' for name in sorted(values))}]"


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().removeprefix("http://").rstrip("/").rpartition(":")
    if not colon:
        return port or "127.0.0.1", 11434
    return host or "127.0.0.1", int(port) if port.isdigit() and int(port) < 65536 else 11434


def _unsigned(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit():
        log(
            "WARN",
            "config.go:346",
            "invalid environment variable, using default",
            key=name,
            value=text,
            default=default,
        )
        return default
    return int(text)


def _seconds(text: str, default: float) -> float:
    """A duration or a number of seconds; negative ones last for ever."""
    try:
        seconds = float(text) if re.fullmatch(r"[+-]?\d+", text) else parse_duration(text)
    except ApiError:
        return default
    return FOREVER_S if seconds < 0 else seconds


def _flash(text: str) -> str:
    """`auto`, `on` or `off`; what cannot be read counts as on."""
    if not text:
        return "auto"
    return "off" if text.lower() in ("0", "f", "false") else "on"


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as 1h30m. ApiError in Go's words."""
    if not _DURATION.fullmatch(text):
        problem = "missing unit in" if re.fullmatch(r"[+-]?[\d.]+", text) else "invalid"
        raise ApiError(400, f"time: {problem} duration {quoted(text)}")
    total = sum(float(number) * _UNIT_S[unit] for number, unit in re.findall(r"([\d.]+)(ns|us|µs|ms|s|m|h)", text))
    return -total if text.startswith("-") else total


def request_keep_alive(value: Any) -> float | None:
    """Seconds of a request's keep_alive; None if it has none. ApiError if it is no duration."""
    if value is None:
        return None
    if isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = parse_duration(value)
    else:
        raise ApiError(400, "json: invalid duration type")
    return FOREVER_S if seconds < 0 else seconds


def go_json(value: Any) -> str:
    """JSON as Go writes it: no spaces, HTML's characters escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def quoted(text: str) -> str:
    """A string in Go's quotes."""
    return json.dumps(text, ensure_ascii=False)


def timestamp(seconds: float | None = None) -> str:
    """A moment (seconds of the epoch; None: now) in RFC 3339 with nanoseconds."""
    nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
    whole, rest = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"


def log(level: str, source: str, message: str, **fields: object) -> None:
    """One line on stderr in Ollama's format."""
    stamp = f"{timestamp()[:23]}Z"
    words = [f"time={stamp}", f"level={level}", f"source={source}", f"msg={_value(message)}"]
    words += [f"{name}={_value(str(value))}" for name, value in fields.items()]
    sys.stderr.write(" ".join(words) + "\n")
    sys.stderr.flush()


def _value(text: str) -> str:
    return text if re.fullmatch(r"[^\s\"=]+", text) else quoted(text)


def write_key_pair(home: Path) -> None:
    """What Ollama leaves in its caller's home; here in name only. OSError where it cannot."""
    private = home / ".ollama" / "id_ed25519"
    if private.exists():
        return
    private.parent.mkdir(parents=True, exist_ok=True)
    print(f"Couldn't find '{private}'. Generating new private key.", flush=True)
    for path, text, mode in ((private, "no key\n", 0o600), (private.with_suffix(".pub"), "ssh-ed25519 none\n", 0o644)):
        path.write_text(text)
        path.chmod(mode)
