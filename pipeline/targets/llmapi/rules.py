"""What TensorRT-LLM's PyTorch backend cannot run, from the recipe and the model's facts alone.

Formats and GPUs are those of the table in docs/source/features/quantization.md and of
``get_quant_method`` in tensorrt_llm/_torch/modules/linear.py of TensorRT-LLM 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS, FP8, NO_QUANT, W4A8_AWQ, W4A16_AWQ, Format, either
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.gpus import MIN_SM, Gpu, find_gpu

TOKENS_PER_BLOCK = 32
"""The LLM API's own default, in which the front counts."""


@dataclass(frozen=True)
class Generations:
    """The compute capabilities, times ten, that run a format.

    Attributes:
        words: As people call them.
    """

    first: int
    last: int | None
    words: str

    def has(self, sm: int) -> bool:
        """Says whether a GPU is one of them."""
        return self.first <= sm and (self.last is None or sm <= self.last)


EXECUTED: dict[str, Generations] = {
    NO_QUANT: Generations(MIN_SM, None, "Ampere and later"),
    FP8: Generations(89, None, "Ada, Hopper and Blackwell"),
    W4A16_AWQ: Generations(MIN_SM, 90, "Ampere, Ada and Hopper, not Blackwell"),
    # Of a checkpoint that was smoothed for it; our own calibration gives two scales.
    W4A8_AWQ: Generations(89, 90, "Ada and Hopper"),
}
"""By ``quant_algo``: where the backend has kernels for it."""


COMPUTED = ("float16", "bfloat16")
"""What everything that is not quantized may be in."""
OURS = [
    row
    for row in FORMATS.values()
    if row.quant_algo in EXECUTED
    and row.dtype in (None, *COMPUTED)
    and not (row.smooths and row.divides_prequant)
]
"""The formats of a recipe that fit; those that smooth have to be portable."""


def refuse_unsupported(recipe: Recipe) -> Gpu | None:
    """Refuses formats, GPUs and settings that the backend or its front does not have.

    Returns:
        The GPU that the recipe names; None where it names none.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
        UnsupportedError: Naming the recipe's key, the reason and the remedy.
    """
    row = FORMATS[recipe.quantize.format]
    _refuse_format(recipe, row)
    _refuse_precision(recipe, row)
    if recipe.quantize.kv_cache == "int8":
        raise UnsupportedError(
            "TensorRT-LLM's PyTorch backend has no INT8 KV cache",
            where=recipe.place("quantize.kv_cache"),
            fix="Set quantize.kv_cache to fp8 or null, or serve compile.target: tensorrt",
        )
    if recipe.compile.tokens_per_block != TOKENS_PER_BLOCK:
        raise UnsupportedError(
            f"the front of the LLM API counts KV blocks of {TOKENS_PER_BLOCK} tokens",
            where=recipe.place("compile.tokens_per_block"),
            fix=f"Set tokens_per_block to {TOKENS_PER_BLOCK}",
        )
    if recipe.serve.guided_decoding:
        raise UnsupportedError(
            "guided decoding is not handed on to the LLM API",
            where=recipe.place("serve.guided_decoding"),
            why="The LLM API has it, and nobody has tried how it takes a broken guide",
            fix="Set serve.guided_decoding to null, or serve compile.target: tensorrt or openvino",
        )
    if recipe.compile.gpu is None:
        return None
    gpu = find_gpu(recipe.compile.gpu, recipe.place("compile.gpu"))
    _refuse_gpu(recipe, row, gpu)
    return gpu


def _refuse_format(recipe: Recipe, row: Format) -> None:
    place = recipe.place("quantize.format")
    if row.quant_algo not in EXECUTED:
        raise UnsupportedError(
            f"TensorRT-LLM's PyTorch backend does not run {row.name}",
            where=place,
            why=f"Its linears have no method for {row.quant_algo}: they end in 'unsupported quant "
            "mode'",
            fix=f"Choose {either(OURS)}, or compile.target: "
            + (
                "openvino, which runs it"
                if row.own
                else "tensorrt (engines of TensorRT-LLM 1.2.1) or edgellm, where they run it"
            ),
        )
    if row.smooths and not recipe.quantize.portable:
        others = [other for other in OURS if not other.smooths]
        portable = "" if row.divides_prequant else "Set quantize.portable: true, or choose "
        raise UnsupportedError(
            f"{row.name} as it is calibrated does not fit TensorRT-LLM's PyTorch backend",
            where=place,
            why="gate_proj and up_proj get pre-quant scales of their own, and the backend computes "
            "them as one linear, which has room for one",
            fix=f"{portable or 'Choose '}{either(others)}",
        )


def _refuse_precision(recipe: Recipe, row: Format) -> None:
    dtype = row.dtype or recipe.model.dtype
    if dtype not in COMPUTED:
        key = "quantize.format" if row.dtype else "model.dtype"
        raise UnsupportedError(
            "TensorRT-LLM's PyTorch backend computes in 16 bits",
            where=recipe.place(key),
            why=f"The checkpoint would be in {dtype}, which its table of formats does not have",
            fix=f"Set {key} to {' or '.join(COMPUTED)}",
        )


def _refuse_gpu(recipe: Recipe, row: Format, gpu: Gpu) -> None:
    runs = EXECUTED[row.quant_algo]
    if runs.has(gpu.sm):
        return
    fitting = [other for other in OURS if EXECUTED[other.quant_algo].has(gpu.sm)]
    remedy = f"Choose {either(fitting)}, or another GPU" if fitting else "Choose another GPU"
    raise UnsupportedError(
        f"TensorRT-LLM's PyTorch backend does not run {row.name} on {gpu.name} (SM {gpu.sm})",
        where=recipe.place("compile.gpu"),
        why=f"Its kernels for {row.quant_algo} are for {runs.words}",
        fix=remedy,
    )
