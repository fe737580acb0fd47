"""What TensorRT Edge-LLM 0.11 cannot compile, and the hardware that it is for.

From its docs/source/user_guide (features/quantization.md, 03.2_Engine_Builder.md), the linears of
its exporter and the payloads of its wheel for x86. Nothing of it was run.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UnsupportedError
from pipeline.formats import (
    FORMATS,
    FP8,
    NO_QUANT,
    W4A16_AWQ,
    W8A8_SQ_PER_CHANNEL,
    Format,
    either,
)
from pipeline.recipe.edgellm import DeviceName
from pipeline.recipe.schema import Recipe

VERSION = "0.11"
GROUP_SIZE = 128
"""The one that its INT4 plugin has kernels for."""
DTYPE = "float16"
"""What activations are in; there is no other."""
EXECUTED = (NO_QUANT, FP8, W4A16_AWQ, W8A8_SQ_PER_CHANNEL)


@dataclass(frozen=True)
class Device:
    """One row of the hardware table.

    Attributes:
        name: As people call it.
        sms: Compute capabilities, times ten.
        fp8: Whether it computes in FP8 besides float16, INT8 and INT4.
        official: Whether NVIDIA stands by it; otherwise it is experimental, and the wheel has a
            payload for it, which loads on exactly its compute capability.
    """

    name: str
    sms: tuple[int, ...]
    fp8: bool
    official: bool = False

    @property
    def formats(self) -> str:
        """What it computes in."""
        return "float16, INT8, INT4, FP8" if self.fp8 else "float16, INT8, INT4"

    @property
    def support(self) -> str:
        """How far NVIDIA stands by it."""
        return "official" if self.official else "experimental, payload of the wheel"


HARDWARE: dict[DeviceName, Device] = {
    "jetson-orin": Device("Jetson Orin", (87,), fp8=False, official=True),
    "thor": Device("Jetson Thor, DRIVE Thor", (101, 110), fp8=True, official=True),
    "dgx-spark": Device("DGX Spark", (121,), fp8=True, official=True),
    "a100": Device("A100, A30", (80,), fp8=False),
    "a10": Device("A10, A40, RTX 3090, RTX A6000", (86,), fp8=False),
    "b200": Device("B200, GB200", (100,), fp8=True),
    "rtx-5090": Device("RTX 5090, RTX PRO 6000", (120,), fp8=True),
}
"""By ``compile.edgellm.device``. There is nothing for SM 89 and 90: L4, L40S, H100, H200."""


def refuse_unsupported(recipe: Recipe) -> None:
    """Refuses formats, precisions and devices that TensorRT Edge-LLM does not have.

    Raises:
        UnsupportedError: Naming the recipe's key, the reason and the remedy.
    """
    row = FORMATS[recipe.quantize.format]
    _refuse_format(recipe, row)
    if recipe.quantize.kv_cache == "int8":
        raise UnsupportedError(
            "TensorRT Edge-LLM has no INT8 KV cache",
            where=recipe.place("quantize.kv_cache"),
            fix="Set quantize.kv_cache to fp8 or null",
        )
    if recipe.compile.pipeline_parallel > 1:
        raise UnsupportedError(
            "TensorRT Edge-LLM does not spread layers over several devices",
            where=recipe.place("compile.pipeline_parallel"),
            fix="Set compile.pipeline_parallel to 1; compile.tensor_parallel may be more",
        )
    device = recipe.compile.edgellm.device
    asks = row.needs_fp8 or recipe.quantize.kv_cache == "fp8"
    if device is not None and asks and not HARDWARE[device].fp8:
        raise UnsupportedError(
            f"{HARDWARE[device].name} does not compute in FP8",
            where=recipe.place("compile.edgellm.device"),
            fix="Choose a format without FP8 and quantize.kv_cache: null, or another device",
        )


def _refuse_format(recipe: Recipe, row: Format) -> None:
    place = recipe.place("quantize.format")
    if row.quant_algo not in EXECUTED:
        rows = (r for r in FORMATS.values() if r.quant_algo in EXECUTED)
        runs = either(r for r in rows if r.dtype in (None, DTYPE))
        raise UnsupportedError(
            f"TensorRT Edge-LLM does not compile {row.name}",
            where=place,
            why=f"Its exporter has no linear for {row.quant_algo}",
            fix=f"Choose {runs}",
        )
    dtype = row.dtype or recipe.model.dtype
    if dtype != DTYPE:
        key = "quantize.format" if row.dtype else "model.dtype"
        raise UnsupportedError(
            f"TensorRT Edge-LLM computes in {DTYPE} alone",
            where=recipe.place(key),
            why=f"The checkpoint would be in {dtype}",
            fix=f"Set {key} to {DTYPE}",
        )
    if row.group_sizes and recipe.quantize.group_size != GROUP_SIZE:
        raise UnsupportedError(
            f"TensorRT Edge-LLM has INT4 kernels for groups of {GROUP_SIZE} alone",
            where=recipe.place("quantize.group_size"),
            fix=f"Set quantize.group_size to {GROUP_SIZE}",
        )
