"""ModelOpt on the device against ModelOpt on the CPU, tensor by tensor.

Weights must be the same bits, scales agree to 1e-3. On the CPU it is a second export on the same
device, which shows that an export is repeatable. Then one layer at a time on the device against the
whole model on it, which must be the same bits throughout.
"""

from __future__ import annotations

import filecmp
import time
from pathlib import Path
from typing import Any

from scripts.gpu_check.task import Case, Cases, Task, quantize, recipe, verdict

SCALE_TOLERANCE = 1e-3
KV_CACHES = {"int8_sq": "int8", "fp8": "fp8"}


def cases(task: Task) -> Cases:
    """One case per format; those with an 8-bit KV cache calibrate it too."""
    from pipeline.formats import FORMATS

    for name in filter(task.wants, FORMATS):
        seconds, folders = {}, {}
        for turn, device in (("expected", "cpu"), ("found", task.device)):
            started = time.monotonic()
            wanted = recipe(name, device, kv_cache=KV_CACHES.get(name))
            folders[turn] = quantize(wanted, task.work / f"{name}-{turn}")
            seconds[turn] = round(time.monotonic() - started, 2)
        tensors = compare(folders["expected"], folders["found"])
        yield verdict(
            name,
            problems(tensors),
            compared=f"{task.device} with cpu",
            seconds_cpu=seconds["expected"],
            seconds_device=seconds["found"],
            tensors=len(tensors),
            weights_that_differ=[row for row in tensors if row.get("elements_that_differ")],
            largest_scale_error=max((row.get("error", 0.0) for row in tensors), default=0.0),
        )
        yield by_layer(name, folders["found"], task)


def by_layer(name: str, found: Path, task: Task) -> Case:
    """Compares what was written layer by layer with the whole model on the device."""
    wanted = recipe(name, task.device, kv_cache=KV_CACHES.get(name), at_once="model")
    started = time.monotonic()
    whole = quantize(wanted, task.work / f"{name}-whole")
    other = [path.name for path in whole.iterdir() if not same_bytes(path, found / path.name)]
    return verdict(
        f"{name} by layer",
        [f"{file} has other bytes" for file in sorted(other)],
        compared=f"one layer at a time with the whole model, both on {task.device}",
        seconds_whole=round(time.monotonic() - started, 2),
        differences=problems(compare(whole, found)),
    )


def same_bytes(one: Path, other: Path) -> bool:
    """Says whether both files are there and hold the same."""
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def compare(expected: Path, found: Path) -> list[dict[str, Any]]:
    """One row per tensor: how many elements differ, or how far scales are apart."""
    import numpy as np

    from pipeline.checkpoint.reader import TensorFile

    rows = []
    for path in sorted(expected.glob("rank*.safetensors")):
        here, there = TensorFile(path), TensorFile(found / path.name)
        for name in sorted(here.tensors.keys() | there.tensors.keys()):
            row: dict[str, Any] = {"tensor": name}
            rows.append(row)
            if name not in here.tensors or name not in there.tensors:
                row["problem"] = "is in one of the two only"
                continue
            a, b = here.read(name), there.read(name)
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                row["problem"] = f"is {a.dtype} {a.shape} and {b.dtype} {b.shape}"
            elif name.endswith("scaling_factor") or "scaling_factor_" in name:
                wanted, got = a.astype(np.float64), b.astype(np.float64)
                scale = np.maximum(np.abs(wanted), np.finfo(np.float32).tiny)
                row["error"] = float(np.max(np.abs(got - wanted) / scale, initial=0.0))
            else:
                same = np.ascontiguousarray(a).view(np.uint8) == np.ascontiguousarray(b).view(
                    np.uint8
                )
                differ = int(a.size - same.reshape(a.size, -1).all(axis=1).sum())
                row |= {"elements": int(a.size), "elements_that_differ": differ}
    return rows


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """What breaks the rule, the three worst of each kind."""
    found = [f"{row['tensor']} {row['problem']}" for row in rows if "problem" in row]
    scales = [row for row in rows if not row.get("error", 0.0) <= SCALE_TOLERANCE]
    scales.sort(key=lambda row: -row["error"])
    found += [f"{row['tensor']} is off by {row['error']:.1e}" for row in scales[:3]]
    weights = [row for row in rows if row.get("elements_that_differ")]
    weights.sort(key=lambda row: -row["elements_that_differ"] / row["elements"])
    found += [
        f"{row['elements_that_differ']} of {row['elements']} elements of {row['tensor']} differ"
        for row in weights[:3]
    ]
    return found
