"""What is said where the memory of a device runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.dependencies import require
from pipeline.errors import StageError


@contextlib.contextmanager
def explained_memory(work: str, fix: str) -> Iterator[None]:
    """Says what to do where memory runs out.

    Args:
        work: What it ran out during.
        fix: What to do.

    Raises:
        StageError: It did.
    """
    torch = require("torch", "quantize")
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            f"memory ran out during {work}", why=str(error).partition("\n")[0], fix=fix
        ) from error
