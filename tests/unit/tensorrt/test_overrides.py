"""Upstream's silent changes, one by one, with the values that its own code would write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.targets.tensorrt.gpus import GPUS
from pipeline.targets.tensorrt.plan.build_config import BuildConfig, PluginConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.overrides import apply_overrides

from .recipes import model, preview, recipe

CONFIG = BuildConfig(
    max_batch_size=8,
    max_input_len=1024,
    max_seq_len=2048,
    max_num_tokens=4096,
    opt_num_tokens=8,
    plugin_config=PluginConfig(use_fp8_context_fmha=True),
)


def _facts(algo: str = "NO_QUANT", kv_cache: str | None = None, tp: int = 1) -> CheckpointFacts:
    group = 128 if algo in ("W4A16_AWQ", "W4A8_AWQ") else None
    return CheckpointFacts(model("llama-3.1-8b"), "float16", algo, kv_cache, group, tp, 1)


@pytest.mark.parametrize(
    ("algo", "kv_cache", "gpu", "paged", "fp8"),
    [
        # "KV reuse usable with fp16 KV: any algo; FP8 KV: FP8 algos on SM>=89; never INT8 KV".
        ("NO_QUANT", None, "A100-80GB", True, False),
        ("NO_QUANT", None, "H100-80GB", True, False),
        ("W4A16_AWQ", None, "L4", True, False),
        ("W8A8_SQ_PER_CHANNEL", None, "H100-80GB", True, False),
        ("FP8", None, "H100-80GB", True, False),
        ("FP8", "FP8", "H100-80GB", True, True),
        ("FP8", "FP8", "L40S", True, True),
        ("FP8", "FP8", "A100-80GB", False, False),
        ("W4A8_AWQ", "FP8", "L40S", True, True),
        ("W4A16_AWQ", "FP8", "H100-80GB", False, False),
        ("W8A8_SQ_PER_CHANNEL", "FP8", "H100-80GB", False, False),
        ("W4A16_AWQ", "INT8", "A100-80GB", False, False),
        ("W8A8_SQ_PER_CHANNEL", "INT8", "H100-80GB", False, False),
        ("FP8", "INT8", "H100-80GB", False, False),
    ],
)
def test_paged_and_fp8_attention(
    algo: str, kv_cache: str | None, gpu: str, paged: bool, fp8: bool
) -> None:
    effective, findings = apply_overrides(CONFIG, _facts(algo, kv_cache), GPUS[gpu])
    plugins = effective.plugin_config
    assert (plugins.use_paged_context_fmha, plugins.use_fp8_context_fmha) == (paged, fp8)
    told = " ".join(f"{finding.what} {finding.why}" for finding in findings)
    assert ("use_paged_context_fmha is switched off" in told) is not paged
    assert ("use_fp8_context_fmha is switched off" in told) is not fp8


def test_fp8_attention_is_switched_on_for_paged_fp8_blocks() -> None:
    off = replace(CONFIG, plugin_config=PluginConfig(use_fp8_context_fmha=False))
    effective, (finding,) = apply_overrides(off, _facts("FP8", "FP8"), GPUS["H100-80GB"])
    assert effective.plugin_config.use_fp8_context_fmha
    assert "switched on" in finding.what


def test_without_context_fmha_nothing_paged_is_left() -> None:
    config = replace(CONFIG, plugin_config=PluginConfig(context_fmha=False), max_num_tokens=512)
    effective, findings = apply_overrides(config, _facts("FP8", "FP8"), GPUS["H100-80GB"])
    assert not effective.plugin_config.use_paged_context_fmha
    assert not effective.plugin_config.use_fp8_context_fmha
    # A whole prompt must fit into a step then.
    assert effective.max_num_tokens == 1024
    assert len(findings) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_input_len": 4096}, {"max_input_len": 2048}),
        ({"max_num_tokens": 65536}, {"max_num_tokens": 16384}),  # 8 x 2048
        ({"max_num_tokens": 16}, {"max_num_tokens": 32}),
        ({"opt_num_tokens": 9999}, {"opt_num_tokens": 4096}),
        ({"max_num_tokens": 65536, "opt_num_tokens": 20000}, {"opt_num_tokens": 16384}),
        ({"max_num_tokens": 16384}, {}),
    ],
)
def test_sizes(changes: dict[str, int], expected: dict[str, int]) -> None:
    plain = replace(CONFIG, plugin_config=PluginConfig(use_fp8_context_fmha=False))
    asked = replace(plain, **changes)  # type: ignore[arg-type]
    effective, findings = apply_overrides(asked, _facts(), None)
    for name, value in expected.items():
        assert getattr(effective, name) == value
    assert bool(findings) is bool(expected)


def test_padded_input_makes_every_step_full() -> None:
    config = replace(CONFIG, plugin_config=PluginConfig(remove_input_padding=False))
    effective, _ = apply_overrides(config, _facts(), None)
    assert effective.max_num_tokens == 8 * 2048


def test_a_very_large_step_is_warned_of() -> None:
    config = replace(CONFIG, max_num_tokens=32768, max_batch_size=64)
    effective, findings = apply_overrides(config, _facts(), None)
    assert effective.max_num_tokens == 32768
    assert any("above 16384" in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("architecture", "tp", "fused"),
    [
        ("llama-3.1-8b", 2, True),
        ("llama-3.1-8b", 1, False),
        ("qwen2.5-7b", 2, False),
    ],
)
def test_reduce_fusion_is_for_llama_on_several_ranks(
    architecture: str, tp: int, fused: bool
) -> None:
    plugins = PluginConfig(
        reduce_fusion=True, user_buffer=True, norm_quant_fusion=True, use_fp8_context_fmha=False
    )
    facts = replace(_facts(tp=tp), model=model(architecture))
    effective, findings = apply_overrides(replace(CONFIG, plugin_config=plugins), facts, None)
    assert effective.plugin_config.reduce_fusion is fused
    assert effective.plugin_config.user_buffer is fused
    assert not effective.plugin_config.norm_quant_fusion
    assert len(findings) == (1 if fused else 3)


def test_a_recipe_that_needs_no_override_gets_none(tmp_path: Path) -> None:
    result = preview(tmp_path, "compile.gpu=L4")
    assert result.effective.config == result.requested
    assert {finding.severity for finding in result.effective.findings} <= {"note"}
    assert result.effective.kv_cache_reuse
    assert result.effective.chunked_context


def test_every_finding_names_a_key_that_the_recipe_has(tmp_path: Path) -> None:
    result = preview(
        tmp_path,
        "quantize.kv_cache=int8",
        "compile.gpu=B200",
        "compile.max_num_tokens=32768",
        "compile.tensorrt.plugin_config={reduce_fusion: true, user_buffer: true, "
        "norm_quant_fusion: true, use_fp8_context_fmha: true, gemm_plugin: fp8, "
        "gpt_attention_plugin: null, gemm_swiglu_plugin: fp8}",
    )
    whole = recipe(tmp_path).model_dump()
    assert len(result.effective.findings) > 8
    for finding in result.effective.findings:
        section = whole
        for part in finding.key.split("."):
            assert part in section, finding.key
            section = section[part] or {}
        assert finding.why
        assert finding.remedy
