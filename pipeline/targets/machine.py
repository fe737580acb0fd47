"""What ``doctor`` looks at on any machine: disk, memory, ports, and the folders that are needed.

Nothing is written but one file in the folder for temporary ones, which is gone at once. What a
system does not tell is "not known", and nothing is held against it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import ServerError
from pipeline.targets.base import Diagnosis
from pipeline.triton.ports import reserve

GIB, MIB = 1 << 30, 1 << 20
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}
"""Where ``serve`` listens unless it is told otherwise."""

# Measured with the demo's model: its build directory holds 38 MB, and quantizing and evaluating it
# takes 0.7 GiB, nearly all of it for the libraries.
LEAST_DISK, LEAST_MEMORY = GIB, GIB
# Bytes for each parameter of a model, kept in 16 bit: a copy of the source, checkpoint and engine;
# the repository has links to the engine.
DISK_PER_PARAMETER = 3 * 2
_LARGE = 8_000_000_000
LEAST_FILES = 1024
NOT_KNOWN = "not known"
# Of NVIDIA's driver, of Windows' below WSL, and of AMD's, whose GPUs torch calls CUDA too.
GPU_FILES = ("nvidiactl", "dxg", "kfd")


def disk(folder: Path) -> Diagnosis:
    """Says how much is free where the store and the outputs go.

    Args:
        folder: The build directory; it need not be there.
    """
    name, place = "disk", _existing(folder.absolute())
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Diagnosis(name, f"{place}: {error.strerror}", False, "Name another --build-dir")
    if not os.access(place, os.W_OK | os.X_OK):
        advice = "Correct the permissions, or name another --build-dir"
        return Diagnosis(name, f"{place} cannot be written", False, advice)
    large = DISK_PER_PARAMETER * _LARGE
    said = f"{free / GIB:,.0f} GiB free in {folder}"
    if free < LEAST_DISK:
        advice = "Free some: the least model needs 1 GiB, and --build-dir may name another disk"
        return Diagnosis(name, f"{free / MIB:,.0f} MiB free in {folder}", False, advice)
    return Diagnosis(
        name,
        said,
        free >= large,
        f"A run keeps the checkpoint, the engine and, where it cannot be linked, a copy of the "
        f"source: in 16 bit {DISK_PER_PARAMETER} bytes for each parameter, {large / GIB:.0f} GiB "
        "for 8 billion, and about half of that in 4 bit; plan says it of a recipe",
        needed=False,
    )


def whole_memory() -> int | None:
    """Returns the bytes that this process can ever have; None where the system does not say."""
    from pipeline.targets.openvino.memory import machine_memory

    if size := machine_memory():
        return size
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def may_have_gpu(root: Path = Path("/")) -> bool:
    """Says whether torch may find a GPU here: there is the device file of a driver.

    Args:
        root: Where ``dev`` is.
    """
    return any((root / "dev" / name).exists() for name in GPU_FILES)


def memory(size: int | None, large: int) -> Diagnosis:
    """Says how much memory a run may take.

    Args:
        size: Of :func:`whole_memory`.
        large: The peak to be expected of a model of 8 billion parameters, in bytes.
    """
    if size is None:
        return Diagnosis("memory", NOT_KNOWN)
    if size < LEAST_MEMORY:
        advice = "Quantizing the least model takes 0.7 GiB beside the system: use a larger machine"
        return Diagnosis("memory", f"{size / MIB:,.0f} MiB", False, advice)
    return Diagnosis(
        "memory",
        f"{size / GIB:,.0f} GiB",
        size >= large,
        f"A run holds one decoder layer at a time: about {large / GIB:.1f} GiB for a model of 8 "
        "billion parameters, beside the system; plan says it of a recipe",
        needed=False,
    )


def shared_memory(least: int, use: str) -> Diagnosis:
    """Says how much is free in ``/dev/shm``.

    Args:
        least: Bytes below which it cannot work.
        use: What needs it, as the beginning of a sentence.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return Diagnosis("shared memory", NOT_KNOWN)
    wanted = f"{least / GIB:.0f}g" if least >= GIB else f"{least / MIB:.0f}m"
    return Diagnosis(
        "shared memory",
        f"{free / GIB:,.1f} GiB free" if free >= GIB else f"{free / MIB:,.0f} MiB free",
        free >= least,
        f"{use} {wanted} of {SHARED_MEMORY}. Start this container with --shm-size=1g, or remove "
        "what others left there",
    )


def ports(asked: Iterable[int]) -> Iterator[Diagnosis]:
    """Says which ports of this machine are free.

    Args:
        asked: Ports that must be free; none looks at those of ``serve``, for which there is a way
            round.
    """
    wanted = {str(port): port for port in asked}
    for purpose, port in (wanted or PORTS).items():
        name = f"port {port}"
        try:
            reserve("127.0.0.1", {"gRPC" if wanted else purpose: port})
        except ServerError as error:
            taken = "in use" in error.what
            value = "in use" if taken else "cannot be opened"
            option = "another port" if wanted else f"serve --{purpose.lower()}-port, 0 for any"
            advice = f"Stop what listens there, or take {option}" if taken else error.why or ""
            yield Diagnosis(name, value, False, advice, needed=bool(wanted))
        else:
            yield Diagnosis(name, "free")


def open_files() -> Diagnosis:
    """Says how many files and connections a process may have open."""
    try:
        import resource
    except ImportError:  # on Windows
        return Diagnosis("open files", NOT_KNOWN)
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return Diagnosis(
        "open files",
        "unlimited" if unlimited else f"{soft:,}",
        unlimited or soft >= LEAST_FILES,
        f"Each connection to the server takes one: ulimit -n {LEAST_FILES} or more before serve",
        needed=False,
    )


def temporary_folder() -> Diagnosis:
    """Says whether temporary files can be made; programs need not be executable there."""
    try:
        with tempfile.NamedTemporaryFile(prefix="trtllm-pipeline-doctor-") as file:
            return Diagnosis("temporary files", str(Path(file.name).parent))
    except OSError as error:
        return Diagnosis(
            "temporary files",
            "cannot be made",
            False,
            f"{error.strerror or error}. Name a folder with room that you may write to: TMPDIR=DIR",
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())
