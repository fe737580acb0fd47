"""Chooses where the log of a service goes, and where what is said meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.service.sink import STREAMS, Sink
from pipeline.store.deployed import build_folder
from pipeline.triton.compose import project_name

STREAM = "-"
LIMIT_BYTES = 16 << 20
"""Size from which a log in its default place is put aside; one older one is kept."""


def destinations(log: str | None, repository: Path, *, json: bool) -> tuple[Sink, Sink]:
    """Opens where the server's log goes, and where our own lines go.

    Args:
        log: A file, a FIFO, ``-`` for the stream of our lines, or None for the default: that stream
            where it is no terminal, else a file that :func:`default_place` names.
        repository: What is served.
        json: Whether standard output is kept for one JSON document; our lines go to standard error
            then.

    Returns:
        The log's sink and ours, which may be the same.

    Raises:
        UsageError: The log cannot be written.
    """
    stream = 2 if json else 1
    voice = Sink(stream)
    if log is None:
        place = default_place(repository) if os.isatty(stream) else None
        return (Sink.open(place, LIMIT_BYTES) if place else voice), voice
    if log == STREAM:
        return voice, voice
    if log in STREAMS:
        number = max(STREAMS[log], stream)  # never among JSON
        return (voice if number == stream else Sink(number)), voice
    return Sink.open(_checked(Path(log))), voice


def default_place(repository: Path) -> Path | None:
    """Names the log's file: in the build's folder, else in the user's folder for such files.

    Args:
        repository: What is served.

    Returns:
        A file that can be written; None where there is no place for one.
    """
    folder = build_folder(repository)
    if folder and _is_writable(folder / "triton.log"):
        return folder / "triton.log"
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    kept = Path(state).expanduser() / "trtllm-pipeline" / f"{project_name(repository)}.log"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return kept if _is_writable(kept) else None


def _is_writable(file: Path) -> bool:
    return os.access(file if file.exists() else file.parent, os.W_OK)


def _checked(path: Path) -> Path:
    where = f"--log {path}"
    if path.is_dir():
        raise UsageError("this is a folder", where=where, fix="Name a file in it")
    if not path.parent.is_dir():
        raise UsageError(
            "the folder of this file does not exist",
            where=where,
            fix=f"Create {path.parent} first, or name another file",
        )
    return path
