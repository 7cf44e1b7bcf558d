"""llama.cpp's own server, run in this process: the engine behind `llamacpp` on the local target.

`python -m orchestrator.drivers.local.llamacpp_server --model F --alias NAME --port N --ctx-size TOTAL --parallel P`.
TOTAL tokens are shared out evenly: each of the P slots gets TOTAL/P. Adapters are loaded at scale 0.0, so that a
request without a `lora` field gets the plain weights. Exit code 0 after SIGTERM, 1 when the server cannot start: the
reason stands on stderr in llama.cpp's own lines (the first with ` E `). All attribute names of xllamacpp's
CommonParams, which move between its releases, are in this module.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

# Open streams are cut by then: joining the server waits for its connections.
CLEAN_END_S = 2.0


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
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    params.use_jinja = True
    params.ui = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    if options.lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in options.lora]
        params.cache_ram_mib = 0  # the cache in RAM is not keyed by adapter
    return params


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = _arguments(argv)
    import xllamacpp

    try:
        server = xllamacpp.Server(common_params(options))
    except RuntimeError as error:  # llama.cpp has told the reason on stderr
        sys.stderr.write(f"{error}\n")
        return 1
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    os.read(reader, 1)
    last_resort = threading.Timer(CLEAN_END_S, os._exit, [0])
    last_resort.daemon = True
    last_resort.start()
    del server
    last_resort.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
