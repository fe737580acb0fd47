"""Supervises a server that was launched with docker, or in place inside the container."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from pipeline.errors import ServerError
from pipeline.targets.handed_on import handed_on, looks_secret
from pipeline.targets.tensorrt.serve.container import (
    ENGINE,
    MOUNT,
    ORCHESTRATOR_ENVIRONMENT,
)
from pipeline.targets.tensorrt.serve.docker import remove_container
from pipeline.targets.tensorrt.serve.failures import launch_cause
from pipeline.targets.tensorrt.serve.launch import Launch
from pipeline.triton.log import LogPlace, open_log, place_of, written_since
from pipeline.triton.memory import Memory, memory_of
from pipeline.triton.running import RunningServer
from pipeline.triton.surroundings import PRIVATE

# Reading a 70B engine from a slow disk takes minutes; so does pulling the image for the first time.
READY_TIMEOUT_S = 1800.0
# Docker and mpirun need a moment after the server itself has ended.
CLEAR_UP_S = 15
POLL_S = 0.2


class LaunchedServer(RunningServer):
    """A server that is ready inside a ``with`` block.

    Args:
        repository: The repository.
        launch: From :func:`pipeline.targets.tensorrt.serve.launch.plan_launch`.
        log_file: Receives the output of docker, mpirun and Triton, appended; None keeps it until
            the server stops.
        ready_timeout_s: Seconds that loading may take.
    """

    def __init__(
        self,
        repository: Path,
        launch: Launch,
        *,
        log_file: LogPlace = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.repository, self.launch, self.log_file = repository, launch, log_file
        self.ready_s: float | None = None
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: subprocess.Popen[bytes] | None = None
        self._hurried = False
        self._held = contextlib.ExitStack()
        self._log: IO[bytes] | None = None
        self._offset = 0
        endpoints = launch.endpoints
        self.host, self.grpc_port = endpoints.host, endpoints.grpc
        self.http_port, self.metrics_port = endpoints.http, endpoints.metrics
        self.http_host = endpoints.http_host

    def start(self) -> LaunchedServer:
        """Launches the server and waits until every model is ready.

        Raises:
            ServerError: It ended or did not become ready; the message holds the cause.
        """
        try:
            self._launch()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stops the server and waits until it is gone.

        Requests in flight get their exit time from a server of one rank. Under mpirun, which runs
        several ranks, they are cut: see :func:`.container.server_command`.
        """
        process, self._process = self._process, None
        if process and process.poll() is None:
            self._ending = process
            # docker run passes the signal on to the container, mpirun to its ranks.
            process.terminate()
            try:
                process.wait(0 if self._hurried else self.patience_s + CLEAR_UP_S)
            except subprocess.TimeoutExpired:
                self._kill(process)
        self._ending = None
        self._held.close()

    def hurry(self) -> None:
        """Kills a server that is being stopped, or makes the next stop do so."""
        self._hurried = True
        if self._ending:
            self._kill(self._ending)

    @property
    def patience_s(self) -> float:
        """Seconds that a stopping server waits for requests in flight."""
        return self.launch.exit_timeout_s

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until the server ends, or the time is up.

        Raises:
            ServerError: The server ended by itself.
        """
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return
        raise self._failure("the server ended by itself")

    def memory(self) -> Memory:
        """Measures the processes of a server that was launched in place, without a GPU's memory."""
        if self.launch.name:
            return Memory(
                None,
                "the server's processes are in a container, which docker stats and nvidia-smi "
                "look into",
            )
        if self._process is None:
            return Memory(None, "the server does not run")
        return memory_of(self._process.pid)

    def _launch(self) -> None:
        try:
            self._log = self._held.enter_context(open_log(self.log_file))
            self._offset = self._log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                umask=PRIVATE,
                # Ctrl-C reaches this process only, which then stops the server in order.
                start_new_session=True,
            )
        except OSError as error:
            raise ServerError(
                "the server could not be launched", where=self._place(), why=str(error)
            ) from error

    def _environment(self) -> dict[str, str]:
        # Left over from elsewhere, these make the backend wait for workers that nobody starts.
        inherited = {k: v for k, v in os.environ.items() if k not in ORCHESTRATOR_ENVIRONMENT}
        if not self.launch.name:
            # A container gets variables by name; here everything is inherited.
            wanted = handed_on()
            inherited = {k: v for k, v in inherited.items() if k in wanted or not looks_secret(k)}
        return {**inherited, **self.launch.environment}

    def _command(self) -> list[str]:
        command = list(self.launch.command)
        if not self.launch.prepare:
            return command
        view = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="triton-")))
        link_view(self.repository, view)
        flag = f"--model-repository={MOUNT}"
        return [f"--model-repository={view}" if word == flag else word for word in command]

    def _await_ready(self) -> None:
        started = time.monotonic()
        while not self.answers():
            assert self._process is not None
            if self._process.poll() is not None:
                raise self._failure("Triton did not start")
            if time.monotonic() - started > self._ready_timeout_s:
                raise self._failure(f"Triton was not ready after {self._ready_timeout_s:.0f} s")
            time.sleep(POLL_S)
        self.ready_s = time.monotonic() - started

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if self.launch.name:
            remove_container(self.launch.name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _failure(self, what: str) -> ServerError:
        said = written_since(self._log, self._offset) if self._log else b""
        cause = launch_cause(said.decode(errors="replace"))
        return ServerError(what, where=self._place(), why=cause.why, fix=cause.fix)

    def _place(self) -> str:
        return str(place_of(self.log_file) or self.repository)


def link_view(repository: Path, view: Path) -> None:
    """Fills a directory with links to a repository, whose engine's path is the real one.

    The C++ backend is told an absolute path below ``/models``. In place, the repository may be
    anywhere and must not be changed, so the server gets a directory of links and one file of its
    own, the engine model's ``config.pbtxt``.

    Args:
        repository: The repository.
        view: An empty directory.
    """
    repository = repository.resolve()
    for entry in repository.iterdir():
        if entry.name != ENGINE and entry.is_dir():
            (view / entry.name).symlink_to(entry)
    model = view / ENGINE
    model.mkdir()
    for entry in (repository / ENGINE).iterdir():
        if entry.name != "config.pbtxt":
            (model / entry.name).symlink_to(entry)
    text = (repository / ENGINE / "config.pbtxt").read_text(encoding="utf-8")
    text = text.replace(f'"{MOUNT}/', f'"{repository}/')
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
