"""``doctor`` and ``plan`` with a real ``nvidia-smi``, held against what torch sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

from scripts.gpu_check.task import PROJECT, Cases, Task, case, verdict

# What the driver keeps of the memory that nvidia-smi reports.
MEMORY_SHARE = (0.9, 1.02)
TIMEOUT_S = 30


def cases(task: Task) -> Cases:
    """``nvidia-smi`` as this project reads it, ``doctor``, and ``plan`` with and without a GPU."""
    if task.device != "cuda":
        yield case("nvidia-smi", "skipped", reason="needs a CUDA device")
        return
    if shutil.which("nvidia-smi") is None:
        yield case("nvidia-smi", "skipped", reason="nvidia-smi is not installed")
        return
    from pipeline.targets.tensorrt.environment import inspect_machine

    found = inspect_machine()
    gpus = [{"name": gpu.name, "sm": gpu.sm, "memory": gpu.memory_mib << 20} for gpu in found.gpus]
    yield verdict(
        "nvidia-smi",
        [found.problem] if found.problem else disagreements(gpus, torch_gpus()),
        driver=found.driver,
        gpus=gpus,
        torch=torch_gpus(),
    )
    doctor = command("doctor", "--json")
    rows = (doctor["answer"] or {}).get("findings", [])
    values = [row["value"] for row in rows if row["name"] == "NVIDIA GPU"]
    named = all(gpu["name"] in " ".join(values) for gpu in gpus)
    yield verdict(
        "doctor",
        [*doctor["problems"], *([] if named else [f"doctor names {values}, not the GPUs"])],
        answer=doctor["answer"],
    )
    settings = ["configs/demo.yaml", "--set", "compile.target=tensorrt", "--json"]
    plan = command("plan", *settings, "--build-dir", str(task.work / "build"))
    engine = (plan["answer"] or {}).get("engine")
    yield verdict("plan", plan["problems"], engine=engine)


def torch_gpus() -> list[dict[str, Any]]:
    """The GPUs that torch sees; in another order than ``nvidia-smi``'s, perhaps."""
    import torch

    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {"name": row.name, "sm": 10 * row.major + row.minor, "memory": row.total_memory}
        for row in properties
    ]


def disagreements(read: list[dict[str, Any]], torch: list[dict[str, Any]]) -> list[str]:
    """What this project read of ``nvidia-smi`` and torch does not say."""
    if len(read) != len(torch):
        return [f"nvidia-smi lists {len(read)} GPUs, torch {len(torch)}"]
    by_name = {"key": lambda row: (row["name"], row["memory"])}
    found = []
    for ours, theirs in zip(sorted(read, **by_name), sorted(torch, **by_name), strict=True):
        found += [
            f"{key} is {ours[key]} by nvidia-smi and {theirs[key]} by torch"
            for key in ("name", "sm")
            if ours[key] != theirs[key]
        ]
        low, high = MEMORY_SHARE
        if ours["memory"] and not low < theirs["memory"] / ours["memory"] < high:
            found.append(
                f"memory is {ours['memory']} by nvidia-smi and {theirs['memory']} by torch"
            )
    return found


def command(*arguments: str) -> dict[str, Any]:
    """Runs one of this project's commands and reads its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        return {"answer": None, "problems": [f"exit code {done.returncode}: {said}"]}
    return {"answer": json.loads(done.stdout), "problems": []}
