"""The pinned versions, in one place, and what each Triton container holds.

TensorRT-LLM removed its engine flow (``trtllm-build``, the C++ Triton backend) from its main branch
in July 2026; 1.2.1 is the last stable release that has it, so the pin is an end-of-life pin.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass

TENSORRT_LLM = "1.2.1"
TENSORRT = "10.14.1.48"
MODELOPT = "0.37.0"
TRANSFORMERS = "4.57.3"


@dataclass(frozen=True)
class Container:
    """One ``tritonserver:<tag>-trtllm-python-py3`` image.

    Attributes:
        tag: Its year and month.
        tensorrt_llm: The TensorRT-LLM inside; None where no engine flow is left.
        tensorrt: The TensorRT inside.
        cuda: The CUDA major version.
        tritonclient: The client released with it.
    """

    tag: str
    tensorrt_llm: str | None
    tensorrt: str | None
    cuda: int
    tritonclient: str | None = None

    @property
    def image(self) -> str:
        """The image's name in NVIDIA's catalog."""
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-trtllm-python-py3"


# From the Dockerfiles of tensorrtllm_backend's release branches.
CONTAINERS = (
    Container("25.09", "1.0.0", "10.11.0.33", 12),
    Container("25.10", "1.0.0", "10.11.0.33", 12),
    Container("25.12", "1.1.0", "10.13.3.9", 13),
    Container("26.01", "1.1.0", "10.13.3.9", 13),
    Container("26.02", "1.1.0", "10.13.3.9", 13),
    Container("26.04", "1.2.1", "10.14.1.48", 13, "2.68.0"),
    Container("26.05", "1.2.1", "10.14.1.48", 13, "2.69.0"),
    Container("26.06", "1.2.1", "10.14.1.48", 13, "2.70.0"),
    Container("26.07", "1.2.1", "10.14.1.48", 13, "2.71.0"),
)
DEFAULT_CONTAINER = next(container for container in CONTAINERS if container.tag == "26.06")


@dataclass(frozen=True)
class Finding:
    """One line of ``doctor``.

    Attributes:
        name: What was looked at.
        value: What was found.
        ok: Whether it is as it should be.
        advice: What to do when it is not.
    """

    name: str
    value: str
    ok: bool = True
    advice: str = ""


def installed(package: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; ``absent`` where there is none."""
    return {package: installed(package) or "absent" for package in packages}


def diagnose() -> list[Finding]:
    """What is installed here and which parts of the pipeline can run."""
    findings = [
        Finding(
            "Python",
            platform.python_version(),
            (3, 10) <= sys.version_info[:2] <= (3, 12),
            "Use Python 3.10 to 3.12: ModelOpt 0.37 supports no other",
        ),
        Finding("platform", f"{platform.system()} {platform.machine()}"),
    ]
    findings += [
        _pinned("nvidia-modelopt", MODELOPT, "quantize", "it writes the pinned checkpoint format"),
        _pinned(
            "transformers",
            TRANSFORMERS,
            "quantize",
            "with transformers 5 ModelOpt silently drops the rope base from the checkpoint",
        ),
        _present("torch", "quantize", "quantizing and evaluating"),
        _present("openvino", "cpu", "compiling for the CPU"),
        _present("openvino-genai", "cpu", "serving the CPU engine"),
        _present("nvidia-pytriton", "cpu", "the Triton server without a container"),
        _present("tritonclient", "client", "the gRPC client"),
    ]
    engine = installed("tensorrt-llm")
    findings.append(
        Finding(
            "tensorrt-llm",
            engine or "absent",
            engine in (None, TENSORRT_LLM),
            f"Use {TENSORRT_LLM}: later releases have no engine flow; "
            f"the image is {DEFAULT_CONTAINER.image}",
        )
    )
    return findings


def _pinned(package: str, wanted: str, extra: str, reason: str) -> Finding:
    found = installed(package)
    advice = f"pip install 'trtllm-pipeline[{extra}]' for {wanted}: {reason}"
    return Finding(package, found or "absent", found == wanted, advice)


def _present(package: str, extra: str, use: str) -> Finding:
    found = installed(package)
    advice = f"pip install 'trtllm-pipeline[{extra}]' for {use}"
    return Finding(package, found or "absent", found is not None, advice)
