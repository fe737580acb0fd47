"""``trtllm-pipeline serve`` in a process of its own, as an operator has it, and its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pipeline.triton.stubs import live_stubs
from tests.conftest import PROJECT

START_S = 120.0
ANY_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def until(condition: Callable[[], Any], within_s: float, what: str) -> float:
    """Waits for something; returns the seconds that it took.

    Raises:
        AssertionError: It did not come about in time.
    """
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class Service:
    """A served repository.

    Args:
        repository: What is served.
        folder: For its log, its voice and its temporary files.
        options: Further options of ``serve``.
        before: A command in front of it, such as one that gives it a namespace of its own.
        log: Where its log goes.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *options: str,
        before: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.repository, self.folder = repository, folder
        self.log = log or folder / "triton.log"
        self._command = [
            *before,
            *(sys.executable, "-m", "pipeline", "serve", str(repository), "--json"),
            *(*ANY_PORTS, "--log", str(self.log), "--report-every", "0", *options),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._addresses: dict[str, Any] = {}
        self._seen: dict[int, psutil.Process] = {}

    def start(self) -> Service:
        """Starts it and waits until it is ready.

        Raises:
            AssertionError: It did not become ready.
        """
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with (self.folder / "voice").open("ab") as voice:
            self._process = subprocess.Popen(
                self._command,
                cwd=PROJECT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)},
                stdout=subprocess.PIPE,
                stderr=voice,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout
        document = ""
        while "}" not in document:
            line = self._process.stdout.readline()
            document += line
            assert line, f"serve did not start: {document}{self.voice}"
        self._addresses = json.loads(document)
        assert "grpc" in self._addresses, f"serve did not start: {document}"
        self.processes()
        return self

    @property
    def voice(self) -> str:
        """What it has said on standard error."""
        return (self.folder / "voice").read_text(errors="replace")

    @property
    def grpc(self) -> str:
        """``host:port``."""
        return str(self._addresses["grpc"])

    @property
    def http(self) -> str:
        """Base URL."""
        return str(self._addresses["http"])

    @property
    def metrics(self) -> str:
        """URL of the metrics page."""
        return str(self._addresses["metrics"])

    @property
    def pid(self) -> int:
        """Of the supervisor, which gets the signals."""
        assert self._process
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """All that it has started, guardian, server and stubs, which are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                self._seen[process.pid] = process
        return [process for process in self._seen.values() if process.is_running()]

    @property
    def server(self) -> int:
        """Process id of tritonserver."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == "tritonserver":
                    return process.pid
        raise AssertionError("there is no tritonserver")

    def stub(self, model: str) -> int:
        """Process id of a model's Python process."""
        return next(pid for pid, name in live_stubs(self.server).items() if name == model)

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """What ``/v2/health/ready`` says, as a load balancer asks."""
        try:
            with _DIRECT.open(f"{self.http}/v2/health/ready", timeout=timeout_s) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def gauge(self, name: str, **labels: str) -> float | None:
        """A number of the metrics page; None where there is none."""
        try:
            with _DIRECT.open(self.metrics, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        for line in text.splitlines():
            wanted = all(f'{key}="{value}"' in line for key, value in labels.items())
            if line.startswith(f"{name}{{") and wanted:
                return float(line.rpartition(" ")[2])
        return None

    def active(self) -> float | None:
        """Requests in the engine; None where the server does not say."""
        return self.gauge("nv_trt_llm_request_metrics", request_type="active")

    def wait_idle(self, within_s: float = 30.0) -> float:
        """Waits until the engine has no request."""
        return until(lambda: self.active() == 0, within_s, f"no active request, {self.active()}")

    def signal(self, number: int) -> None:
        """Sends a signal to the supervisor."""
        os.kill(self.pid, number)

    def ended(self, within_s: float) -> int:
        """Waits for its end; the exit code."""
        assert self._process
        return self._process.wait(within_s)

    def close(self) -> None:
        """Ends it; whatever is left is killed."""
        if self._process is None:
            return
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    process.send_signal(signal.SIGCONT)
        try:
            if self._process.poll() is None:
                self._process.terminate()
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdout:
                self._process.stdout.close()
            _, alive = psutil.wait_procs(left, timeout=5)
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def __enter__(self) -> Service:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
