"""The recipe's formats in ModelOpt's and TensorRT-LLM's words."""

from __future__ import annotations

import copy
from typing import Any

from pipeline.checkpoint.quantization import AWQ_ALGOS, FP8, NO_QUANT, W4A8, W4A16, W8A8
from pipeline.dependencies import MODELOPT, require
from pipeline.errors import UnsupportedError
from pipeline.recipe import QuantizeSection, Recipe

QUANT_ALGOS = {
    "float16": NO_QUANT,
    "bfloat16": NO_QUANT,
    "int8_sq": W8A8,
    "int4_awq": W4A16,
    "w4a8_awq": W4A8,
    "fp8": FP8,
}
KV_CACHE_ALGOS = {None: None, "int8": "INT8", "fp8": "FP8"}

_PRESETS = {
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "fp8": "FP8_DEFAULT_CFG",
}
_KV_CACHE_BITS = {"int8": 8, "fp8": (4, 3)}

# TensorRT-LLM's quantize.py stops AWQ here: the search costs a dozen forward passes and more texts
# do not change its scales.
AWQ_MAX_SAMPLES = 32
# A search pass of AWQ tries 11 values of alpha on every linear, and one pass collects statistics.
AWQ_PASS_COSTS = (1.0, 11.0)


def is_awq(section: QuantizeSection) -> bool:
    """Whether the format's scales are searched for by AWQ."""
    return QUANT_ALGOS[section.format] in AWQ_ALGOS


def checkpoint_dtype(recipe: Recipe) -> str:
    """The precision of what is not quantized; an unquantized format is that precision itself."""
    return recipe.dtype


def pass_costs(section: QuantizeSection) -> tuple[float, ...]:
    """What each pass over the calibration text costs, in plain forward passes."""
    return AWQ_PASS_COSTS if is_awq(section) else (1.0,)


def quantization_section(section: QuantizeSection) -> dict[str, Any]:
    """The ``quantization`` section of the checkpoint's ``config.json``."""
    algo = QUANT_ALGOS[section.format]
    quantization: dict[str, Any] = {
        "quant_algo": None if algo == NO_QUANT else algo,
        "kv_cache_quant_algo": KV_CACHE_ALGOS[section.kv_cache],
    }
    if algo in AWQ_ALGOS:
        quantization |= {
            "group_size": section.group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
        }
    if algo != NO_QUANT:
        quantization["exclude_modules"] = ["lm_head"]
    return quantization


def modelopt_config(section: QuantizeSection) -> dict[str, Any]:
    """The configuration for ``mtq.quantize``.

    Args:
        section: A quantized format; float16 and bfloat16 have no configuration.

    Raises:
        MissingDependencyError: ModelOpt is not installed.
        UnsupportedError: The installed ModelOpt describes its formats in another way.
    """
    mtq = require("modelopt.torch.quantization", "quantize")
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, _PRESETS[section.format]))
    quantizers = config["quant_cfg"]
    if not isinstance(quantizers, dict):
        raise UnsupportedError(
            "this version of ModelOpt is not supported",
            why="quant_cfg became a list in 0.44",
            fix=f"Install the pinned one: pip install nvidia-modelopt=={MODELOPT}",
        )
    if section.format == "int8_sq":
        config["algorithm"] = {"method": "smoothquant", "alpha": section.smoothquant_alpha}
    if section.format == "int4_awq":
        quantizers["*weight_quantizer"]["block_sizes"][-1] = section.group_size
    if section.format == "w4a8_awq":
        quantizers["*weight_quantizer"][0]["block_sizes"][-1] = section.group_size
    if section.kv_cache:
        # The older pattern "*.k_proj.output_quantizer" calibrates too, but the export drops it.
        quantizers["*[kv]_bmm_quantizer"] = {
            "num_bits": _KV_CACHE_BITS[section.kv_cache],
            "axis": None,
            "enable": True,
        }
    return config
