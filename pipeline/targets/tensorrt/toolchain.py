"""The pinned TensorRT-LLM and TensorRT, and what each Triton container holds.

TensorRT-LLM removed its engine flow (``trtllm-build``, the C++ Triton backend) from its main branch
in July 2026; 1.2.1 is the last stable release that has it, so the pin is an end-of-life pin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import UnsupportedError

TENSORRT_LLM = "1.2.1"
TENSORRT = "10.14.1.48"

# The first pre-release whose package no longer depends on TensorRT.
ENGINE_FLOW_REMOVED = "1.3.0rc22"
WAY_OUT = (
    "The ways on are compile.target: llmapi, the LLM-API (not for int8_sq), and edgellm, TensorRT "
    "Edge-LLM; the checkpoint and everything before it stay as they are"
)

# NVIDIA's CUDA compatibility guide: the oldest driver branch that runs any minor version.
MINIMUM_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Container:
    """One ``tritonserver:<tag>-trtllm-python-py3`` image.

    Attributes:
        tag: Its year and month.
        tensorrt_llm: The TensorRT-LLM inside.
        tensorrt: The TensorRT inside.
        cuda: The CUDA major version.
    """

    tag: str
    tensorrt_llm: str
    tensorrt: str
    cuda: int

    @property
    def driver(self) -> int:
        """The oldest driver branch that runs it; data-center GPUs may use forward compatibility."""
        return MINIMUM_DRIVER[self.cuda]

    @property
    def image(self) -> str:
        """The image's name in NVIDIA's catalog."""
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-trtllm-python-py3"


# From the Dockerfiles of tensorrtllm_backend's release branches: every image from the first with
# TensorRT 10.11 to the last with the engine flow.
CONTAINERS = (
    Container("25.08", "0.21.0", "10.11.0.33", 12),
    Container("25.09", "1.0.0", "10.11.0.33", 12),
    Container("25.10", "1.0.0", "10.11.0.33", 12),
    Container("25.11", "1.2.0rc2", "10.13.3.9", 13),
    Container("25.12", "1.1.0", "10.13.3.9", 13),
    Container("26.01", "1.1.0", "10.13.3.9", 13),
    Container("26.02", "1.1.0", "10.13.3.9", 13),
    Container("26.03", "1.2.0rc8", "10.14.1.48", 13),
    Container("26.04", "1.2.1", "10.14.1.48", 13),
    Container("26.05", "1.2.1", "10.14.1.48", 13),
    Container("26.06", "1.2.1", "10.14.1.48", 13),
    Container("26.07", "1.2.1", "10.14.1.48", 13),
)
DEFAULT_CONTAINER = next(container for container in CONTAINERS if container.tag == "26.06")


@dataclass(frozen=True)
class Bulletin:
    """A published security notice about a pinned component.

    Attributes:
        component: What is affected.
        number: NVIDIA's number of the bulletin.
        fixed_in: The version it asks for; None where we know only that it is later than the pin.
    """

    component: str
    number: int
    fixed_in: str | None = None

    def __str__(self) -> str:
        asks = f"asks for {self.fixed_in}" if self.fixed_in else "is later than the pin"
        return f"{self.component} bulletin {self.number} {asks}"


# github.com/NVIDIA/product-security. No TensorRT-LLM both has the engine flow and satisfies them.
BULLETINS = (
    Bulletin("TensorRT-LLM", 5805, "1.3.0rc2"),
    Bulletin("TensorRT-LLM", 5840),
    Bulletin("TensorRT-LLM", 5883),
    Bulletin("TensorRT", 5855, "11.0"),
)


def container_for(tensorrt_llm: str, tensorrt: str, *, built_in: str | None = None) -> Container:
    """Finds the container that reads an engine: with the TensorRT-LLM and TensorRT that built it.

    Args:
        tensorrt_llm: The TensorRT-LLM that built it.
        tensorrt: Its TensorRT.
        built_in: The image it was built in, which is preferred; then the default one, then the
            newest.

    Raises:
        UnsupportedError: There is none; names those with the same TensorRT-LLM.
    """
    fitting = [c for c in CONTAINERS if (c.tensorrt_llm, c.tensorrt) == (tensorrt_llm, tensorrt)]
    if not fitting:
        raise UnsupportedError(
            f"no container is known with TensorRT-LLM {tensorrt_llm} and TensorRT {tensorrt}",
            where="engine.json",
            why="A TensorRT engine runs with the TensorRT that built it only. "
            f"{_shipped_in(tensorrt_llm)}",
            fix=f"Compile again in {DEFAULT_CONTAINER.image}",
        )
    named = [c for c in fitting if c.image == built_in]
    default = [c for c in fitting if c == DEFAULT_CONTAINER]
    return (named or default or fitting)[-1]


def _shipped_in(tensorrt_llm: str) -> str:
    """Which containers hold a TensorRT-LLM, as a sentence without its full stop."""
    holding = [c for c in CONTAINERS if c.tensorrt_llm == tensorrt_llm]
    if not holding:
        first, last = CONTAINERS[0].tag, CONTAINERS[-1].tag
        return (
            f"No Triton container from {first} to {last}, the last one with engines, holds "
            f"TensorRT-LLM {tensorrt_llm}"
        )
    versions = " or ".join(dict.fromkeys(c.tensorrt for c in holding))
    tags = ", ".join(c.tag for c in holding)
    return f"Triton {tags} holds TensorRT-LLM {tensorrt_llm} with TensorRT {versions}"


def check_tensorrt_llm(version: str) -> None:
    """Refuses a TensorRT-LLM that is not the pinned one.

    Raises:
        UnsupportedError: With the reason, the image to use and the way out.
    """
    if version == TENSORRT_LLM:
        return
    image = f"Use TensorRT-LLM {TENSORRT_LLM}: run inside {DEFAULT_CONTAINER.image}"
    if _version_key(version) >= _version_key(ENGINE_FLOW_REMOVED):
        raise UnsupportedError(
            f"TensorRT-LLM {version} cannot build engines",
            why="trtllm-build and the C++ Triton backend were removed upstream in July 2026; "
            f"{TENSORRT_LLM} is the last stable version that has them, and Triton "
            f"{CONTAINERS[-1].tag} the last container",
            fix=f"{image}. {WAY_OUT}",
        )
    raise UnsupportedError(
        f"TensorRT-LLM {version} is not the pinned {TENSORRT_LLM}",
        why="Checkpoint format, build options and engine plans differ between versions, and an "
        f"engine loads only in the version that built it. {_shipped_in(version)}",
        fix=image,
    )


def _version_key(version: str) -> tuple[int, ...]:
    """An order for versions such as 1.2.1, 1.3.0rc22 and 0.17.0.post1."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?:(a|b|rc)(\d+))?", version)
    if match is None:
        return (0,)
    major, minor, patch, phase, number = match.groups()
    stage = {"a": 0, "b": 1, "rc": 2, None: 3}[phase]
    return (int(major), int(minor), int(patch or 0), stage, int(number or 0))
