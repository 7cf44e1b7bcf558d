"""Why the gateway answers a request by itself: what happened and a way out, whatever API was spoken.

The dialects put a refusal into the shape of that API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import hdrs

from orchestrator.core.routes import RouteTable

# Seconds after which a client may come again.
AGAIN_S = "2"
# A header or a name that is repeated in a message is cut here.
_LONGEST_ECHO = 200


def _echo(text: str) -> str:
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}..."


class Refusal(Exception):
    """An HTTP status, a word for programs, and a sentence for people; `param` is the field that is at fault."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}


def engine_refuses() -> Refusal:
    """502: an engine does not take the gateway for what it is."""
    return Refusal(502, "backend_refused", "The engine refuses this gateway: its operator can run `orch up`.")


def unauthorized() -> Refusal:
    """401: says what is needed, and nothing of what was given."""
    message = "A valid API key is needed, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`."
    return Refusal(401, "invalid_api_key", message, headers={hdrs.WWW_AUTHENTICATE: "Bearer"})


def foreign_origin(origin: str, named: bool) -> Refusal:
    """403 for a page that may not use a gateway without keys; `named`: its origin can be allowed."""
    if named:
        message = (
            f"Pages of {_echo(origin)} may not use this gateway. To allow them: `orch up --origin {_echo(origin)}`."
        )
    else:
        message = (
            "A page without an origin of its own (opened from a file, or in a sandbox) may not use this gateway. "
            "Serve it from http://localhost, on any port."
        )
    return Refusal(403, "origin_not_allowed", f"{message} Or require an API key, which the page then has to send.")


def foreign_host(host: str, named: bool) -> Refusal:
    """403 for a name that a gateway on loopback is not known by; `named`: it can be allowed."""
    message = f"This gateway does not answer to the name {_echo(host)}. Ask it as localhost."
    if named:
        message += f" Or, to allow the name: `orch up --origin http://{_echo(host)}`."
    return Refusal(403, "host_not_allowed", message)


def unknown_path(method: str, path: str) -> Refusal:
    """404 for what there is not."""
    return Refusal(404, "unknown_path", f"There is nothing at {method} {_echo(path)}.")


def wrong_method(path: str, method: str, allowed: str) -> Refusal:
    """405 that names the right ones."""
    message = f"{path} is for {allowed}, not {method}."
    return Refusal(405, "wrong_method", message, headers={hdrs.ALLOW: allowed})


def unknown_name(name: str, table: RouteTable) -> Refusal:
    """404 that names the valid ones."""
    valid = f"Valid names: {', '.join(table.names)}." if len(table) else "Nothing is deployed: run `orch up`."
    return Refusal(404, "model_not_found", f"The model `{_echo(name)}` does not exist. {valid}", "model")


def adapters_lost(name: str, path: str, kept_on: Iterable[str]) -> Refusal:
    """400 for a path on which the engine would drop what the route adds to the request."""
    kept = ", ".join(kept_on)
    message = (
        f"`{_echo(name)}` is served together with LoRA adapters, and its engine loses them on {path}: the answer would "
        f"be another model's. Ask at {kept or 'another path'}, or have it served by an engine that keeps them there "
        "(`orch migrate --to vllm`)."
    )
    return Refusal(400, "adapters_not_on_this_path", message, "model")


def no_chat_template(name: str, path: str, instead: str) -> Refusal:
    """400 for a chat with a model that does not say how one becomes a prompt."""
    message = (
        f"`{_echo(name)}` has no chat template, so {path} cannot ask it. Ask it for a completion of a text at "
        f'{instead}; or its operator can name a template in its profile ([chat] template = "FILE").'
    )
    return Refusal(400, "no_chat_template", message, "model")


def invalid_body(message: str, param: str | None = None) -> Refusal:
    """400 for a body in which no model can be found."""
    return Refusal(400, "invalid_body", message, param)


def invalid_value(name: str, why: str) -> Refusal:
    """400 for a field of a body that is not what it has to be."""
    return Refusal(400, "invalid_value", f"`{_echo(name)}`: {why}.", name)


def not_supported(name: str, why: str) -> Refusal:
    """400 for what is asked for in a field, and cannot be had."""
    return Refusal(400, "unsupported_value", f"`{_echo(name)}`: {why}.", name)


def unreadable(why: str) -> Refusal:
    """400 for what is not HTTP."""
    return Refusal(400, "unreadable", f"The request cannot be read as HTTP: {why or 'it breaks off'}.")


def head_too_large(most: int) -> Refusal:
    """431 with the limit, in bytes."""
    return Refusal(431, "head_too_large", f"A header of the request is longer than {most >> 10} KiB.")


def failed() -> Refusal:
    """500 for what is no fault of the client's, nor of an engine's."""
    return Refusal(500, "gateway_failed", "The gateway failed; its log says why (`orch logs gateway`).")


def slow_head(seconds: float) -> Refusal:
    """408 for a request that does not even say all of what it is."""
    return Refusal(408, "slow_head", f"The headers of the request did not come within {seconds:g} s.")


def slow_body(seconds: float) -> Refusal:
    """408 for a body of which nothing more comes, or a byte now and then."""
    return Refusal(408, "slow_body", f"The body came too slowly: less than was due for {seconds:g} s.")


def too_many_of_key(most: int) -> Refusal:
    """429 while as many requests with one API key are answered as may be at once."""
    message = f"This API key has {most} requests in work already, which is the most at once; try again."
    return Refusal(429, "rate_limit_exceeded", message, headers={hdrs.RETRY_AFTER: AGAIN_S})


def too_many(most: int) -> Refusal:
    """503 while as many requests are answered as may be at once."""
    return unavailable(f"The gateway has {most} requests in work already; try again in a moment.", "too_many_requests")


def too_large(most: int) -> Refusal:
    """413 with the limit, in bytes."""
    return Refusal(413, "body_too_large", f"The body is larger than {most >> 20} MiB, unpacked.")


def too_intricate(most: int, of: str = "commas and brackets") -> Refusal:
    """413 for a body that takes too long to look through."""
    return Refusal(413, "body_too_intricate", f"The body has more than {most:,} {of}.")


def unknown_encoding(encoding: str, known: str) -> Refusal:
    """415 for a Content-Encoding that is not undone here."""
    message = f"The Content-Encoding {_echo(encoding)} is not supported. Supported: {known}, or none."
    return Refusal(415, "unknown_encoding", message, headers={hdrs.ACCEPT_ENCODING: known})


def unknown_expectation() -> Refusal:
    """417."""
    return Refusal(417, "unknown_expectation", "Only `Expect: 100-continue` is supported.")


def unavailable(message: str, code: str = "backend_unavailable") -> Refusal:
    """503 that asks to come again."""
    return Refusal(503, code, message, headers={hdrs.RETRY_AFTER: AGAIN_S})


def full() -> Refusal:
    """503 while the bodies of other requests take all the memory that there is for them."""
    return unavailable("The gateway holds too many large requests at the moment; try again.", "too_much_held")


def crowded(name: str) -> Refusal:
    """503 while too many requests wait for the turn of a name, or of others with its adapters."""
    return unavailable(f"Too many requests wait for `{_echo(name)}` at the moment; try again.", "too_many_waiting")


def too_many_held(name: str) -> Refusal:
    """503 while as many requests wait as may for a change of what serves them."""
    message = f"What serves `{_echo(name)}` is being changed, and too many requests wait for it already; try again."
    return unavailable(message, "too_many_held")


def interrupted(reason: str) -> Refusal:
    """What ends an answer of which a part is out; there is no status for it any more."""
    return Refusal(500, "stream_interrupted", reason)
