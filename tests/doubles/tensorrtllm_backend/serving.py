"""Starts a server whose backend ``tensorrtllm`` is this stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.triton.server import TritonServer

BACKEND = Path(__file__).parent / "backend"
ENGINE_VARIABLE = "TENSORRTLLM_DOUBLE_ENGINE"
NOISE_VARIABLE = "TENSORRTLLM_DOUBLE_NOISE"
DRAFT_VARIABLE = f"{ENGINE_VARIABLE}_TENSORRT_LLM_DRAFT"


@contextmanager
def strict_server(
    repository: Path,
    engine: Path,
    log: Path,
    *,
    grpc_port: int = 0,
    noise: float = 0.0,
    draft: Path | None = None,
) -> Iterator[TritonServer]:
    """A server on a repository for a GPU, which is served as it is.

    Args:
        repository: Built for one rank.
        engine: OpenVINO's engine directory of the same checkpoint.
        log: Where the server's log goes.
        grpc_port: 0 picks a free one.
        noise: Standard deviation of what is added to every score, as a GPU's rounding would.
        draft: OpenVINO's engine directory for ``tensorrt_llm_draft``; None is the engine's.
    """
    given = {
        ENGINE_VARIABLE: str(engine.resolve()),
        DRAFT_VARIABLE: str((draft or engine).resolve()),
        NOISE_VARIABLE: str(noise),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    backends = {"tensorrtllm": BACKEND.resolve()}
    try:
        with TritonServer(
            repository,
            log_file=log,
            grpc_port=grpc_port,
            backends=backends,
            variables=tuple(given),
        ) as server:
            yield server
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
