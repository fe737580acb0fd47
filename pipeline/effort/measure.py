"""Takes the rates of a machine in a few seconds: products, memory and the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.economics import rates as processor_rates
from pipeline.effort.rates import FLOAT32, DeviceRates, Rates
from pipeline.errors import MissingDependencyError, UsageError
from pipeline.tables import size

MOST_BYTES, MOST_SECONDS = 1 << 30, 4.0
"""What is written and read back at most, and how long each may take."""
# Of what is free a test file takes one part in so many at most.
FREE_SHARE = 8
_BLOCK = 16 << 20
# A linear of an 8B model on two texts of 512 tokens; long enough for the caches not to matter.
_TOKENS, _IN, _OUT = 1024, 4096, 4096
_DTYPES = (FLOAT32, "bfloat16", "float16")
_REPEATS, _SECONDS, _LONG_S = 3, 0.3, 2.0
# What is copied to tell a GPU's memory and its way there.
_COPIED = 256 << 20


def measure(folder: Path, cpus: int | None = None) -> Rates:
    """Measures this machine.

    Products are torch's where it is installed, as those of the stages are, and NumPy's otherwise.

    Args:
        folder: On the disk of the build directory; it is created, and a file in it is gone at the
            end.
        cpus: Processors of this process; None asks the system.

    Raises:
        MissingDependencyError: NumPy is not installed.
        UsageError: The folder cannot be written to.
    """
    count = len(os.sched_getaffinity(0)) if cpus is None else cpus
    require("numpy", "quantize")
    processor = processor_rates.measured_now(count)
    try:
        torch = require("torch", "quantize")
    except MissingDependencyError:
        operations = {FLOAT32: float(processor["float32_operations_per_second"])}
        cuda = None
    else:
        operations = _products(torch, "cpu", lambda: None)
        cuda = _cuda(torch) if torch.cuda.is_available() else None
    read, write = measure_disk(folder)
    return Rates(
        processor["measured"],
        DeviceRates(
            f"{count} CPUs of {processor['processor']}",
            operations,
            float(processor["bytes_per_second"]),
        ),
        read,
        write,
        cuda,
    )


def measure_disk(folder: Path) -> tuple[float, float]:
    """Measures how fast files are read and written there, with one of 1 GiB at most.

    Args:
        folder: Is created; the file in it is removed at the end.

    Returns:
        Bytes a second of reading what no memory holds, and of writing until it is on the disk.

    Raises:
        UsageError: It cannot be written to, or is nearly full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stat = os.statvfs(folder)
        limit = min(MOST_BYTES, stat.f_bavail * stat.f_frsize // FREE_SHARE)
        if limit < _BLOCK:
            raise UsageError(
                "the disk is too full to be measured",
                where=str(folder),
                fix=f"Free {size(_BLOCK * FREE_SHARE)}, or name another --build-dir",
            )
        with tempfile.TemporaryFile(dir=folder, prefix="measured-", buffering=0) as file:
            return _read_and_write(file.fileno(), limit)
    except OSError as error:
        raise UsageError(
            "the disk cannot be measured",
            where=str(folder),
            why=error.strerror or str(error),
            fix="Correct the permissions, or name another --build-dir",
        ) from error


def _read_and_write(file: int, limit: int) -> tuple[float, float]:
    # Random, so that no file system finds a shorter way to keep it.
    block = memoryview(os.urandom(_BLOCK))
    written, started = 0, time.perf_counter()
    while written + _BLOCK <= limit and time.perf_counter() - started < MOST_SECONDS:
        written += os.pwrite(file, block, written)
    os.fsync(file)
    writing = written / (time.perf_counter() - started)
    # What is on the disk may leave the memory, so that it is read from there.
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    into, read, started = memoryview(bytearray(_BLOCK)), 0, time.perf_counter()
    while read < written and time.perf_counter() - started < MOST_SECONDS:
        read += os.preadv(file, [into], read)
    return read / (time.perf_counter() - started), writing


def _products(torch: Any, device: str, wait: Callable[[], None]) -> dict[str, float]:
    found = {}
    for name in _DTYPES:
        dtype = getattr(torch, name)
        left = torch.ones(_TOKENS, _IN, dtype=dtype, device=device)
        weight = torch.ones(_OUT, _IN, dtype=dtype, device=device)

        # As a linear does: where a processor has no instructions for 16 bits, a product with a
        # matrix that lies the other way takes ten times as long.
        def multiply(left: Any = left, weight: Any = weight) -> None:
            torch.nn.functional.linear(left, weight)
            wait()

        # A few rows, for which the device loads whatever it needs.
        multiply(left[:16])
        found[name] = 2 * _TOKENS * _IN * _OUT / _fastest(multiply)
    return found


def _cuda(torch: Any) -> DeviceRates:
    device = "cuda"
    here = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_COPIED, dtype=torch.uint8, device=device)
    other = torch.empty_like(there)

    def copy(to: Any, origin: Any) -> Callable[[], None]:
        def work() -> None:
            to.copy_(origin)
            torch.cuda.synchronize()

        return work

    return DeviceRates(
        torch.cuda.get_device_name(),
        _products(torch, device, torch.cuda.synchronize),
        # Every byte is read and written.
        2 * _COPIED / _fastest(copy(other, there)),
        _COPIED / _fastest(copy(there, here)),
    )


def _fastest(work: Callable[[], None]) -> float:
    """Seconds of the fastest of several tries, which other processes left alone.

    What takes long is tried once: beside that, what is made at first does not count.
    """

    def took() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    first = took()
    if first > _LONG_S:
        return first
    times: list[float] = []
    while len(times) < _REPEATS or sum(times) < _SECONDS:
        times.append(took())
    return min(times)
