"""Runs the parts one after the other, each in a process with a limit of time, and writes JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.gpu_check.task import PROJECT

SCHEMA = 1
# What each part may take of the eight minutes. What one leaves goes to those after it.
PARTS = {
    "exports": (150, "ModelOpt on the device against the CPU export, tensor by tensor"),
    "products": (40, "INT8 and FP8 matrix products with our scales against the reference"),
    "batches": (50, "dependence of greedy text on the batch"),
    "machine": (30, "doctor and plan against nvidia-smi and torch"),
    "footprint": (200, "memory and time of quantizing 1B and 7B shapes"),
}
TOTAL_S = 480
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "numpy", "trtllm-pipeline")
SAID_CHARACTERS = 2000


def main() -> int:
    """Runs the command; the exit code is that of the process."""
    given = parse()
    if given.device == "cuda" and (reason := no_cuda()):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 3
    started = time.monotonic()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "device": given.device,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(given.device),
        "parts": {},
    }
    names = list(given.only)
    for number, name in enumerate(names):
        later = sum(share(rest, given.seconds) for rest in names[number + 1 :])
        limit = given.seconds - (time.monotonic() - started) - later
        result = run_part(name, given.device, given.formats, max(limit, 1.0))
        report["parts"][name] = result
        print(line(name, result), flush=True)
    report["seconds"] = round(time.monotonic() - started, 1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"report: {given.output}")
    bad = {"failed", "cut off"}
    return int(any(part["status"] in bad for part in report["parts"].values()))


def parse() -> argparse.Namespace:
    """Reads the command line."""
    lines = [f"  {name:<10} {about}, {seconds} s" for name, (seconds, about) in PARTS.items()]
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="What a CUDA GPU does with this project, without TensorRT.",
        epilog="parts:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, nargs="?", default=Path("build/gpu-check.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", type=words(PARTS), default=list(PARTS), help="parts, by commas")
    parser.add_argument("--formats", default="", help="formats, by commas; all unless given")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="time for all parts")
    return parser.parse_args()


def words(known: Sequence[str] | dict[str, Any]) -> Any:
    """A type for argparse: names by commas, in the order of those that are known."""

    def read(text: str) -> list[str]:
        asked = text.split(",")
        if wrong := [word for word in asked if word not in known]:
            message = f"there is no part {', '.join(wrong)}; parts: {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return [name for name in known if name in asked]

    return read


def share(name: str, total: float) -> float:
    """Seconds that are kept for a part."""
    return PARTS[name][0] * total / TOTAL_S


def no_cuda() -> str | None:
    """Why there is no CUDA device; None where there is one."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return (
            f"this torch is a CPU build ({torch.__version__}); install a CUDA build, as "
            "docs/gpu.md says under What the box needs"
        )
    return f"torch {torch.__version__} sees no CUDA device; --device cpu runs what needs none"


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"platform": platform.platform(), "python": platform.python_version()}
    found["cores"] = os.cpu_count()
    found |= {package: installed(package) for package in PACKAGES}
    if device == "cuda":
        import torch

        row = torch.cuda.get_device_properties(0)
        found |= {"cuda": torch.version.cuda, "gpu": row.name, "gpu_bytes": row.total_memory}
        found["sm"] = 10 * row.major + row.minor
    return found


def installed(package: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_part(name: str, device: str, formats: str, limit_s: float) -> dict[str, Any]:
    """One part's cases and what came of it, however it ended."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work = Path(folder)
        results, log = work / "results.jsonl", work / "log"
        command = [sys.executable, "-m", "scripts.gpu_check.part", name]
        command += [f"--device={device}", f"--work={work / 'files'}", f"--results={results}"]
        (work / "files").mkdir()
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*command, f"--formats={formats}"],
                stdout=said,
                stderr=said,
                cwd=PROJECT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
        cases = [json.loads(text) for text in lines if text.endswith("}")]
        tail = log.read_text(encoding="utf-8", errors="replace").strip()[-SAID_CHARACTERS:]
    status, reason = outcome(code, cases, limit_s, tail)
    return {
        "status": status,
        **({"reason": reason} if reason else {}),
        "seconds": round(time.monotonic() - started, 1),
        "cases": cases,
    }


def outcome(
    code: int | None, cases: Sequence[dict[str, Any]], limit_s: float, said: str
) -> tuple[str, str]:
    """The part's status and, where it did not pass, why."""
    if code is None:
        return "cut off", f"{limit_s:.0f} s were over after {len(cases)} cases"
    if code:
        return "failed", f"it ended with exit code {code} after {len(cases)} cases: {said}"
    failed = [case for case in cases if case["status"] == "failed"]
    if failed:
        return "failed", "; ".join(f"{case['case']}: {case['reason']}" for case in failed[:3])
    if all(case["status"] == "skipped" for case in cases):
        reasons = dict.fromkeys(case["reason"] for case in cases)
        return "skipped", "; ".join(reasons) or "no case was asked for"
    return "passed", ""


def line(name: str, result: dict[str, Any]) -> str:
    """One line for a terminal."""
    counts = Counter(case["status"] for case in result["cases"])
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no case"
    reason = f"  {result['reason'].splitlines()[-1]}" if "reason" in result else ""
    return f"{name:<10} {result['status']:<8} {result['seconds']:6.1f} s  {told}{reason}"


if __name__ == "__main__":
    sys.exit(main())
