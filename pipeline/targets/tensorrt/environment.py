"""The GPUs and the TensorRT-LLM of this machine: what an engine is bound to.

A TensorRT engine runs only on the GPU model and with the TensorRT it was built for, so both are
part of its cache key. Nothing here imports CUDA or TensorRT-LLM: the driver's ``nvidia-smi`` and
package metadata answer.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.dependencies import installed
from pipeline.errors import MissingDependencyError
from pipeline.targets.tensorrt.gpus import Gpu
from pipeline.targets.tensorrt.process import ask
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER

ABSENT = "absent"
UNKNOWN = "unknown"
# nvidia-smi counts GPUs in PCI order, CUDA the fastest first unless it is told otherwise.
DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
QUERY = "index,uuid,name,compute_cap,memory.total,driver_version,mig.mode.current"
# A line of nvidia-smi -L below that of the GPU which is divided.
_SLICE = re.compile(r"^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")
_WHOLE = re.compile(r"^GPU (\d+): ")
# Of a MIG profile's nominal size, 5 GB of 1g.5gb, this much is there; NVIDIA's MIG user guide.
_SLICE_USABLE = 0.95
QUERY_TIMEOUT_S = 30


@dataclass(frozen=True)
class InstalledGpu:
    """One GPU of this machine, or a MIG slice of one.

    Attributes:
        index: Its number in ``nvidia-smi``.
        uuid: Its identity, as ``CUDA_VISIBLE_DEVICES`` accepts it.
        name: The product name; that of a slice ends as CUDA names it, ``MIG 3g.40gb``.
        sm: Compute capability times ten: 89 is Ada, 90 is Hopper.
        memory_mib: Total memory.
        divided: Whether MIG divides it, so that CUDA sees one of its slices instead.
    """

    index: int
    uuid: str
    name: str
    sm: int
    memory_mib: int
    divided: bool = False

    @property
    def device(self) -> str:
        """How Docker's ``--gpus`` names it."""
        return self.uuid if self.uuid.startswith("MIG-") else str(self.index)

    @property
    def model(self) -> Gpu:
        """The same GPU, as the pre-flight knows GPUs."""
        return Gpu(self.name, self.sm, self.memory_mib << 20)


@dataclass(frozen=True)
class Machine:
    """The GPUs that CUDA will see.

    Attributes:
        gpus: Visible GPUs, as CUDA counts them under :data:`DEVICE_ORDER`.
        driver: The driver's version; None without one.
        problem: Why there are no GPUs; empty when there are.
    """

    gpus: tuple[InstalledGpu, ...] = ()
    driver: str | None = None
    problem: str = ""

    @property
    def models(self) -> tuple[tuple[str, int], ...]:
        """Distinct GPU models, as (name, sm)."""
        return tuple(dict.fromkeys((gpu.name, gpu.sm) for gpu in self.gpus))


def inspect_machine(
    environ: Mapping[str, str] = os.environ, timeout_s: float = QUERY_TIMEOUT_S
) -> Machine:
    """Asks ``nvidia-smi`` for the GPUs; answers without any where there is no driver.

    Args:
        environ: ``CUDA_VISIBLE_DEVICES`` hides GPUs from the build as it does from CUDA.
        timeout_s: Seconds that each answer may take.
    """
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return Machine(problem="nvidia-smi is not installed")
    try:
        gpus, driver = parse_query(
            _ask(timeout_s, binary, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
        )
        divided = any(gpu.divided for gpu in gpus)
        slices = parse_slices(_ask(timeout_s, binary, "-L"), gpus) if divided else ()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Machine(problem=f"nvidia-smi does not answer: {error}")
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip().partition("\n")[0]
        return Machine(problem=f"nvidia-smi fails: {said or error.returncode}")
    except ValueError as error:
        return Machine(problem=f"nvidia-smi gave unexpected output: {error}")
    visible = _visible(gpus, slices, environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        return Machine((), driver, "CUDA_VISIBLE_DEVICES hides every GPU")
    if problem := _division_problem(visible, slices):
        return Machine((), driver, problem)
    return Machine(visible, driver)


def _ask(timeout_s: float, *command: str) -> str:
    """What ``nvidia-smi`` prints.

    Raises:
        OSError: It cannot be started.
        CalledProcessError, TimeoutExpired: It failed, or does not end.
    """
    answer = ask(command, timeout_s)
    answer.check_returncode()
    return answer.stdout


def parse_query(text: str) -> tuple[tuple[InstalledGpu, ...], str]:
    """Reads ``nvidia-smi --query-gpu --format=csv,noheader,nounits``.

    Returns:
        The GPUs and the driver's version.

    Raises:
        ValueError: A line is not of the queried form.
    """
    gpus, driver = [], ""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(QUERY.split(",")):
            raise ValueError(f"{row!r} does not have the fields {QUERY}")
        index, uuid, name, capability, memory, driver, mig = (field.strip() for field in row)
        if not index.isdecimal():
            raise ValueError(f"the field index is {index!r}, not a whole number")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", capability):
            raise ValueError(f"the field compute_cap is {capability!r}, not a version such as 8.9")
        major, _, minor = capability.partition(".")
        # Some integrated GPUs report "[N/A]" for memory that they share with the host.
        mib = int(memory) if memory.isdigit() else 0
        sm, divided = 10 * int(major) + int(minor or 0), mig == "Enabled"
        gpus.append(InstalledGpu(int(index), uuid, name, sm, mib, divided))
    if not gpus:
        raise ValueError("it lists no GPU")
    return tuple(gpus), driver


def parse_slices(text: str, gpus: tuple[InstalledGpu, ...]) -> tuple[InstalledGpu, ...]:
    """Reads the MIG slices that ``nvidia-smi -L`` lists below their GPU.

    Args:
        text: What it printed.
        gpus: The GPUs, from :func:`parse_query`.

    Raises:
        ValueError: A slice is below no GPU of those, or its profile does not say its memory.
    """
    by_index, whole, found = {gpu.index: gpu for gpu in gpus}, None, []
    for line in text.splitlines():
        if match := _WHOLE.match(line):
            whole = by_index.get(int(match[1]))
        elif match := _SLICE.match(line):
            size = re.search(r"(\d+)gb", match[1])
            if whole is None or size is None:
                raise ValueError(f"{line.strip()!r} is no slice of a GPU that it lists")
            mib = int(int(size[1]) * 1024 * _SLICE_USABLE)
            name = f"{whole.name} MIG {match[1]}"
            found.append(InstalledGpu(whole.index, match[2], name, whole.sm, mib))
    return tuple(found)


def _visible(
    gpus: tuple[InstalledGpu, ...], slices: tuple[InstalledGpu, ...], setting: str | None
) -> tuple[InstalledGpu, ...]:
    """CUDA's rule: names in order, until the first that does not exist; one slice and no more."""
    if setting is None:
        return gpus
    chosen: list[InstalledGpu] = []
    for word in (part.strip() for part in setting.split(",")):
        by_name = slices if word.startswith("MIG-") else gpus if word.startswith("GPU-") else ()
        found = [gpu for gpu in by_name if gpu.uuid.startswith(word)]
        found += [gpu for gpu in gpus if word == str(gpu.index)]
        if len(found) != 1:
            break
        if found[0] in slices:
            return tuple(chosen or found)
        chosen += found
    return tuple(chosen)


def _division_problem(
    visible: tuple[InstalledGpu, ...], slices: tuple[InstalledGpu, ...]
) -> str | None:
    """Why GPUs that MIG divides cannot be used whole; None when none is."""
    divided = [gpu for gpu in visible if gpu.divided]
    if not divided:
        return None
    names = [part.uuid for part in slices if part.index == divided[0].index]
    how = "it has no slice yet: nvidia-smi mig -cgi makes one, nvidia-smi -mig 0 makes it whole"
    if names:
        how = f"name one of its slices: CUDA_VISIBLE_DEVICES={names[0]}"
    return f"MIG divides GPU {divided[0].index}, so CUDA does not see it whole; {how}"


@dataclass(frozen=True)
class Toolkit:
    """The TensorRT-LLM that a build would use.

    Attributes:
        tensorrt_llm: Its version.
        tensorrt: The TensorRT it builds with; ``unknown`` for an installation we have no table for.
        cuda: The CUDA version, as far as it is known.
        image: The container to run it in; None when it is installed here.
    """

    tensorrt_llm: str
    tensorrt: str
    cuda: str
    image: str | None


def toolkit(environ: Mapping[str, str] = os.environ) -> Toolkit:
    """Finds the installed TensorRT-LLM, or else names the pinned container's.

    Args:
        environ: What says the CUDA version and, without its wheel, the TensorRT of an installed
            TensorRT-LLM: ``CUDA_VERSION`` and ``TRT_VERSION``, as NVIDIA's images set them.
    """
    here = installed("tensorrt-llm")
    if here is None:
        pinned = DEFAULT_CONTAINER
        return Toolkit(pinned.tensorrt_llm, pinned.tensorrt, str(pinned.cuda), pinned.image)
    tensorrt = installed("tensorrt") or environ.get("TRT_VERSION") or UNKNOWN
    return Toolkit(here, _release(tensorrt), environ.get("CUDA_VERSION", UNKNOWN), None)


def _release(version: str) -> str:
    """A version without its packaging: a wheel is 10.14.1.48.post1 where the image is 10.14.1.48.

    Both read the engines of the other, and the table of containers has the release.
    """
    numbers = re.match(r"\d+(\.\d+)*", version)
    return numbers[0] if numbers else version


def another_pythons() -> MissingDependencyError | None:
    """Says it where TensorRT-LLM is installed, but not for this Python, as in the container.

    Returns:
        The error, for the caller to raise or to quote; None where it is not so.
    """
    program = shutil.which("trtllm-build")
    if program is None or installed("tensorrt-llm") is not None:
        return None
    return MissingDependencyError(
        "TensorRT-LLM is installed here, but not for the Python of this command",
        why=f"It belongs to {program}, and this is {sys.executable}",
        fix="Install this project beside it, from a checkout: scripts/install python3 .venv, with "
        f"the python3 of {Path(program).parent}; nothing of it is replaced",
    )


def missing_to_build() -> list[str]:
    """Lists what a build would miss here, as clauses; empty when it has all it needs.

    Starts no program, so that a GPU which cannot be used is not noticed.
    """
    missing = []
    if shutil.which("nvidia-smi") is None:
        missing.append("there is no NVIDIA GPU (nvidia-smi is not installed)")
    if installed("tensorrt-llm") is None and shutil.which("docker") is None:
        other = another_pythons()
        missing.append(other.what if other else "neither TensorRT-LLM nor Docker is installed")
    return missing


def engine_tools(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Lists what decides an engine's bytes besides the checkpoint and the recipe: its cache key.

    The driver counts by its branch: an engine survives a patch release of the driver, and a build
    takes too long to be repeated for one.

    Returns:
        Versions by name; ``absent`` where there is no GPU.
    """
    machine, tools = inspect_machine(environ), toolkit(environ)
    models = " + ".join(name for name, _ in machine.models)
    return {
        "gpu": models or ABSENT,
        "sm": " + ".join(str(sm) for _, sm in machine.models) or ABSENT,
        "driver": (machine.driver or ABSENT).partition(".")[0],
        "tensorrt-llm": tools.tensorrt_llm,
        "tensorrt": tools.tensorrt,
        "cuda": tools.cuda,
    }
