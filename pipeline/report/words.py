"""Numbers and facts as people read them on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.tables import number
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.words import interval

Show = Callable[[float], str]
NOT_FINITE = "no finite number"
_ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "Arm64"}


def percent(value: float | None, digits: int = 2) -> str:
    """Formats a share as a percentage, 1.0 as 100; a dash for None."""
    return "-" if value is None else f"{value * 100:.{digits}f} %"


def spread(times: Mapping[str, float] | None) -> str:
    """Formats median and 95th percentile; a dash when nothing was measured."""
    return "-" if times is None else f"{number(times['p50'])} / {number(times['p95'])}"


def estimate(values: Mapping[str, float | None] | None, show: Show = number) -> str:
    """Formats an estimate in JSON with its interval, if it has one; a dash for None."""
    if values is None:
        return "-"
    return NOT_FINITE if values["value"] is None else interval(Estimate.from_dict(values), show)


def between(values: Mapping[str, float | None], show: Show = number) -> str:
    """Formats an interval; empty text where there is none to tell."""
    if values["low"] is None or values["high"] is None:
        return ""
    low, high = show(values["low"]), show(values["high"])
    # The unit once: "96.89 to 97.33 %".
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(f' {unit}')} to {high}"


def machine_words(machine: Mapping[str, Any]) -> str:
    """Describes a machine as people name one: ``AMD EPYC (x86-64), 2 processors``."""
    known = {"processor", "architecture", "cpus"}
    parts = []
    if processor := machine.get("processor"):
        parts.append(str(processor))
    if architecture := machine.get("architecture"):
        shown = _ARCHITECTURES.get(architecture, architecture)
        parts = [f"{parts[0]} ({shown})"] if parts else [str(shown)]
    if (cpus := machine.get("cpus")) is not None:
        parts.append("1 processor core" if cpus == 1 else f"{number(cpus)} processor cores")
    parts += [
        f"{name.replace('_', ' ')} {number(value)}"
        for name, value in machine.items()
        if name not in known and value is not None
    ]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Formats seconds as people say them: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def as_yaml(value: object) -> str:
    """Formats JSON values as YAML, in their own order."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88))
