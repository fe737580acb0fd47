"""The GPUs a recipe can name: what their compute capability allows and how much they hold."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RecipeError

GIB = 1 << 30
MIN_SM = 80
"""The oldest compute capability with kernels in TensorRT-LLM 1.2: Ampere."""

# Share of the product's size that a process sees. Reported by the driver: A100 40 GB 39.4 GiB,
# H100 80 GB 79.1 GiB, L4 and A10 22.0 GiB (inline ECC), RTX 4090 23.6 GiB; rounded down.
USABLE = {"hbm": 0.98, "gddr-ecc": 0.915, "gddr": 0.98}


@dataclass(frozen=True)
class Rates:
    """How fast a GPU is by its data sheet; arithmetic of tensor cores without sparsity.

    Attributes:
        bandwidth: Gigabytes a second from its memory.
        float16: Trillion operations a second in float16 or bfloat16, accumulated in float32.
        int8: The same in INT8; None where the sheet has none.
        fp8: The same in FP8; None for those without.
        float32: The same in float32, outside tensor cores.
        source: The data sheet.
    """

    bandwidth: float
    float16: float
    int8: float | None
    fp8: float | None
    float32: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
        name: As recipes write it.
        sm: Compute capability, times ten: 90 for Hopper.
        memory: Bytes a process can use.
        rates: What its data sheet says of its speed; None where it is not in the table.
    """

    name: str
    sm: int
    memory: int
    rates: Rates | None = None

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory / GIB

    def is_like(self, device: Gpu) -> bool:
        """Says whether an installed device is this GPU model; compares name and memory.

        Names differ in what they say besides the model ("NVIDIA A100-SXM4-80GB", "NVIDIA H100
        NVL" for the one with 94 GB), so sizes are compared instead of read from them; a size of 0
        is not known.
        """
        words = [word for word in _words(self.name) if not word.endswith("gb")]
        close = not device.memory or 0.9 < self.memory / device.memory < 1.02
        return close and set(words) <= set(_words(device.name))


def _gpu(
    name: str,
    sm: int,
    size: int,
    kind: Literal["hbm", "gddr-ecc", "gddr"],
    rates: Rates | None = None,
) -> Gpu:
    return Gpu(name, sm, int(size * USABLE[kind] * GIB), rates)


# Compute capabilities: NVIDIA's table at developer.nvidia.com/cuda-gpus. Sizes: NVIDIA's MIG user
# guide (A30, A100, H100, H200, B200, GB200; for B300 the profile of a whole GPU, 7g.269gb) and the
# products' data sheets. Rates: the data sheets that each row names, whose figures "with sparsity"
# are halved; those of the SXM board where a GPU has several. V100 and T4 are here to be refused
# with the reason.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("V100", 70, 32, "hbm"),
        _gpu("T4", 75, 16, "gddr-ecc"),
        _gpu("A30", 80, 24, "hbm", Rates(933, 165, 330, None, 10.3, "NVIDIA A30 data sheet")),
        _gpu(
            "A100-40GB", 80, 40, "hbm", Rates(1555, 312, 624, None, 19.5, "NVIDIA A100 data sheet")
        ),
        _gpu(
            "A100-80GB", 80, 80, "hbm", Rates(2039, 312, 624, None, 19.5, "NVIDIA A100 data sheet")
        ),
        _gpu("A10", 86, 24, "gddr-ecc", Rates(600, 125, 250, None, 31.2, "NVIDIA A10 data sheet")),
        _gpu("A10G", 86, 24, "gddr-ecc"),
        _gpu(
            "A40", 86, 48, "gddr-ecc", Rates(696, 149.7, 299.3, None, 37.4, "NVIDIA A40 data sheet")
        ),
        _gpu("RTX-3090", 86, 24, "gddr"),
        _gpu("RTX-A6000", 86, 48, "gddr-ecc"),
        _gpu("L4", 89, 24, "gddr-ecc", Rates(300, 121, 242.5, 242.5, 30.3, "NVIDIA L4 data sheet")),
        _gpu("L40", 89, 48, "gddr-ecc", Rates(864, 181, 362, 362, 90.5, "NVIDIA L40 data sheet")),
        _gpu("L40S", 89, 48, "gddr-ecc", Rates(864, 362, 733, 733, 91.6, "NVIDIA L40S data sheet")),
        _gpu(
            "RTX-4090",
            89,
            24,
            "gddr",
            Rates(1008, 165.2, 660.6, 330.3, 82.6, "NVIDIA Ada architecture white paper"),
        ),
        _gpu("RTX-6000-Ada", 89, 48, "gddr-ecc"),
        _gpu(
            "H100-80GB",
            90,
            80,
            "hbm",
            Rates(3350, 989.5, 1979, 1979, 67, "NVIDIA H100 data sheet, SXM"),
        ),
        _gpu(
            "H100-94GB",
            90,
            94,
            "hbm",
            Rates(3900, 835.5, 1670.5, 1670.5, 60, "NVIDIA H100 data sheet, NVL"),
        ),
        _gpu(
            "H200",
            90,
            141,
            "hbm",
            Rates(4800, 989.5, 1979, 1979, 67, "NVIDIA H200 data sheet, SXM"),
        ),
        _gpu(
            "B200", 100, 180, "hbm", Rates(8000, 2250, 4500, 4500, 75, "NVIDIA HGX B200 data sheet")
        ),
        _gpu("GB200", 100, 186, "hbm"),
        _gpu("B300", 103, 269, "hbm"),
        _gpu("RTX-5090", 120, 32, "gddr"),
        _gpu("RTX-PRO-6000", 120, 96, "gddr-ecc"),
    )
}


def find_gpu(name: str, where: str) -> Gpu:
    """Finds the GPU of that name; case, spaces and dashes do not matter.

    Args:
        name: ``compile.gpu``.
        where: Its place in the recipe, for the error.

    Raises:
        RecipeError: The table has no such GPU.
    """
    by_folded = {_fold(known): gpu for known, gpu in GPUS.items()}
    folded = _fold(name)
    if gpu := by_folded.get(folded):
        return gpu
    usable = {known: gpu.name for known, gpu in by_folded.items() if gpu.sm >= MIN_SM}
    # A model without its memory is all of its variants; a slip of the pen is the nearest name.
    near = [known for known in usable if folded and known.startswith(folded)]
    near = near or difflib.get_close_matches(folded, usable, n=1)
    hint = f"Did you mean {' or '.join(usable[known] for known in near)}? " if near else ""
    raise RecipeError(
        f"there is no GPU {name} in the table",
        where=where,
        fix=f"{hint}Known: {', '.join(usable.values())}",
    )


def _fold(name: str) -> str:
    return "".join(_words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())
