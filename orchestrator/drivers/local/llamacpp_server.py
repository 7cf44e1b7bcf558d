"""llama.cpp's own server, run in this process: the engine behind `llamacpp` on the local target.

`python -m orchestrator.drivers.local.llamacpp_server --model F --alias NAME --port N --ctx-size TOTAL --parallel P`.
TOTAL tokens are shared out evenly: each of the P slots gets TOTAL/P. Adapters are loaded at scale 0.0, so that a
request without a `lora` field gets the plain weights. Exit code 0 after SIGTERM, 1 when the server cannot start: the
reason stands on stderr in llama.cpp's own lines (the first with ` E `). LLAMA_API_KEY is
what clients have to show. All attribute names of xllamacpp's
CommonParams, which move between its releases, are in this module.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.drivers.cgroups import cpus_in, usable_cpus

# What it asks of its clients, if there is one; in the environment, where no other user sees it.
API_KEY = "LLAMA_API_KEY"


class _Default(NamedTuple):
    """A default of sampling: its type, its attribute in CommonParamsSampling, its bit in user_sampling_config."""

    type: type[int] | type[float]
    attribute: str
    bit: str | None


# Without its bit, a default that the GGUF's own metadata suggests would win over the profile's.
_SAMPLING = {
    "temperature": _Default(float, "temp", "TEMP"),
    "top_p": _Default(float, "top_p", "TOP_P"),
    "top_k": _Default(int, "top_k", "TOP_K"),
    "min_p": _Default(float, "min_p", "MIN_P"),
    "repeat_penalty": _Default(float, "penalty_repeat", "PENALTY_REPEAT"),
    "seed": _Default(int, "seed", None),
}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llamacpp_server", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--alias", required=True, help="name that it is served under")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of all slots together")
    parser.add_argument("--parallel", type=int, default=1, help="slots: streams served at once")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as llama.cpp thinks fit")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE", help="adapter GGUF; ids in this order")
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    for name, kind in _SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind.type, help="default of requests that do not say")
    parser.add_argument("--max-tokens", type=int, default=-1, help="of an answer whose request does not say; -1: none")
    options = parser.parse_args(argv)
    # Unchecked, the server claims to listen on port 99999, and hangs at a context of 2e9.
    if not 1 <= options.port <= 65535:
        parser.error(f"--port {options.port}: not within 1 to 65535")
    if options.parallel < 1:
        parser.error(f"--parallel {options.parallel}: not above 0")
    if options.ctx_size < options.parallel or options.ctx_size >= 2**31:
        parser.error(f"--ctx-size {options.ctx_size}: not within --parallel to 2147483647")
    if options.threads < 0:
        parser.error(f"--threads {options.threads}: below 0")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        parser.error(f"--seed {options.seed}: not within 0 to 4294967295")
    return options


def common_params(options: argparse.Namespace) -> Any:
    """xllamacpp's CommonParams for these options."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.kv_unified = False  # one share per slot, which no other slot can take away
    params.cont_batching = True
    params.fit_params = False  # it may shrink the context silently
    params.n_gpu_layers = options.n_gpu_layers
    if threads := options.threads or _fewer_threads():
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
    _set_sampling(params.sampling, options)
    params.n_predict = options.max_tokens
    params.use_jinja = True
    params.ui = False
    if key := os.environ.get(API_KEY):
        params.api_keys = [key]
    params.endpoint_metrics = True
    params.endpoint_slots = True
    if options.lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in options.lora]
        params.cache_ram_mib = 0  # the cache in RAM is not keyed by adapter
    return params


def _fewer_threads() -> int:
    """How many threads it may have where that is fewer than it takes by itself, else 0.

    It takes one per core of the machine (of the fast ones, where a CPU has two kinds), whatever the affinity and the
    quota of its control group: with more threads than CPUs all of them wait for one another.
    """
    devices = Path("/sys/devices")
    fast = _text(devices / "cpu_core/cpus")
    cores = {_text(cpu / "topology/thread_siblings_list") for cpu in devices.glob("system/cpu/cpu[0-9]*")} - {""}
    if fast:
        cores = {core for core in cores if cpus_in(core) & cpus_in(fast)}
    usable = usable_cpus()
    return usable if usable < len(cores) else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _set_sampling(sampling: Any, options: argparse.Namespace) -> None:
    import xllamacpp

    for name, default in _SAMPLING.items():
        value = getattr(options, name)
        if value is None:
            continue
        setattr(sampling, default.attribute, value)
        if default.bit is not None:
            bit = xllamacpp.common_params_sampling_config[f"COMMON_PARAMS_SAMPLING_CONFIG_{default.bit}"]
            sampling.user_sampling_config |= bit.value


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = _arguments(argv)
    import xllamacpp

    try:
        _serving = xllamacpp.Server(common_params(options))  # in threads of its own, for as long as it is referred to
    except RuntimeError as error:  # llama.cpp has told the reason on stderr
        sys.stderr.write(f"{error}\n")
        return 1
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    os.read(reader, 1)
    # Not `del server`: it joins the server while holding the GIL, and with a stream open that never ends.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
