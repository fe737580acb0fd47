"""The process of llama.cpp's server, as its supervisor has it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from pipeline.errors import ServerError
from pipeline.targets.llamacpp.child import HURRY, KILL
from pipeline.triton.surroundings import PRIVATE, passed_on

_ROOT = Path(__file__).resolve().parents[3]
# Beyond what requests in flight get: its own end, on a busy machine too.
_CLEAR_UP_S = 5.0


@dataclass(frozen=True)
class Settings:
    """What the server is started with; it goes to the process over a pipe.

    Attributes:
        model: The GGUF file.
        name: What the model is called in answers.
        host: Address to listen on.
        port: Where it listens.
        slots: Requests that are generated together.
        context: Tokens of a sequence, prompt and answer together.
        batch: Tokens of a step.
        threads: That compute.
        kv_cache: ``f16`` or ``f32``.
        grace_s: Seconds that a stopping server waits for requests in flight.
        key: What clients have to send; empty for none.
    """

    model: str
    name: str
    host: str
    port: int
    slots: int
    context: int
    batch: int
    threads: int
    kv_cache: str
    grace_s: float
    key: str = field(default="", repr=False)


class LlamaCppProcess:
    """One run of the server.

    Args:
        settings: What it is started with.
        log: Receives what it says.
        variables: Names of environment variables that it gets beyond the usual ones.

    Raises:
        ServerError: It could not be launched.
    """

    def __init__(self, settings: Settings, log: IO[bytes], variables: Sequence[str] = ()) -> None:
        self._grace_s, self._hurried = settings.grace_s, False
        # OpenMP's threads otherwise wait for each other by turning in circles: on a machine with
        # something else to do a token then takes ten times as long, measured on two processors.
        environment = {"OMP_WAIT_POLICY": "passive", **passed_on(os.environ, variables)}
        # The same packages as here, wherever they are.
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        try:
            # A session of its own: Ctrl-C reaches the supervisor only, which stops in order.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.targets.llamacpp.child"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                umask=PRIVATE,
                start_new_session=True,
            )
            assert self._child.stdin
            self._child.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise ServerError(
                "llama.cpp's server could not be launched", where=settings.model, why=str(error)
            ) from error

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        return self._child.poll()

    def hurry(self) -> None:
        """Ends a stop that waits for requests in flight, or makes the next one not wait."""
        self._hurried = True
        if self._child.stdin and self._child.stdin.closed:
            self._child.send_signal(HURRY)

    def stop(self, *, at_once: bool = False) -> None:
        """Ends the server and waits until it is gone.

        Args:
            at_once: Do not wait for requests in flight.
        """
        pipe = self._child.stdin
        # Both fail with a broken pipe when the process is already gone.
        if pipe and not pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                if at_once or self._hurried:
                    pipe.write(KILL)
                pipe.close()
        try:
            self._child.wait(_CLEAR_UP_S + (0.0 if at_once else self._grace_s))
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
