"""What stays in the store besides an engine: the timing cache, the log of a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.targets.tensorrt.build.command import CACHE_NAME, PREVIOUS_CACHE
from pipeline.targets.tensorrt.environment import Machine, Toolkit


def timing_folder(output: Path) -> Path:
    """Names the folder that timing caches are kept in: ``timing`` of the store.

    Args:
        output: A workspace in the store's ``tmp``; beside any other directory lies a folder of its
            own.
    """
    workspace = output.absolute().parent
    store = workspace.parent if workspace.name == "tmp" else workspace
    return store / "timing"


def cache_name(tools: Toolkit, machine: Machine) -> str:
    """Names the file of a timing cache, one per GPU model and TensorRT.

    TensorRT rejects a cache of another GPU or version, and ``trtllm-build`` then fails at its very
    end because there is none to save.
    """
    name, sm = machine.models[0] if machine.models else ("no-gpu", 0)
    model = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return f"{model}-sm{sm}-tensorrt-{tools.tensorrt}.cache"


def lend_cache(cache: Path, output: Path) -> None:
    """Copies the kept timing cache, if there is one, to where a build starts from it."""
    if cache.is_file():
        shutil.copyfile(cache, output / PREVIOUS_CACHE)


def keep_cache(output: Path, cache: Path) -> None:
    """Moves the timing cache of a finished build into the store, by rename."""
    (output / PREVIOUS_CACHE).unlink(missing_ok=True)
    written = output / CACHE_NAME
    if not written.is_file():
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    shutil.move(written, temporary)
    temporary.replace(cache)


def keep_log(log: Path, folder: Path) -> Path:
    """Saves the log of a failure, whose directory is about to be removed."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"failed-{log.name}"
    try:
        shutil.copyfile(log, kept)
    except OSError:
        return log  # the disk may be what is full
    return kept
