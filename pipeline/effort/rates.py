"""The measured rates of a machine that hours follow from, and where they are remembered."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.economics import rates as processor_rates
from pipeline.processor import multiplies_bfloat16, processor_name
from pipeline.reading.json_text import read_json
from pipeline.store.artifact import MANIFEST
from pipeline.store.files import write_atomically

NAME = "machine.json"
FLOAT32 = "float32"
# What AMX makes of products in bfloat16 against those in float32, where it was not measured: six
# times on the processor that it was (2 cores, Xeon with AMX), of which half counts.
AMX_GAIN = 3.0


@dataclass(frozen=True)
class DeviceRates:
    """The rates of a processor or a GPU.

    Attributes:
        name: As people call it.
        operations: Multiplications and additions a second of a product of matrices, by dtype.
        memory: Bytes a second that it reads from its memory.
        copies: Bytes a second from the machine's memory to a GPU's; None of a processor.
    """

    name: str
    operations: Mapping[str, float]
    memory: float
    copies: float | None = None

    def products(self, dtype: str) -> float:
        """Returns the rate of a dtype; float32's where it was not measured."""
        return self.operations.get(dtype, self.operations[FLOAT32])


@dataclass(frozen=True)
class Rates:
    """What was measured of a machine.

    Attributes:
        measured: The day; None where only what takes a moment was.
        cpu: The processor.
        read: Bytes a second from the disk of the build directory; None where it was not measured.
        write: Bytes a second to it, until they are on the disk.
        cuda: The GPU; None where there is none, or it was not measured.
    """

    measured: str | None
    cpu: DeviceRates
    read: float | None = None
    write: float | None = None
    cuda: DeviceRates | None = None

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> DeviceRates:
        """Returns the rates of the device that a recipe's ``quantize.device`` takes."""
        return self.cpu if wanted == "cpu" or self.cuda is None else self.cuda

    def disk(self, read: float, written: float) -> float | None:
        """Returns the seconds of reading and writing; None where the disk was not measured."""
        if self.read is None or self.write is None:
            return None
        return read / self.read + written / self.write

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return asdict(self)


def known_rates(remembered: Path) -> Rates | None:
    """Returns what ``doctor --measure`` remembered, or measures what takes a moment.

    Args:
        remembered: The folder of the file.

    Returns:
        The rates; None without NumPy, or for a folder that may not be written to.
    """
    if (found := _remembered(remembered / NAME)) is not None:
        return found
    processor = processor_rates.processor(remembered, None)
    if processor is None:
        return None
    float32 = processor.operations["float32"]
    assert float32 is not None
    operations = {FLOAT32: float32}
    if multiplies_bfloat16():
        operations["bfloat16"] = float32 * AMX_GAIN
    return Rates(None, DeviceRates(processor.name, operations, processor.bandwidth))


def remember(folder: Path, rates: Rates) -> Path:
    """Writes rates to where :func:`known_rates` finds them.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    values = {**_this_machine(), **rates.as_dict()}
    write_atomically(path, f"{json.dumps(values, indent=1)}\n".encode())
    return path


def _remembered(path: Path) -> Rates | None:
    if (path.parent / MANIFEST).exists():
        return None  # an artifact has no rates of this machine
    try:
        values = read_json(path)
        if any(values[key] != own for key, own in _this_machine().items()):
            return None  # the folder came from another machine
        cuda = values["cuda"]
        return Rates(
            str(values["measured"]),
            _device(values["cpu"]),
            _rate(values["read"]),
            _rate(values["write"]),
            None if cuda is None else _device(cuda),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # as if it had never been written


def _device(values: Mapping[str, Any]) -> DeviceRates:
    operations = {str(name): _rate(rate) for name, rate in values["operations"].items()}
    if FLOAT32 not in operations:
        msg = "there is nothing to go by"
        raise ValueError(msg)
    copies = values["copies"]
    return DeviceRates(
        str(values["name"]),
        operations,
        _rate(values["memory"]),
        None if copies is None else _rate(copies),
    )


def _rate(value: Any) -> float:
    # bool is an int, and Python's JSON has numbers that are not finite.
    if type(value) not in (int, float) or not 0 < value < math.inf:
        msg = f"{value!r} is no rate"
        raise ValueError(msg)
    return float(value)


def _this_machine() -> dict[str, Any]:
    return {"processor": processor_name(), "cpus": len(os.sched_getaffinity(0))}
