"""Starts a server on a repository of the LLM API, with this stand-in for the package."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.triton.server import TritonServer

PACKAGE = Path(__file__).parent / "tensorrt_llm"


@contextmanager
def llm_server(repository: Path, folder: Path) -> Iterator[TritonServer]:
    """A server on a copy of a repository, whose engine model finds the stand-in beside itself.

    Args:
        repository: As the pipeline made it.
        folder: An empty one, for the copy and the server's log.
    """
    copy = folder / "repository"
    shutil.copytree(repository, copy, symlinks=True)
    # The Python backend has the model's version folder on its path.
    shutil.copytree(PACKAGE, copy / "tensorrt_llm" / "1" / PACKAGE.name)
    with TritonServer(copy, log_file=folder / "triton.log", watchdog=False) as server:
        yield server
