"""Starts a server whose backend ``tensorrtllm`` is this stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.triton.server import TritonServer

BACKEND = Path(__file__).parent / "backend"
ENGINE_VARIABLE = "TENSORRTLLM_DOUBLE_ENGINE"


@contextmanager
def strict_server(
    repository: Path, engine: Path, log: Path, *, grpc_port: int = 0
) -> Iterator[TritonServer]:
    """A server on a repository for a GPU, which is served as it is.

    Args:
        repository: Built for one rank.
        engine: OpenVINO's engine directory of the same checkpoint.
        log: Where the server's log goes.
        grpc_port: 0 picks a free one.
    """
    before = os.environ.get(ENGINE_VARIABLE)
    os.environ[ENGINE_VARIABLE] = str(engine.resolve())
    backends = {"tensorrtllm": BACKEND.resolve()}
    try:
        with TritonServer(
            repository, log_file=log, grpc_port=grpc_port, backends=backends
        ) as server:
            yield server
    finally:
        if before is None:
            del os.environ[ENGINE_VARIABLE]
        else:
            os.environ[ENGINE_VARIABLE] = before
