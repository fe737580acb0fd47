"""The GPUs a recipe can name: what their compute capability allows and how much they hold."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RecipeError

GIB = 1 << 30

# Share of the product's size that a process sees. Reported by the driver: A100 40 GB 39.4 GiB,
# H100 80 GB 79.1 GiB, L4 and A10 22.0 GiB (inline ECC), RTX 4090 23.6 GiB; rounded down.
USABLE = {"hbm": 0.98, "gddr-ecc": 0.915, "gddr": 0.98}


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
        name: As recipes write it.
        sm: Compute capability, times ten: 90 for Hopper.
        memory: Bytes a process can use.
    """

    name: str
    sm: int
    memory: int

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory / GIB


def _gpu(name: str, sm: int, size: int, kind: Literal["hbm", "gddr-ecc", "gddr"]) -> Gpu:
    return Gpu(name, sm, int(size * USABLE[kind] * GIB))


# Compute capabilities: NVIDIA's table at developer.nvidia.com/cuda-gpus. Sizes: NVIDIA's MIG user
# guide (A30, A100, H100, H200, B200) and the products' data sheets.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A30", 80, 24, "hbm"),
        _gpu("A100-40GB", 80, 40, "hbm"),
        _gpu("A100-80GB", 80, 80, "hbm"),
        _gpu("A10", 86, 24, "gddr-ecc"),
        _gpu("A10G", 86, 24, "gddr-ecc"),
        _gpu("A40", 86, 48, "gddr-ecc"),
        _gpu("RTX-3090", 86, 24, "gddr"),
        _gpu("RTX-A6000", 86, 48, "gddr-ecc"),
        _gpu("L4", 89, 24, "gddr-ecc"),
        _gpu("L40", 89, 48, "gddr-ecc"),
        _gpu("L40S", 89, 48, "gddr-ecc"),
        _gpu("RTX-4090", 89, 24, "gddr"),
        _gpu("RTX-6000-Ada", 89, 48, "gddr-ecc"),
        _gpu("H100-80GB", 90, 80, "hbm"),
        _gpu("H100-94GB", 90, 94, "hbm"),
        _gpu("H200", 90, 141, "hbm"),
        _gpu("B200", 100, 180, "hbm"),
        _gpu("RTX-5090", 120, 32, "gddr"),
        _gpu("RTX-PRO-6000", 120, 96, "gddr-ecc"),
    )
}
_BY_FOLDED_NAME = {name.lower().replace("-", ""): gpu for name, gpu in GPUS.items()}


def find_gpu(name: str, where: str) -> Gpu:
    """The GPU of that name; case, spaces and dashes do not matter.

    Args:
        name: ``compile.gpu``.
        where: Its place in the recipe, for the error.

    Raises:
        RecipeError: The table has no such GPU.
    """
    folded = _fold(name)
    gpu = _BY_FOLDED_NAME.get(folded)
    if gpu:
        return gpu
    close = difflib.get_close_matches(folded, _BY_FOLDED_NAME, n=1)
    hint = f"Did you mean {_BY_FOLDED_NAME[close[0]].name}? " if close else ""
    raise RecipeError(
        f"there is no GPU {name} in the table",
        where=where,
        fix=f"{hint}Known: {', '.join(GPUS)}",
    )


def _fold(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
