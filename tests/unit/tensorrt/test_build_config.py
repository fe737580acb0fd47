"""The flags against the arguments that trtllm-build 1.2 documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe.tensorrt import PluginSection
from pipeline.targets.tensorrt.plan.build_config import BuildConfig, PluginConfig

from .recipes import recipe

# commands/build.py and cli_plugin_args of plugin.py, as far as they concern a dense decoder.
ARGUMENTS = frozenset(
    """--max_batch_size --max_input_len --max_seq_len --max_num_tokens --opt_num_tokens
    --max_beam_width --kv_cache_type --gather_context_logits --input_timing_cache
    --output_timing_cache --workers --gpt_attention_plugin --gemm_plugin --gemm_swiglu_plugin
    --low_latency_gemm_plugin --low_latency_gemm_swiglu_plugin --gemm_allreduce_plugin
    --nccl_plugin --context_fmha --remove_input_padding --tokens_per_block
    --use_paged_context_fmha --use_fp8_context_fmha --multiple_profiles --norm_quant_fusion
    --reduce_fusion --user_buffer --use_fused_mlp""".split()  # noqa: SIM905
)


def _pairs(flags: list[str]) -> dict[str, str | None]:
    pairs: dict[str, str | None] = {}
    for index, flag in enumerate(flags):
        if flag.startswith("--"):
            following = flags[index + 1] if index + 1 < len(flags) else "--"
            assert flag not in pairs
            pairs[flag] = None if following.startswith("--") else following
    return pairs


def test_the_flags_of_a_plain_recipe(tmp_path: Path) -> None:
    flags = _pairs(BuildConfig.from_recipe(recipe(tmp_path)).flags())
    assert flags == {
        "--max_batch_size": "64",
        "--max_input_len": "4096",
        "--max_seq_len": "8192",
        "--max_num_tokens": "8192",
        "--opt_num_tokens": "64",
        "--max_beam_width": "1",
        "--kv_cache_type": "paged",
        "--tokens_per_block": "32",
        "--gpt_attention_plugin": "auto",
        "--gemm_plugin": "auto",
        "--context_fmha": "enable",
        "--remove_input_padding": "enable",
        "--use_paged_context_fmha": "enable",
        "--use_fp8_context_fmha": "disable",
        "--multiple_profiles": "disable",
        "--reduce_fusion": "disable",
        "--workers": "1",
    }


def test_every_option_becomes_an_argument_that_exists(tmp_path: Path) -> None:
    config = BuildConfig.from_recipe(
        recipe(
            tmp_path,
            "compile.tensor_parallel=4",
            "compile.tensorrt.workers=2",
            "compile.tensorrt.gather_context_logits=true",
            "compile.tensorrt.opt_num_tokens=128",
            "compile.tensorrt.plugin_config={gemm_plugin: null, gemm_swiglu_plugin: fp8, "
            "low_latency_gemm_plugin: fp8, low_latency_gemm_swiglu_plugin: fp8, "
            "gemm_allreduce_plugin: float16, nccl_plugin: null, norm_quant_fusion: true, "
            "reduce_fusion: true, user_buffer: true, use_fused_mlp: false}",
        )
    ).with_timing_cache(Path("/in.cache"), Path("/out.cache"))
    flags = _pairs(config.flags())
    assert set(flags) == ARGUMENTS
    assert flags["--gemm_plugin"] == flags["--nccl_plugin"] == "disable"
    assert flags["--use_fused_mlp"] == "disable"
    assert flags["--user_buffer"] == "enable"
    assert flags["--gather_context_logits"] is None
    assert flags["--workers"] == "2"
    assert flags["--opt_num_tokens"] == "128"
    assert flags["--input_timing_cache"] == "/in.cache"


def test_fp8_attention_is_asked_for_where_weights_and_cache_are_fp8(tmp_path: Path) -> None:
    def wanted(*overrides: str) -> bool:
        config = BuildConfig.from_recipe(recipe(tmp_path, *overrides))
        return config.plugin_config.use_fp8_context_fmha

    assert wanted("quantize.format=fp8", "quantize.kv_cache=fp8")
    assert not wanted("quantize.format=fp8")
    assert not wanted("quantize.format=int4_awq", "quantize.kv_cache=fp8")
    assert wanted("compile.tensorrt.plugin_config.use_fp8_context_fmha=true")


def test_several_profiles_leave_the_optimum_open(tmp_path: Path) -> None:
    override = "compile.tensorrt.plugin_config.multiple_profiles=true"
    flags = _pairs(BuildConfig.from_recipe(recipe(tmp_path, override)).flags())
    assert "--opt_num_tokens" not in flags
    assert flags["--multiple_profiles"] == "enable"
    with pytest.raises(RecipeError, match="cannot go with multiple_profiles"):
        recipe(tmp_path, override, "compile.tensorrt.opt_num_tokens=64")


def test_one_worker_per_rank_unless_said_otherwise(tmp_path: Path) -> None:
    overrides = ("compile.tensor_parallel=4", "compile.pipeline_parallel=2")
    assert BuildConfig.from_recipe(recipe(tmp_path, *overrides)).workers == 8


def test_the_evaluation_engine_is_the_same_for_one_window(tmp_path: Path) -> None:
    config = BuildConfig.from_recipe(recipe(tmp_path))
    asked, plain = _pairs(config.for_evaluation(2048).flags()), _pairs(config.flags())
    assert asked.keys() ^ plain.keys() == {"--gather_context_logits", "--opt_num_tokens"}
    assert {flag: value for flag, value in asked.items() if value != plain.get(flag, "")} == {
        "--gather_context_logits": None,
        "--max_batch_size": "1",
        "--max_input_len": "2048",
        "--max_seq_len": "2049",
        "--max_num_tokens": "2048",
    }


def test_a_short_window_still_fills_a_block(tmp_path: Path) -> None:
    config = BuildConfig.from_recipe(recipe(tmp_path)).for_evaluation(10)
    assert (config.max_seq_len, config.max_num_tokens) == (11, 32)


def test_recipe_and_build_configuration_have_the_same_options() -> None:
    options = {field.name for field in dataclasses.fields(PluginConfig)}
    # compile.tokens_per_block and compile.tensorrt.lora decide these two.
    assert options - {"tokens_per_block", "lora_plugin"} == set(PluginSection.model_fields)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gemm_plugn=auto", r"Did you mean gemm_plugin\?"),
        ("use_paged_kv_fmha=true", r"Did you mean use_paged_context_fmha\?"),
        ("gemm_plugin=int4", "'int4' is not allowed: it is 'auto', .*'fp8' or null"),
        ("context_fmha=enable", "is true or false"),
        ("paged_kv_cache=true", "There is no paged_kv_cache: write compile.tensorrt.kv_cache_type"),
        ("use_inflight_batching=true", "in-flight batching is always on"),
        ("enable_xqa=true", "XQA kernels are always on"),
        ("smooth_quant_plugins=false", "from the checkpoint"),
        ("tokens_per_block=64", "write compile.tokens_per_block"),
    ],
)
def test_unknown_and_removed_options_are_refused(
    tmp_path: Path, override: str, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        recipe(tmp_path, f"compile.tensorrt.plugin_config.{override}")
    assert "compile.tensorrt.plugin_config" in str(caught.value)
