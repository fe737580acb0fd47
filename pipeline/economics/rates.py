"""How fast this machine's processor reads memory and multiplies, measured and remembered."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.dependencies import installed
from pipeline.economics.hardware import Hardware
from pipeline.processor import processor_name
from pipeline.reading.json_text import read_json
from pipeline.store.artifact import MANIFEST
from pipeline.store.files import write_atomically

NAME = "processor.json"
_RATES = ("bytes_per_second", "float32_operations_per_second")
# Larger than the caches of two cores' share of any server processor sold today.
_READ_BYTES = 64 << 20
_SIDE = 512
_REPEATS = 3
# The fastest of many short tries is one that other processes left alone.
_SECONDS = 0.1


def processor(remembered: Path, memory: int | None) -> Hardware | None:
    """Describes this machine's processor by its measured rates.

    The rates are measured once, which takes a fraction of a second, and kept in a file. They are
    those that NumPy reaches: of a scalar product of vectors that no cache holds, and of a product
    of float32 matrices, on all processors that this process may use.

    Args:
        remembered: The folder of the file. An artifact stays as it is: what it does not hold is
            not measured for it.
        memory: Bytes that a process can use.

    Returns:
        The processor; None without NumPy, and for an artifact without rates.
    """
    if installed("numpy") is None:
        return None
    name, cpus = processor_name(), len(os.sched_getaffinity(0))
    rates = _read(remembered / NAME, name, cpus)
    if rates is None:
        if (remembered / MANIFEST).exists():
            return None
        rates = measured_now(cpus)
        _keep(remembered, rates)
    return Hardware(
        name=f"{cpus} CPUs of {name}",
        source=f"measured here on {rates['measured']}",
        bandwidth=float(rates["bytes_per_second"]),
        # INT8 is multiplied by other instructions, whose rate NumPy cannot tell.
        operations={"float32": float(rates["float32_operations_per_second"]), "int8": None},
        memory=memory,
    )


@cache
def measured_now(cpus: int) -> dict[str, Any]:
    """Measures the processor, once in a process, as :func:`processor` does; NumPy must be there.

    Args:
        cpus: How many of this process work.

    Returns:
        ``processor``, ``cpus``, the day as ``measured``, ``bytes_per_second`` and
        ``float32_operations_per_second``.
    """
    return {"processor": processor_name(), "cpus": cpus, **_measure(cpus)}


def _read(path: Path, name: str, cpus: int) -> dict[str, Any] | None:
    try:
        rates = read_json(path)
        same = (rates["processor"], rates["cpus"]) == (name, cpus)
        known = isinstance(rates["measured"], str) and all(_is_rate(rates[key]) for key in _RATES)
        return rates if same and known else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # measured again


def _is_rate(value: object) -> bool:
    # bool is an int, and Python's JSON has numbers that are not finite.
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


def _keep(folder: Path, rates: dict[str, Any]) -> None:
    # A plan of a recipe that was never run leaves nothing behind.
    if folder.is_dir() and os.access(folder, os.W_OK):
        text = json.dumps(rates, indent=1)
        write_atomically(folder / NAME, f"{text}\n".encode())


def _measure(cpus: int) -> dict[str, Any]:
    import numpy as np

    count = _READ_BYTES // 4 // cpus
    vectors = [np.ones(count, np.float32) for _ in range(cpus)]
    matrices = [np.ones((_SIDE, _SIDE), np.float32) for _ in range(cpus)]
    with ThreadPoolExecutor(cpus) as threads:

        def fastest(work: Callable[[Any], object], parts: list[Any]) -> float:
            times: list[float] = []
            while len(times) < _REPEATS or sum(times) < _SECONDS:
                started = time.perf_counter()
                list(threads.map(work, parts))
                times.append(time.perf_counter() - started)
            return min(times)

        read = fastest(lambda vector: float(vector @ vector), vectors)
        multiplied = fastest(lambda matrix: matrix @ matrix, matrices)
    return {
        "measured": time.strftime("%Y-%m-%d"),
        "bytes_per_second": cpus * count * 4 / read,
        "float32_operations_per_second": cpus * 2 * _SIDE**3 / multiplied,
    }
