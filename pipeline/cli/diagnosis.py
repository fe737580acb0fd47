"""What is installed on this machine, and what each compile target can do here."""

from __future__ import annotations

import platform
import sys

from pipeline.dependencies import MODELOPT, TRANSFORMERS, install, installed
from pipeline.targets import TARGETS, get_target
from pipeline.targets.base import Diagnosis, look_for


def diagnose() -> list[Diagnosis]:
    """Looks at Python, the packages that every target needs, and each target's own."""
    shared = [
        Diagnosis(
            "Python",
            platform.python_version(),
            (3, 10) <= sys.version_info[:2] <= (3, 12),
            "Use Python 3.10 to 3.12: ModelOpt 0.37 supports no other",
        ),
        Diagnosis("platform", f"{platform.system()} {platform.machine()}"),
        _pinned("nvidia-modelopt", MODELOPT, "quantize", "it writes the pinned checkpoint format"),
        _pinned(
            "transformers",
            TRANSFORMERS,
            "quantize",
            "with transformers 5 ModelOpt silently drops the rope base from the checkpoint",
        ),
        look_for("torch", "quantize", "quantizing and evaluating"),
        look_for("tritonclient", "client", "the gRPC client"),
    ]
    return shared + [finding for name in TARGETS for finding in get_target(name).findings()]


def _pinned(package: str, wanted: str, extra: str, reason: str) -> Diagnosis:
    found = installed(package)
    advice = f"{wanted} is needed: {reason}. {install(extra)}"
    return Diagnosis(package, found or "absent", found == wanted, advice)
