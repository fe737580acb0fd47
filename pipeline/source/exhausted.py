"""What is said where the memory of a device, or of the machine, runs out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pipeline.errors import StageError

_OF_A_GPU = "OutOfMemoryError"
# Of torch's allocator for the CPU, which raises a plain RuntimeError; before these words it names a
# line of its source.
_ON_CPU = re.compile(r"DefaultCPUAllocator: [^:]+: (.*)")


def ran_out(error: BaseException) -> str | None:
    """Says what was asked for, where an error tells that memory ran out; None for any other."""
    text = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or type(error).__name__ == _OF_A_GPU:
        return text
    found = _ON_CPU.search(text) if isinstance(error, RuntimeError) else None
    return found[1] if found else None


@contextlib.contextmanager
def explained_memory(
    what: str, fix: str, on_gpu: str = "", *, where: str | None = None
) -> Iterator[None]:
    """Says what to do where memory runs out.

    Args:
        what: What it is then, as in ``memory ran out during calibration``.
        fix: What to do.
        on_gpu: What else helps where it is a GPU's, behind that.
        where: The recipe, say.

    Raises:
        StageError: It did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        asked = ran_out(error)
        if asked is None:
            raise
        if type(error).__name__ == _OF_A_GPU:
            fix += on_gpu
        raise StageError(what, where=where, why=asked, fix=fix) from error
