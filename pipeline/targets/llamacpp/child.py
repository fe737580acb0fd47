"""llama.cpp's own server in a process of its own, which ends in order.

Run as a module; nothing about it is on its command line. The first line of standard input is a
:class:`~pipeline.targets.llamacpp.process.Settings` as JSON, with the key. The end of standard
input or SIGTERM stops the server: nobody new is let in, requests in flight get ``grace_s``, and the
process ends. The byte ``k`` or SIGUSR1 ends it at once. So whoever holds the other end of the pipe
may die in any way.

The package has no call that stops a server. Its listening socket is this process's, though: another
one is put in its place, at which nobody calls. Were it only shut down, cpp-httplib would take that
for its own end and cut every stream (``is_shutting_down`` in ``write_content_chunked``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any

from pipeline.triton.ports import local_address

STARTED, FAILED = 0, 3
KILL = b"k"
HURRY = signal.SIGUSR1
_LOOK_S = 0.05
_SENT_S = 0.2
"""For the HTTP threads to write the last piece of what has just ended."""
_ERRORS_ALONE = 1
"""llama.cpp's verbosity: with more, each request leaves a line in the log."""
_BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


def main() -> None:
    """Serves until it is told to stop; never returns."""
    settings = json.loads(sys.stdin.buffer.readline())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(HURRY, lambda _number, _frame: os._exit(STARTED))
    threading.Thread(target=_watch_input, args=(stop,), daemon=True).start()
    import xllamacpp

    try:
        server = xllamacpp.Server(_parameters(xllamacpp, settings))
    except RuntimeError as error:
        # The reason is on standard error already.
        print(error, file=sys.stderr, flush=True)
        # In order, so that llama.cpp's own thread writes the rest of its log.
        sys.exit(FAILED)
    # In pieces: a signal's handler runs between them.
    while not stop.wait(_LOOK_S):
        pass
    _close_listener(settings["host"], int(settings["port"]))
    _finish(server, float(settings["grace_s"]))
    os._exit(STARTED)


def _parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    made = xllamacpp.CommonParams()
    made.model.path = settings["model"]
    made.model_alias = {settings["name"]}
    slots = int(settings["slots"])
    # Shared out among the slots, each of which has room for a whole sequence.
    made.n_parallel, made.n_ctx = slots, slots * int(settings["context"])
    made.kv_unified = False
    made.fit_params = False
    made.n_batch = int(settings["batch"])
    made.n_ubatch = min(made.n_ubatch, made.n_batch)
    made.hostnames, made.port = [settings["host"]], int(settings["port"])
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = int(settings["threads"])
    # A thread for each request in flight and as many that wait, and some for probes.
    made.n_threads_http = 2 * slots + 8
    if settings["kv_cache"] == "f32":
        made.cache_type_k = made.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        made.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    made.endpoint_metrics, made.endpoint_slots = True, False
    made.cache_ram_mib = 0
    made.verbosity = _ERRORS_ALONE
    # No page of another site may ask it, and it has no pages of its own.
    made.cors_origins, made.cors_credentials, made.ui = "", False, False
    if settings["key"]:
        made.api_keys = [settings["key"]]
    return made


def _watch_input(stop: threading.Event) -> None:
    while byte := os.read(sys.stdin.fileno(), 1):
        if byte == KILL:
            os._exit(STARTED)
    stop.set()


def _close_listener(host: str, port: int) -> None:
    """Lets nobody new in, and leaves the server's loop and what it writes alone."""
    quiet = socket.socket(socket.AF_UNIX)
    quiet.bind("")  # an address of the kernel's choice, which nobody knows
    quiet.listen(1)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- numbers, no paths
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # no socket, or closed meanwhile
        with found:
            if found.family == socket.AF_UNIX:
                continue
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                os.dup2(quiet.fileno(), int(name))
    # The loop still waits at the old socket, which is closed once it has taken a connection.
    with contextlib.suppress(OSError):
        socket.create_connection((local_address(host), port), timeout=1.0).close()


def _finish(server: Any, seconds: float) -> None:
    """Waits until no request runs or waits."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        page = server.handle_metrics()
        text = page if isinstance(page, str) else str(page)
        if not any(int(count) for count in _BUSY.findall(text)):
            # The last bytes are with the kernel by now, which sends them without this process.
            time.sleep(_SENT_S)
            return
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
