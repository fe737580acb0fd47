"""Whether there is an environment with vLLM beside this one, and how it is made."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.targets.base import Diagnosis
from pipeline.targets.vllm.elsewhere import INSTALL, find_vllm

_NAME = "vLLM"
_ADVICE = f"Only to run the folder here and to measure it; writing it needs no vLLM. {INSTALL}"


def beside() -> Path:
    """Returns the Python of the environment that the advice makes, beside this one."""
    prefix = Path(sys.prefix)
    return prefix.with_name(f"{prefix.name}-vllm") / "bin" / "python"


def findings() -> list[Diagnosis]:
    """Looks for vLLM in the environment beside this one."""
    python = beside()
    if not python.exists():
        return [Diagnosis(_NAME, "no environment of its own", False, _ADVICE, needed=False)]
    try:
        return [Diagnosis(_NAME, f"{find_vllm(str(python))} in {python}")]
    except PipelineError as error:
        why = f"{error.what}: {python}"
        return [Diagnosis(_NAME, why, False, _ADVICE, needed=False)]
