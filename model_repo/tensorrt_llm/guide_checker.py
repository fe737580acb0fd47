"""Has guides tried in a process of its own before the engine sees them (guide_worker.py)."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .request import Guide, RequestError

LIMIT_S = 10
"""Seconds in which a guide must be understood. The engine takes as long again, in which it serves
nobody else, so this is the longest that one client can hold up the others."""

START_S = 120
"""Seconds in which the process must be ready; on a busy machine OpenVINO takes a while to load."""

LONGEST_REASON = 300
"""Characters; some reasons repeat the guide."""

KNOWN_GUIDES = 256
"""Guides whose answer is remembered: most clients send the same few."""

_DEADLY = (
    "what makes a grammar of it broke down on it, out of memory or stack or by a fault of its own; "
    "make it simpler"
)


class GuideChecker:
    """Tries guides one after the other, each once.

    Args:
        tokenizer: The engine's ``tokenizer.json``.
        vocab_size: Tokens of the engine.
        end_ids: Ids that end a text.
        limit_s: Seconds in which a guide must be understood.

    Raises:
        RuntimeError: The process cannot be started.
    """

    def __init__(
        self, tokenizer: Path, vocab_size: int, end_ids: Sequence[int], limit_s: int = LIMIT_S
    ) -> None:
        self._config = {
            "tokenizer": str(tokenizer.resolve()),
            "vocab_size": vocab_size,
            "end_ids": list(end_ids),
            "limit_s": limit_s + 1,
        }
        self._limit_s = limit_s
        self._known: OrderedDict[Guide, RequestError | None] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._process: subprocess.Popen[bytes] | None = self._start()

    def wait_ready(self) -> None:
        """Returns when the process can try guides.

        Raises:
            RuntimeError: It ended, or was not ready in time.
        """
        if not (self._answer(START_S) or {}).get("ready"):
            raise RuntimeError(
                "the process that tries guides for guided decoding did not start; its own message "
                "is above, in the server's log"
            )

    def check(self, guide: Guide, done: Callable[[RequestError | None], None]) -> None:
        """Calls ``done`` with why the guide is refused, or None.

        At once if the answer is known, else later and from another thread.
        """
        with self._lock:
            known = guide in self._known
            refusal = self._known.get(guide)
            if known:
                self._known.move_to_end(guide)
        if known:
            done(refusal)
        else:
            self._pool.submit(self._try, guide, done)

    def close(self) -> None:
        """Ends the process; guides that were not tried are never answered."""
        if process := self._process:
            process.kill()  # whoever waits for its answer sees its output end
        self._pool.shutdown(cancel_futures=True)
        self._stop()

    def _try(self, guide: Guide, done: Callable[[RequestError | None], None]) -> None:
        with self._lock:
            known, refusal = guide in self._known, self._known.get(guide)
        if not known:
            try:
                if self._process is None:
                    self._process = self._start()
                    self.wait_ready()
                reason = self._refusal(guide, self._process)
            except (OSError, RuntimeError) as error:
                self._stop()
                done(RequestError(f"the guide cannot be tried: {error}", "INTERNAL"))
                return
            if reason is not None:
                refusal = RequestError(
                    f"guided_decoding_guide cannot be followed as {guide.kind}: {reason}"
                )
            with self._lock:
                self._known[guide] = refusal
                if len(self._known) > KNOWN_GUIDES:
                    self._known.popitem(last=False)
        done(refusal)

    def _refusal(self, guide: Guide, process: subprocess.Popen[bytes]) -> str | None:
        wish = json.dumps({"kind": guide.kind, "text": guide.text})
        started = time.monotonic()
        try:
            assert process.stdin is not None
            process.stdin.write(f"{wish}\n".encode())
            process.stdin.flush()
            answer = self._answer(self._limit_s)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._stop()
            if time.monotonic() - started < self._limit_s:
                return _DEADLY
            return f"it is too complex: it was not understood within {self._limit_s} s"
        refused = answer["refused"]
        return None if refused is None else str(refused)[:LONGEST_REASON]

    def _answer(self, limit_s: float) -> dict[str, Any] | None:
        """Reads the next line of the process; None if it ended or takes too long."""
        process, line = self._process, b""
        deadline = time.monotonic() + limit_s
        if process is None or process.stdout is None:
            return None
        output = process.stdout.fileno()
        # select() would refuse a file number above 1023, which a busy process may have.
        waiting = select.poll()
        waiting.register(output, select.POLLIN)
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not waiting.poll(left * 1000):
                return None
            piece = os.read(output, 65536)
            if not piece:
                return None
            line += piece
        return dict(json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        here = Path(__file__).resolve().parent
        python: str | None = sys.executable
        if not Path(sys.executable or "").name.startswith("python"):
            python = shutil.which("python3")  # an interpreter within a program names the program
        if python is None:
            raise RuntimeError("guided decoding needs a Python interpreter on PATH")
        return subprocess.Popen(
            [python, "-m", f"{here.name}.guide_worker", json.dumps(self._config)],
            cwd=here.parent,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
