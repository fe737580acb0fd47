"""Combinations that cannot work are refused from config.json alone; numbers are hand-checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError
from pipeline.preflight.model_checks import check_model
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe

# Llama-2-7B: 11008 = 86 x 128, so group 128 splits over 2 ranks and not over 4.
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
# Qwen2.5-7B: qkv is 3584 + 2 x 512 = 4608 = 36 x 128.
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
}
# Heads of 96, of which each KV head has copies on two of eight ranks.
COPIED_HEADS = QWEN25_7B | {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "head_dim": 96,
}


def _check(tmp_path: Path, config: dict[str, Any], *overrides: str) -> Recipe:
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "schema: 1\nname: t\nmodel: {source: m}\n"
        "quantize: {format: int4_awq, calibration: {text: c.txt}}\n"
    )
    recipe = load_recipe(path, overrides)
    check_model(recipe, tmp_path)
    return recipe


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        (LLAMA2_7B, []),
        (LLAMA2_7B, ["compile.tensor_parallel=2"]),
        (LLAMA2_7B, ["compile.tensor_parallel=4", "quantize.format=int8_sq"]),
        (QWEN25_7B, ["compile.tensor_parallel=4"]),
        (QWEN25_7B, ["compile.pipeline_parallel=4"]),
        # 16 + 2 x 4 heads of 96 are 4.5 x 512 rows, but 8 ranks hold 16 + 2 x 8 heads: 6 x 512.
        (COPIED_HEADS, ["compile.tensor_parallel=8", "quantize.group_size=64"]),
        (LLAMA2_7B, ["compile.target=tensorrt"]),
        (LLAMA2_7B, ["compile.target=tensorrt", "compile.gpu=L4"]),
    ],
)
def test_combinations_that_work(
    tmp_path: Path, config: dict[str, Any], overrides: list[str]
) -> None:
    assert _check(tmp_path, config, *overrides).name == "t"


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        (LLAMA2_7B, ["compile.tensor_parallel=4"], "11008.*not a multiple of 512"),
        (
            LLAMA2_7B | {"intermediate_size": 11072},
            [],
            "11072 of mlp.fc is not a multiple of 128.*Set quantize.group_size to 64",
        ),
        (LLAMA2_7B, ["compile.tensor_parallel=3"], "32 attention heads cannot be split over 3"),
        (LLAMA2_7B, ["compile.pipeline_parallel=5"], "32 layers cannot be split evenly over 5"),
        (
            QWEN25_7B,
            ["compile.tensor_parallel=7", "quantize.format=int8_sq"],
            "4 KV heads can be neither split nor repeated over 7",
        ),
        (
            QWEN25_7B | {"num_attention_heads": 32},
            ["compile.tensor_parallel=8", "quantize.format=int8_sq"],
            "int8_sq cannot repeat 4 KV heads over 8 ranks",
        ),
        (
            LLAMA2_7B | {"intermediate_size": 251},
            ["compile.tensor_parallel=2", "quantize.format=int8_sq"],
            "out_features 251 of mlp.fc cannot be split over 2.*Choose a tensor_parallel of 1",
        ),
        (
            LLAMA2_7B | {"intermediate_size": 250},
            ["compile.tensor_parallel=4", "quantize.format=float16"],
            "out_features 250 of mlp.fc cannot be split over 4.*Choose a tensor_parallel of 1, 2",
        ),
        (LLAMA2_7B, ["compile.max_seq_len=8192"], "max_seq_len"),
        (
            LLAMA2_7B,
            ["compile.target=tensorrt", "compile.gpu=B200"],
            "W4A16_AWQ is refused on B200",
        ),
    ],
)
def test_combinations_that_cannot_work(
    tmp_path: Path, config: dict[str, Any], overrides: list[str], expected: str
) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        _check(tmp_path, config, *overrides)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("config", "overrides", "fix", "changes"),
    [
        # 11008 = 43 x 256, so groups of 64 go over four ranks.
        (
            LLAMA2_7B,
            ["compile.tensor_parallel=4"],
            "Set quantize.group_size to 64",
            [["quantize.group_size=64"]],
        ),
        # 10912 = 341 x 32 is a multiple of neither 64 nor 128, and one rank cannot be fewer.
        (
            LLAMA2_7B | {"intermediate_size": 10912},
            [],
            "Set quantize.format to int8_sq or float16",
            [["quantize.format=int8_sq"], ["quantize.format=float16"]],
        ),
        (
            LLAMA2_7B | {"intermediate_size": 10912},
            ["quantize.group_size=64", "compile.target=tensorrt", "compile.gpu=L4"],
            "Set quantize.format to int8_sq, fp8 or float16",
            [["quantize.format=int8_sq"], ["quantize.format=fp8"], ["quantize.format=float16"]],
        ),
        # 11072 = 173 x 64: no group goes over two ranks, one rank takes groups of 64.
        (
            LLAMA2_7B | {"intermediate_size": 11072},
            ["compile.tensor_parallel=2", "quantize.group_size=64"],
            "Choose a tensor_parallel of 1, or set quantize.format to int8_sq or float16",
            [["compile.tensor_parallel=1"], ["quantize.format=int8_sq"]],
        ),
        # Four ranks would split the heads and not the groups.
        (
            LLAMA2_7B,
            ["compile.tensor_parallel=3"],
            "Choose a tensor_parallel of 1, 2",
            [["compile.tensor_parallel=1"], ["compile.tensor_parallel=2"]],
        ),
        # 18944 = 18.5 x 8 x 128: AWQ's groups do not go over eight ranks either.
        (
            QWEN25_7B | {"num_attention_heads": 32},
            ["compile.tensor_parallel=8", "quantize.format=int8_sq"],
            "Choose a tensor_parallel of 1, 2, 4, or set quantize.format to float16",
            [["compile.tensor_parallel=4"], ["quantize.format=float16"]],
        ),
        (
            LLAMA2_7B | {"num_hidden_layers": 6},
            ["compile.pipeline_parallel=4"],
            "Choose a pipeline_parallel of 1, 2, 3, 6",
            [["compile.pipeline_parallel=3"]],
        ),
    ],
)
def test_what_a_refusal_says_to_do_is_taken(
    tmp_path: Path,
    config: dict[str, Any],
    overrides: list[str],
    fix: str,
    changes: list[list[str]],
) -> None:
    with pytest.raises(UnsupportedError, match=r"mlp\.(fc|proj)| over ") as refused:
        _check(tmp_path, config, *overrides)
    assert refused.value.fix == fix
    for change in changes:
        _check(tmp_path, config, *overrides, *change)


# open_llama_3b: 32 heads of 100 features, which the TensorRT-LLM project refused in its issue 679.
OPEN_LLAMA_3B = LLAMA2_7B | {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "max_position_embeddings": 2048,
}


def test_heads_without_a_kernel_are_refused_for_the_gpu_alone(tmp_path: Path) -> None:
    float16 = "quantize.format=float16"
    assert _check(tmp_path, OPEN_LLAMA_3B, float16).compile.target == "openvino"
    with pytest.raises(
        UnsupportedError,
        match=r"compile\.target\): heads of 100 features do not run on TensorRT-LLM.*"
        r"heads of 32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224 and 256 features only\. "
        r"Set compile\.target to openvino",
    ):
        _check(tmp_path, OPEN_LLAMA_3B, float16, "compile.target=tensorrt")


@pytest.mark.parametrize("head", [64, 96, 128, 256])
def test_heads_of_the_usual_models_have_kernels(tmp_path: Path, head: int) -> None:
    config = OPEN_LLAMA_3B | {"head_dim": head}
    target = ["quantize.format=float16", "compile.target=tensorrt"]
    assert _check(tmp_path, config, *target).compile.target == "tensorrt"


def test_the_refusal_names_line_and_key(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"recipe\.yaml:4 \(quantize\.group_size\)"):
        _check(tmp_path, LLAMA2_7B, "compile.tensor_parallel=4")


def test_code_of_the_model_is_not_what_the_targets_compute(tmp_path: Path) -> None:
    own = LLAMA2_7B | {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    # Without leave to run it transformers takes its own class.
    _check(tmp_path, own)
    trusting = ("model.trust_remote_code=true", f"model.revision={'a' * 40}")
    _check(tmp_path, LLAMA2_7B, *trusting)
    _check(tmp_path, LLAMA2_7B | {"auto_map": {"AutoTokenizer": "own.Tokenizer"}}, *trusting)
    with pytest.raises(UnsupportedError, match=r"code of its own.*auto_map.*LlamaForCausalLM"):
        _check(tmp_path, own, *trusting)
