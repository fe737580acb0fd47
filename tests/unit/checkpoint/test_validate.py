from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.checkpoint import open_checkpoint, validate
from pipeline.errors import CheckpointError
from tests.unit.checkpoint.support import (
    AWQ,
    INT8,
    config,
    float16_tensors,
    int8_tensors,
    write_checkpoint,
)

QKV_WEIGHT = "transformer.layers.1.attention.qkv.weight"
PROJ_SCALE = "transformer.layers.0.mlp.proj.weights_scaling_factor"


def test_hand_written_checkpoints_pass(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "float16", config(), float16_tensors())
    write_checkpoint(tmp_path / "int8", config(quantization=INT8), int8_tensors())
    assert validate(tmp_path / "float16").quantization.algo == "NO_QUANT"
    assert validate(tmp_path / "int8").quantization.kv_cache_algo == "INT8"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    tensors = int8_tensors()
    del tensors[PROJ_SCALE]
    tensors["transformer.layers.0.mlp.proj.scales"] = np.ones(3, np.float32)
    tensors[QKV_WEIGHT] = tensors[QKV_WEIGHT].astype(np.float16)
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"][:-1]
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    with pytest.raises(CheckpointError, match="has 4 problems") as caught:
        validate(tmp_path)
    reasons = caught.value.why or ""
    assert f"{PROJ_SCALE} is missing" in reasons
    assert "mlp.proj.scales does not belong here" in reasons
    assert f"{QKV_WEIGHT} is float16, not int8" in reasons
    assert "transformer.ln_f.weight has shape (255,), not (256,)" in reasons


def test_opening_finds_wrong_headers_too(tmp_path: Path) -> None:
    tensors = float16_tensors()
    del tensors[QKV_WEIGHT]
    write_checkpoint(tmp_path, config(), tensors)
    with pytest.raises(CheckpointError, match=f"{QKV_WEIGHT} is missing"):
        open_checkpoint(tmp_path)


def test_kv_scales_are_required_when_the_cache_is_quantized(tmp_path: Path) -> None:
    tensors = int8_tensors()
    del tensors["transformer.layers.1.attention.kv_cache_scaling_factor"]
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.kv_cache.* is missing"):
        validate(tmp_path)


def test_kv_scales_are_extra_when_the_cache_is_not_quantized(tmp_path: Path) -> None:
    settings = config(quantization=INT8 | {"kv_cache_quant_algo": None})
    write_checkpoint(tmp_path, settings, int8_tensors())
    with pytest.raises(CheckpointError, match="kv_cache_scaling_factor does not belong here"):
        validate(tmp_path)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    tensors = float16_tensors()
    tensors[QKV_WEIGHT][3, 5] = np.nan
    tensors[QKV_WEIGHT][3, 6] = np.inf
    write_checkpoint(tmp_path, config(), tensors)
    with pytest.raises(
        CheckpointError, match=rf"{QKV_WEIGHT} has NaN or infinite.*Export it again"
    ):
        validate(tmp_path)


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_values_beyond_float16_need_another_dtype(tmp_path: Path, value: float) -> None:
    tensors = float16_tensors()
    with np.errstate(over="ignore"):
        tensors[QKV_WEIGHT][3, 5] = np.float32(value).astype(np.float16)
    write_checkpoint(tmp_path, config(), tensors)
    with pytest.raises(
        CheckpointError,
        match=rf"{QKV_WEIGHT} has values that are infinite in float16\. Set model\.dtype to bf",
    ):
        validate(tmp_path)
    # Where something else is wrong as well, another dtype would not be the remedy.
    tensors["transformer.ln_f.weight"][0] = np.nan
    write_checkpoint(tmp_path, config(), tensors)
    with pytest.raises(CheckpointError, match=r"has 2 problems.*Export it again"):
        validate(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        PROJ_SCALE,
        "transformer.layers.0.attention.qkv.prequant_scaling_factor",
        "transformer.layers.0.attention.qkv.activation_scaling_factor",
        "transformer.layers.1.attention.kv_cache_scaling_factor",
    ],
)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_scales_must_be_positive(tmp_path: Path, name: str, value: float) -> None:
    tensors = int8_tensors()
    tensors[name][-1] = value
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    with pytest.raises(CheckpointError, match=f"{name} has scales that are zero or negative"):
        validate(tmp_path)


def quantized_tensors(per_linear: Callable[[str, int, int], dict[str, Any]]) -> dict[str, Any]:
    """``float16_tensors`` with the tensors of every linear replaced."""
    tensors: dict[str, Any] = {}
    for name, array in float16_tensors().items():
        if array.ndim == 1 or not name.startswith("transformer.layers."):
            tensors[name] = array
        else:
            tensors |= per_linear(name.removesuffix(".weight"), *array.shape)
    return tensors


def fp8_linear(name: str, rows: int, columns: int) -> dict[str, Any]:
    return {
        f"{name}.weight": np.full((rows, columns), 0x38, np.int8),
        f"{name}.weights_scaling_factor": np.full(1, 0.01, np.float32),
        f"{name}.activation_scaling_factor": np.full(1, 0.02, np.float32),
    }


@pytest.mark.parametrize("byte", [0x7F, -1])
def test_float8_weights_stored_as_bytes_have_nan_too(tmp_path: Path, byte: int) -> None:
    tensors = quantized_tensors(fp8_linear)
    settings = config(quantization={"quant_algo": "FP8", "exclude_modules": ["lm_head"]})
    write_checkpoint(tmp_path, settings, tensors)
    validate(tmp_path)
    # 0x7F and 0xFF are the NaNs of float8_e4m3fn.
    tensors[QKV_WEIGHT][3, 5] = byte
    write_checkpoint(tmp_path, settings, tensors)
    with pytest.raises(CheckpointError, match=f"{QKV_WEIGHT} has NaN or infinite values"):
        validate(tmp_path)


def awq_tensors(scale: float, scale_2: float | None = None) -> dict[str, Any]:
    def linear(name: str, rows: int, columns: int) -> dict[str, Any]:
        found = {
            f"{name}.weight": np.zeros((rows // 2, columns), np.int8),
            f"{name}.weights_scaling_factor": np.full((rows, columns // 128), 0.01, np.float32),
            f"{name}.prequant_scaling_factor": np.ones(columns, np.float16),
        }
        if scale_2 is not None:
            found[f"{name}.weights_scaling_factor_2"] = np.full(1, scale_2, np.float32)
            found[f"{name}.activation_scaling_factor"] = np.full(1, 0.02, np.float32)
        return found

    tensors = quantized_tensors(linear)
    tensors[PROJ_SCALE][3, 1] = scale
    return tensors


def test_group_scales_must_survive_the_cast_to_the_models_dtype(tmp_path: Path) -> None:
    # A group of weights too small for float16 is nothing; one too large would be infinite.
    write_checkpoint(tmp_path / "small", config(quantization=AWQ), awq_tensors(1e-12))
    assert validate(tmp_path / "small").dtype == "float16"
    scale = 1e9
    write_checkpoint(tmp_path, config(quantization=AWQ), awq_tensors(scale))
    reason = rf"{PROJ_SCALE} has scales that become infinite in float16\. Set model\.dtype"
    with pytest.raises(CheckpointError, match=reason):
        validate(tmp_path)
    tensors = awq_tensors(scale)
    for name, array in tensors.items():
        if array.dtype == np.float16:
            tensors[name] = array.astype(ml_dtypes.bfloat16)
    write_checkpoint(tmp_path / "wide", config(quantization=AWQ, dtype="bfloat16"), tensors)
    assert validate(tmp_path / "wide").dtype == "bfloat16"


W4A8 = AWQ | {"quant_algo": "W4A8_AWQ"}


def test_group_scales_of_w4a8_are_cast_before_and_after_their_division(tmp_path: Path) -> None:
    """As ``preprocess_perlayer_weights`` of TensorRT-LLM's models/modeling_utils.py does."""
    settings = config(quantization=W4A8)
    # 0.01 fits into float16 and 0.01 / 1e-8 does not.
    write_checkpoint(tmp_path / "after", settings, awq_tensors(0.01, 1e-8))
    with pytest.raises(CheckpointError, match=r"weights_scaling_factor .*infinite in float16"):
        validate(tmp_path / "after")
    # 1e5 does not fit, although 1e5 / 2 would.
    write_checkpoint(tmp_path / "before", settings, awq_tensors(1e5, 2.0))
    with pytest.raises(CheckpointError, match=f"{PROJ_SCALE} has scales that become infinite"):
        validate(tmp_path / "before")
    write_checkpoint(tmp_path / "fine", settings, awq_tensors(0.02, 1e-5))
    assert validate(tmp_path / "fine").quantization.algo == "W4A8_AWQ"


def test_pre_quant_scales_of_w4a8_must_survive_their_division(tmp_path: Path) -> None:
    """214 / 1.8e-4 is 1.2e6: infinite in float16, in which TensorRT-LLM divides, not in bfloat16.

    The figures are those of a channel that the calibration text left alone.
    """
    tensors = awq_tensors(0.02, 1.0)
    module = "transformer.layers.0.mlp.proj"
    tensors[f"{module}.prequant_scaling_factor"][7] = 214
    tensors[f"{module}.activation_scaling_factor"][:] = 1.8e-4
    write_checkpoint(tmp_path, config(quantization=W4A8), tensors)
    reason = (
        rf"{module}\.prequant_scaling_factor has scales that become infinite in float16\. Set m"
    )
    with pytest.raises(CheckpointError, match=reason):
        validate(tmp_path)
    for name, array in tensors.items():
        if array.dtype == np.float16:
            tensors[name] = array.astype(ml_dtypes.bfloat16)
    write_checkpoint(tmp_path / "wide", config(quantization=W4A8, dtype="bfloat16"), tensors)
    assert validate(tmp_path / "wide").dtype == "bfloat16"
    # Formats whose pre-quant scales are loaded as they are keep them.
    plain = awq_tensors(0.02)
    plain[f"{module}.prequant_scaling_factor"][7] = 214
    write_checkpoint(tmp_path / "w4a16", config(quantization=AWQ), plain)
    assert validate(tmp_path / "w4a16").quantization.algo == "W4A16_AWQ"


@pytest.mark.parametrize(("there", "missing"), [("k", "v"), ("v", "k")])
def test_one_of_the_two_kv_scales_is_not_enough(tmp_path: Path, there: str, missing: str) -> None:
    """Upstream asserts: "v_cache_scaling_factor not found"."""
    tensors, prefix = int8_tensors(), "transformer.layers.1.attention."
    tensors[f"{prefix}{there}_cache_scaling_factor"] = np.full(1, 0.03, np.float32)
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    reason = rf"{there}_cache_scaling_factor is there without .*\.{missing}_cache_scaling_factor"
    with pytest.raises(CheckpointError, match=reason):
        validate(tmp_path)


def test_of_two_kv_scales_the_larger_counts_and_the_common_one_does_not(tmp_path: Path) -> None:
    """As ``process_kv_scaling_factor`` of models/modeling_utils.py has it."""
    tensors = int8_tensors()
    for layer, (keys, values) in enumerate([(0.25, 0.5), (0.75, 0.125)]):
        prefix = f"transformer.layers.{layer}.attention."
        tensors[f"{prefix}k_cache_scaling_factor"] = np.full(1, keys, np.float32)
        tensors[f"{prefix}v_cache_scaling_factor"] = np.full(1, values, np.float32)
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    validate(tmp_path)
    layers = open_checkpoint(tmp_path).weights().layers
    assert [layer.kv_cache_scaling_factor for layer in layers] == [0.5, 0.75]


def test_rows_of_zero_weights_with_a_positive_scale_are_fine(tmp_path: Path) -> None:
    tensors = int8_tensors()
    tensors[QKV_WEIGHT][:8] = 0
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    validate(tmp_path)


def test_a_tied_head_may_be_absent_and_is_then_the_embedding(tmp_path: Path) -> None:
    tensors = float16_tensors()
    del tensors["lm_head.weight"]
    write_checkpoint(tmp_path / "untied", config(), tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        validate(tmp_path / "untied")
    write_checkpoint(tmp_path / "tied", config(tie_word_embeddings=True), tensors)
    weights = open_checkpoint(tmp_path / "tied").weights()
    assert weights.lm_head.weight is weights.vocab_embedding


def test_every_rank_needs_its_file_and_no_other_may_be_there(tmp_path: Path) -> None:
    two_ranks = {"world_size": 2, "tp_size": 1, "pp_size": 2}
    write_checkpoint(tmp_path / "few", config(mapping=two_ranks), float16_tensors())
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors is missing"):
        validate(tmp_path / "few")
    write_checkpoint(tmp_path / "many", config(), float16_tensors(), float16_tensors())
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors belongs to no rank"):
        validate(tmp_path / "many")


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        validate(tmp_path)


def test_a_broken_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config(), float16_tensors())
    (tmp_path / "config.json").write_text('{"architecture": ')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        validate(tmp_path)
