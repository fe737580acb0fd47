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
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.gpus import find_gpu

VERSION = "0.11"
GROUP_SIZE = 128
"""The one that its INT4 plugin has kernels for."""
DTYPE = "float16"
"""What activations are in; there is no other."""
EXECUTED = (NO_QUANT, FP8, W4A16_AWQ, W8A8_SQ_PER_CHANNEL)
FP8_SM = 89


@dataclass(frozen=True)
class Device:
    """One row of the hardware table.

    Attributes:
        name: As people call it.
        sms: Compute capabilities, times ten.
        formats: What it computes in.
        support: How far NVIDIA stands by it.
    """

    name: str
    sms: tuple[int, ...]
    formats: str
    support: str


HARDWARE = (
    Device("Jetson Orin", (87,), "float16, INT8, INT4", "official"),
    Device("Jetson Thor, DRIVE Thor", (101, 110), "float16, INT8, INT4, FP8", "official"),
    Device("DGX Spark", (121,), "float16, INT8, INT4, FP8", "official"),
    Device("A100, A30", (80,), "float16, INT8, INT4", "experimental, payload of the wheel"),
    Device(
        "A10, A40, RTX 3090, RTX A6000",
        (86,),
        "float16, INT8, INT4",
        "experimental, payload of the wheel",
    ),
    Device("B200, GB200", (100,), "float16, INT8, INT4, FP8", "experimental, payload of the wheel"),
    Device(
        "RTX 5090, RTX PRO 6000",
        (120,),
        "float16, INT8, INT4, FP8",
        "experimental, payload of the wheel",
    ),
)
"""Payloads of the wheel load on exactly their compute capability."""


def refuse_unsupported(recipe: Recipe) -> None:
    """Refuses formats, precisions and GPUs that TensorRT Edge-LLM does not have.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
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
    if recipe.compile.gpu is not None:
        _refuse_gpu(recipe, row)


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


def _refuse_gpu(recipe: Recipe, row: Format) -> None:
    place = recipe.place("compile.gpu")
    gpu = find_gpu(str(recipe.compile.gpu), place)
    if not any(gpu.sm in device.sms for device in HARDWARE):
        loaded = ", ".join(f"SM {sm}" for device in HARDWARE for sm in device.sms)
        raise UnsupportedError(
            f"TensorRT Edge-LLM {VERSION} has nothing for {gpu.name} (SM {gpu.sm})",
            where=place,
            why=f"What it ships loads on exactly {loaded}; another GPU takes a build from source, "
            "which nobody here has tried",
            fix="Leave compile.gpu out for Jetson, DRIVE and DGX Spark, or choose another target "
            "for this GPU",
        )
    if (row.needs_fp8 or recipe.quantize.kv_cache == "fp8") and gpu.sm < FP8_SM:
        raise UnsupportedError(
            f"{gpu.name} (SM {gpu.sm}) does not compute in FP8",
            where=place,
            fix="Choose a format without FP8, and quantize.kv_cache: null",
        )
