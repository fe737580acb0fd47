"""Processes that tests start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .conftest import PROJECT


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts a process in the project's folder; it has ended after the block, whatever happens."""
    with subprocess.Popen(
        command, cwd=PROJECT, **{"stdout": subprocess.PIPE, **options}
    ) as process:
        try:
            yield process
        finally:
            process.kill()
