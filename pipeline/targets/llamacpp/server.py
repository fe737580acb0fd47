"""Supervises llama.cpp's own server, the one of the package xllamacpp.

It answers OpenAI's API over HTTP. A process that dies takes its requests with it; it is started
again on the same port, as Triton is.
"""

from __future__ import annotations

import http.client
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dependencies import require
from pipeline.errors import ServerError
from pipeline.targets.llamacpp.process import LlamaCppProcess, Settings
from pipeline.triton.log import LogPlace, open_log
from pipeline.triton.memory import Memory, memory_of
from pipeline.triton.ports import reserve
from pipeline.triton.running import GIVE_UP_AFTER_S, HUNG_AFTER_S
from pipeline.triton.supervisor import SupervisedServer

EXIT_TIMEOUT_S = 5
HEALTH, METRICS = "/health", "/metrics"
_POLL_S = 0.05
_PURPOSE = "HTTP"
# What llama.cpp says of a failure: time, level E, and the place in its source.
_ERROR = re.compile(r"^\S+ E \S* *(?P<text>.+)$")
_SHOWN = 3


class LlamaCppServer(SupervisedServer):
    """A server that is ready inside a ``with`` block.

    Args:
        settings: What it is started with; port 0 picks a free one.
        log_file: Receives the server's output, appended; None keeps it until the server stops.
        ready_timeout_s: Seconds that loading the model may take.
        watchdog: Restart the server when it dies or no longer answers.
        hung_after_s: Seconds without an answer after which it is taken for hung; 0 for never.
        give_up_after_s: Seconds of starts that fail, after which the watchdog gives up; 0 for
            never.
        variables: Names of environment variables that the process gets beyond the usual ones.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        log_file: LogPlace = None,
        ready_timeout_s: float = 600.0,
        watchdog: bool = True,
        hung_after_s: float = HUNG_AFTER_S,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        variables: Sequence[str] = (),
    ) -> None:
        super().__init__(
            "llama.cpp's server",
            Path(settings.model),
            log_file=log_file,
            watchdog=watchdog,
            give_up_after_s=give_up_after_s,
        )
        self.host, self.http_port, self.http = settings.host, settings.port, True
        self.grpc_port = self.metrics_port = 0
        self._settings, self._variables = settings, tuple(variables)
        self._ready_timeout_s, self._hung_after_s = ready_timeout_s, hung_after_s
        self._answered_at = 0.0
        self._process: LlamaCppProcess | None = None

    def start(self) -> LlamaCppServer:
        """Launches the server and waits until the model is loaded.

        Raises:
            ServerError: The port is taken, or the server ended or did not become ready; the message
                holds the cause from its log.
            MissingDependencyError: xllamacpp is not installed.
        """
        require("xllamacpp", "llamacpp")
        self.http_port = reserve(self.host, {_PURPOSE: self.http_port})[_PURPOSE]
        self._settings = replace(self._settings, port=self.http_port)
        self._stopping.clear()
        self._ended.clear()
        self._failure = None
        self._log = open_log(self.log_file)
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        self._begin_watch()
        return self

    @property
    def url(self) -> str:
        """The address that clients of the API are given."""
        return self.http_url

    @property
    def addresses(self) -> dict[str, str]:
        """Where it answers."""
        return {"openai": f"{self.http_url}/v1"}

    @property
    def metrics_headers(self) -> dict[str, str]:
        """What has to be sent for the metrics."""
        key = self._settings.key
        return {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics; a server with a key asks for it there too."""
        return f"{self.http_url}{METRICS}"

    @property
    def patience_s(self) -> float:
        """Seconds that a stopping server waits for requests in flight."""
        return self._settings.grace_s

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._process.pid if self._process else None

    def memory(self) -> Memory:
        """Measures the server's process."""
        pid = self.pid
        return Memory(None, "the server does not run") if pid is None else memory_of(pid)

    def answers(self) -> bool:
        """Asks whether the model is loaded; False also when the server does not answer."""
        return self._status(f"{self.http_url}{HEALTH}") == http.client.OK

    def responds(self) -> bool:
        """Asks whether the server answers anything."""
        return self._status(f"{self.http_url}{HEALTH}") is not None

    def _launch(self) -> None:
        if self._log is None:
            raise ServerError("the server is stopped", where=self._place())
        started = time.monotonic()
        offset = self._log.seek(0, os.SEEK_END)
        self._state = "starting"
        self._process = LlamaCppProcess(self._settings, self._log, self._variables)
        while not self.answers():
            if (code := self._process.poll()) is not None:
                raise self._explained("llama.cpp's server did not start", offset, code)
            if time.monotonic() - started > self._ready_timeout_s:
                what = f"llama.cpp's server was not ready after {self._ready_timeout_s:.0f} s"
                raise self._explained(what, offset, None)
            if self._stopping.wait(_POLL_S):
                raise ServerError("the server was stopped while it started", where=self._place())
        self._answered_at = time.monotonic()
        self.ready_s = self._answered_at - started
        self._state = "ready"

    def _running(self) -> LlamaCppProcess | None:
        return self._process

    def _forget(self) -> None:
        self._process = None

    def _fault(self) -> str | None:
        code = self._process.poll() if self._process else 0
        if code is not None:
            return f"llama.cpp's server ended by itself{_ending(code)}"
        now = time.monotonic()
        if self.responds():
            self._answered_at = now
        elif self._hung_after_s and now - self._answered_at >= self._hung_after_s:
            return f"llama.cpp's server has not answered for {now - self._answered_at:.0f} s"
        return None

    def _explained(self, what: str, offset: int, code: int | None) -> ServerError:
        """The error for a start that failed, with the reason out of the log."""
        said = [
            m["text"] for line in self._said_since(offset).splitlines() if (m := _ERROR.match(line))
        ]
        why = "; ".join(dict.fromkeys(said[:_SHOWN])) or f"it ended{_ending(code)} and said nothing"
        return ServerError(
            what,
            where=self._place(),
            why=why,
            fix="Find more in the server's log, or compile the model again",
        )


def _ending(code: int | None) -> str:
    if code is None:
        return ""
    return f" with signal {-code}" if code < 0 else f" with exit code {code}"
