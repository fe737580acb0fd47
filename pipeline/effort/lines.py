"""What ``plan`` prints of an effort, and ``doctor`` of the rates that it follows from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.effort.example import WORDS, example
from pipeline.effort.rates import NAME, DeviceRates, Rates
from pipeline.effort.stages import Machine, StageEffort
from pipeline.progress.pace import rough_time
from pipeline.tables import number, size

UNKNOWN = "-"
_WIDTHS = (11, 13, 12, 12)


def effort_lines(found: Sequence[StageEffort], machine: Machine) -> Iterator[str]:
    """Yields a table of the stages that are to run; nothing where all is cached.

    Args:
        found: Of :func:`pipeline.effort.stages.efforts`.
        machine: What it was estimated for.
    """
    if not found:
        return
    yield f"about what it takes on this machine ({_has(machine)}):"
    yield from _table(found)
    if said := _about_times(found, machine):
        yield f"  {said}"


def measured_lines(rates: Rates, build: Path) -> Iterator[str]:
    """Yields measured rates, and what they mean for a model of 8 billion parameters.

    Args:
        rates: Those of :func:`pipeline.effort.measure.measure`.
        build: The build directory.
    """
    yield f"measured, and kept in {build / 'store' / NAME} for plan:"
    for device in (rates.cpu, rates.cuda):
        if device is not None:
            yield f"  {device.name}: {_device_words(device)}"
    if rates.read is not None and rates.write is not None:
        yield f"  disk of {build}: reads {_bytes(rates.read)}, writes {_bytes(rates.write)}"
    yield f"so about, for {WORDS}:"
    yield from _table(example(rates, build))


def _device_words(device: DeviceRates) -> str:
    products = [
        f"{number(rate / 1e9, 3)} GFLOP/s {dtype}" for dtype, rate in device.operations.items()
    ]
    copies = [] if device.copies is None else [f"copies {_bytes(device.copies)}"]
    return ", ".join([*products, f"memory {_bytes(device.memory)}", *copies])


def _bytes(rate: float) -> str:
    return f"{number(rate / 1e9, 3)} GB/s"


def _table(found: Sequence[StageEffort]) -> Iterator[str]:
    yield _row("stage", "peak memory", "disk", "time")
    for stage in found:
        yield _row(
            stage.stage,
            size(stage.memory.likely) if stage.memory else UNKNOWN,
            size(stage.disk.kept) if stage.disk.kept else UNKNOWN,
            rough_time(stage.seconds.all) if stage.seconds else UNKNOWN,
        )
    if len(found) > 1:
        peaks = [stage.memory.likely for stage in found if stage.memory]
        times = [stage.seconds.all for stage in found if stage.seconds]
        yield _row(
            "in all",
            size(max(peaks)) if peaks else UNKNOWN,
            size(sum(stage.disk.kept for stage in found)),
            rough_time(sum(times)) if times else UNKNOWN,
        )


def _has(machine: Machine) -> str:
    known = [machine.rates.cpu.name] if machine.rates else []
    if machine.rates and machine.rates.cuda:
        known.append(machine.rates.cuda.name)
    if machine.memory is not None:
        known.append(f"{size(machine.memory)} of memory")
    if machine.free is not None:
        known.append(f"{size(machine.free)} of disk")
    return ", ".join(known)


def _about_times(found: Sequence[StageEffort], machine: Machine) -> str | None:
    if machine.rates is None or not any(stage.seconds for stage in found):
        return "Times are not known: trtllm-pipeline doctor --measure takes this machine's rates."
    if machine.rates.measured is None:
        return (
            "Times are rough, and without those of the disk: trtllm-pipeline doctor --measure "
            "takes the rates once."
        )
    return None


def _row(*cells: str) -> str:
    first, *others = zip(cells, _WIDTHS, strict=True)
    return f"  {first[0]:<{first[1]}}" + "".join(f"{cell:>{width}}" for cell, width in others)
