"""The recipe's formats in ModelOpt's and TensorRT-LLM's words."""

from __future__ import annotations

import copy
from typing import Any

from pipeline.dependencies import MODELOPT, require
from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS, KV_CACHES, kv_cache_algo
from pipeline.recipe.schema import QuantizeSection, Recipe

# TensorRT-LLM's quantize.py stops AWQ here: the search costs a dozen forward passes and more texts
# do not change its scales.
AWQ_MAX_SAMPLES = 32
# Layer by layer AWQ searches on the second moments of texts with so many tokens for each feature.
# Of shorter ones, and of more features, they would take more memory than they save time.
_LONG, _WIDEST = 2, 8192
# A search pass of AWQ tries 11 values of alpha on every linear, and one pass collects statistics.
AWQ_PASS_COSTS = (1.0, 11.0)
FLOAT_BITS = 16


def is_awq(section: QuantizeSection) -> bool:
    """Says whether AWQ searches for the format's scales."""
    return FORMATS[section.format].calibration == "awq_lite"


def checkpoint_dtype(recipe: Recipe) -> str:
    """Returns the dtype of what is not quantized; an unquantized format is that dtype itself."""
    return recipe.dtype


def pass_costs(section: QuantizeSection) -> tuple[float, ...]:
    """Returns what each of ModelOpt's passes over the text costs, in plain forward passes."""
    if FORMATS[section.format].rounds_by_hessian and section.kv_cache is None:
        return ()
    return AWQ_PASS_COSTS if is_awq(section) else (1.0,)


def is_condensed(tokens: int, features: int) -> bool:
    """Says whether few rows stand for a text in AWQ's search.

    Args:
        tokens: Of the text.
        features: Of the inputs of a linear; there are as many rows.
    """
    return tokens > _LONG * features and features <= _WIDEST


def moves_scales(section: QuantizeSection) -> bool:
    """Says whether pre-quant scales are moved into the weights."""
    return FORMATS[section.format].smooths and section.portable


def measures_again(section: QuantizeSection) -> bool:
    """Says whether the text is read once more behind that, for ranges that are stored."""
    stored = FORMATS[section.format].activation_bits < FLOAT_BITS or section.kv_cache is not None
    return moves_scales(section) and stored


def sets_of(section: QuantizeSection) -> tuple[int, ...]:
    """Says which passes over a layer may share their hidden states.

    In each pass a layer is given what the layer before it put out in that same pass. Passes that
    round nothing all see the same. What rounds: AWQ's search with a quantized KV cache, whose
    quantizers are live after the first pass; our own rounding of weights; and the pass that
    measures weights again that were moved and rounded.

    Returns:
        For each pass over a layer, in order, the number of its set.
    """
    sets = [0] if FORMATS[section.format].rounds_by_hessian else []
    for number in range(len(pass_costs(section))):
        own = number == 0 or section.kv_cache is not None
        sets.append(len(set(sets)) if own else sets[-1])
    if measures_again(section):
        sets.append(len(set(sets)))
    return tuple(sets)


def quantization_section(section: QuantizeSection) -> dict[str, Any]:
    """Builds the ``quantization`` section of the checkpoint's ``config.json``."""
    row = FORMATS[section.format]
    quantization: dict[str, Any] = {
        "quant_algo": row.quant_algo if row.quantizes else None,
        "kv_cache_quant_algo": kv_cache_algo(section.kv_cache),
    }
    if row.group_sizes:
        quantization |= {
            "group_size": section.group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
        }
    if row.block:
        quantization["group_size"] = row.block
    if row.quantizes:
        quantization["exclude_modules"] = ["lm_head"]
    return quantization


def modelopt_config(section: QuantizeSection) -> dict[str, Any]:
    """Builds the configuration for ``mtq.quantize``.

    Args:
        section: A quantized format; float16 and bfloat16 have no configuration.

    Raises:
        MissingDependencyError: ModelOpt is not installed.
        UnsupportedError: The installed ModelOpt describes its formats in another way.
    """
    mtq = require("modelopt.torch.quantization", "quantize")
    row = FORMATS[section.format]
    assert row.preset is not None
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, row.preset))
    quantizers = config["quant_cfg"]
    if not isinstance(quantizers, dict):
        raise UnsupportedError(
            "this version of ModelOpt is not supported",
            why="quant_cfg became a list in 0.44",
            fix=f"Install the pinned one: pip install nvidia-modelopt=={MODELOPT}",
        )
    if row.rounds_by_hessian:
        # The weights are rounded already; what is left to find are ranges, of a KV cache say.
        config["algorithm"] = "max"
    if row.calibration == "smoothquant":
        config["algorithm"] = {"method": "smoothquant", "alpha": section.smoothquant_alpha}
    if row.group_sizes:
        # Weights that are rounded twice have a list of quantizers; groups are the first one's.
        weights = quantizers["*weight_quantizer"]
        first = weights[0] if isinstance(weights, list) else weights
        first["block_sizes"][-1] = section.group_size
    if section.kv_cache:
        # The older pattern "*.k_proj.output_quantizer" calibrates too, but the export drops it.
        quantizers["*[kv]_bmm_quantizer"] = {
            "num_bits": KV_CACHES[section.kv_cache].num_bits,
            "axis": None,
            "enable": True,
        }
    return config
