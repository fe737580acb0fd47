"""Makes a test run on a machine that has the doubles instead of the real programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BIN = Path(__file__).parent / "bin"
RUNTIME = Path(__file__).parent / "runtime"
PROJECT = Path(__file__).parents[3]


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    programs: tuple[str, ...] = ("trtllm-build", "nvidia-smi", "mpirun"),
    tensorrt_llm: str | None = "1.2.1",
    tensorrt: str | None = "10.14.1.48",
    **settings: str,
) -> None:
    """Replaces the PATH and the installed TensorRT-LLM until the end of the test.

    Args:
        folder: An empty directory.
        programs: The doubles on the PATH; nothing else is.
        tensorrt_llm: The version that seems to be installed; None for none.
        tensorrt: That of TensorRT beside it; None for none.
        settings: The double's environment without its prefix, such as ``sm="89"``.
    """
    path, site = folder / "bin", folder / "site"
    path.mkdir(parents=True)
    for program in programs:
        (path / program).symlink_to(BIN / program)
    (path / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(f"TRTLLM_BUILD_DOUBLE_{name.upper()}", value)
    for name, version in {"tensorrt-llm": tensorrt_llm, "tensorrt": tensorrt}.items():
        if version and tensorrt_llm:
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
    if tensorrt_llm:
        monkeypatch.syspath_prepend(site)
        # For the scripts that open an engine, not for this process.
        monkeypatch.setenv("PYTHONPATH", f"{RUNTIME}:{PROJECT}")
