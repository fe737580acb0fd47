"""The double of ``trtllm-build`` against the contract, and the pre-flight against the double.

The double's rules were written from the description of TensorRT-LLM 1.2 and not from the pipeline's
code, so that agreement of the two means something.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import CheckpointConfig
from pipeline.checkpoint.expected import expected_tensors
from pipeline.targets.tensorrt.build.engine import compare
from pipeline.targets.tensorrt.gpus import GIB, Gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.preview import Effective, predict_build
from tests.doubles.trtllm_build import arguments, checkpoint, overrides
from tests.doubles.trtllm_build.command import build_config
from tests.unit.tensorrt.build_support import (
    ALGOS,
    checkpoint_config,
    recipe,
    write_header,
    write_headers,
)


def silent(_level: str, _text: str) -> None:
    """Drops log lines."""


def upstream(requested: BuildConfig, config: dict[str, Any], sm: int) -> dict[str, Any]:
    """The ``build_config`` that the double makes of the flags."""
    flags = arguments.parser().parse_args(["--checkpoint_dir", "x", *requested.flags()])
    built = build_config(flags, arguments.plugin_config(flags, config["dtype"]))
    overrides.apply(built, config, sm, silent)
    return built


def load_config(tmp_path: Path, **settings: Any) -> tuple[dict[str, Any], CheckpointFacts]:
    """A configuration as the double and as the pipeline read it."""
    directory = write_headers(tmp_path / "checkpoint", checkpoint_config(**settings))
    facts = CheckpointFacts.from_checkpoint(CheckpointConfig.from_directory(directory))
    return checkpoint.read_config(directory, silent), facts


PLUGINS: tuple[dict[str, Any], ...] = (
    {},
    {"context_fmha": False},
    {"use_paged_context_fmha": False},
    {"use_fp8_context_fmha": True},
    {"use_fp8_context_fmha": False},
    {"use_fp8_context_fmha": True, "use_paged_context_fmha": False},
    {"reduce_fusion": True, "user_buffer": True},
    {"multiple_profiles": True},
    {"norm_quant_fusion": True, "gemm_plugin": None},
)
# A KV cache format without quantized weights is refused by the recipe.
COMBINATIONS = [
    (quantization, kv_cache)
    for quantization in ALGOS
    for kv_cache in (None, "int8", "fp8")
    if kv_cache is None or ALGOS[quantization]
]
SIZES: tuple[dict[str, int], ...] = (
    {},
    {"max_batch_size": 1, "max_num_tokens": 8192},
    {"max_num_tokens": 32},
    {"max_batch_size": 64, "max_num_tokens": 32768},
    {"max_seq_len": 4096, "max_input_len": 4096, "max_num_tokens": 256},
)


@pytest.mark.parametrize(("quantization", "kv_cache"), COMBINATIONS)
def test_prediction_and_double_agree(
    quantization: str, kv_cache: str | None, tmp_path: Path
) -> None:
    for tp in (1, 2):
        config, facts = load_config(
            tmp_path / str(tp), quantization=quantization, kv_cache=kv_cache, tp=tp
        )
        for sm, plugins, sizes in itertools.product((80, 89, 90, 120), PLUGINS, SIZES):
            changes: dict[str, Any] = {"tensor_parallel": tp, **sizes}
            requested = BuildConfig.from_recipe(
                recipe(quantization, kv_cache=kv_cache, plugins=plugins, **changes)
            )
            expected = effective(requested, facts, sm).config.as_dict()
            # The pre-flight leaves it as it is asked for: no choice of the user's survives.
            nccl = expected["plugin_config"].pop("nccl_plugin")
            assert nccl == "auto"
            found = upstream(requested, config, sm)
            assert compare(found, expected) == [], (sm, plugins, sizes)
            assert found["plugin_config"]["nccl_plugin"] == (None if tp == 1 else config["dtype"])


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize(("longest", "max_seq_len"), [(512, 1024), (15, 16), (4095, 4096)])
def test_prediction_and_double_agree_on_the_evaluation_engine(
    longest: int, max_seq_len: int, plugins: dict[str, Any], tmp_path: Path
) -> None:
    config, facts = load_config(tmp_path, quantization="float16")
    requested = BuildConfig.from_recipe(
        recipe("float16", plugins=plugins, max_seq_len=max_seq_len, max_input_len=8)
    ).for_evaluation(longest)
    expected = effective(requested, facts, 90).config.as_dict()
    del expected["plugin_config"]["nccl_plugin"]
    found = upstream(requested, config, 90)
    assert compare(found, expected) == []
    assert found["max_num_tokens"] >= longest
    assert found["max_seq_len"] >= longest + 1


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("lookahead", [(4, 3, 4), (7, 7, 7), (1, 2, 1)])
def test_prediction_and_double_agree_on_lookahead(
    lookahead: tuple[int, int, int], sizes: dict[str, int], tmp_path: Path
) -> None:
    config, facts = load_config(tmp_path, quantization="float16")
    names = ("window_size", "ngram_size", "verification_set_size")
    options = {"lookahead": dict(zip(names, lookahead, strict=True))}
    requested = BuildConfig.from_recipe(recipe("float16", options=options, **sizes))
    expected = effective(requested, facts, 90).config.as_dict()
    del expected["plugin_config"]["nccl_plugin"]
    found = upstream(requested, config, 90)
    assert compare(found, expected) == []
    assert found["speculative_decoding_mode"] == 8
    plain = upstream(BuildConfig.from_recipe(recipe("float16", **sizes)), config, 90)
    assert found["max_seq_len"] == plain["max_seq_len"] + found["max_draft_len"]
    assert found["max_num_tokens"] >= found["max_batch_size"] * (found["max_draft_len"] + 1)


@pytest.mark.parametrize("quantization", ["float16", "int4_awq", "fp8"])
def test_prediction_and_double_agree_on_lora(quantization: str, tmp_path: Path) -> None:
    config, facts = load_config(tmp_path, quantization=quantization)
    modules = ["mlp_gate", "attn_q", "attn_k", "attn_v"]
    options = {"lora": {"target_modules": modules, "max_rank": 24}}
    requested = BuildConfig.from_recipe(recipe(quantization, options=options))
    expected = effective(requested, facts, 90).config.as_dict()
    del expected["plugin_config"]["nccl_plugin"]
    found = upstream(requested, config, 90)
    assert compare(found, expected) == []
    assert found["plugin_config"]["lora_plugin"] == "auto"
    assert found["lora_config"]["lora_target_modules"] == modules
    assert found["lora_config"]["max_lora_rank"] == 24
    # The engine that is only measured has none.
    plain = upstream(requested.for_evaluation(100), config, 90)
    assert plain["plugin_config"]["lora_plugin"] is None
    assert plain["lora_config"]["lora_target_modules"] == []


def test_the_double_refuses_lora_as_the_preflight_does(tmp_path: Path) -> None:
    config, _ = load_config(tmp_path, quantization="int8_sq")
    requested = BuildConfig.from_recipe(recipe("int8_sq", options={"lora": {}}))
    with pytest.raises(AssertionError, match="lora is not supported on SmoothQuantGatedMLP"):
        upstream(requested, config, 90)


@pytest.mark.parametrize("sm", [70, 75])
@pytest.mark.parametrize("quantization", ALGOS)
def test_the_preflight_alone_knows_that_old_gpus_have_no_kernels(
    quantization: str, sm: int, tmp_path: Path
) -> None:
    """Upstream's own checks pass them; the build then ends in a kernel that is not there."""
    config, facts = load_config(tmp_path, quantization=quantization)
    requested = BuildConfig.from_recipe(recipe(quantization))
    upstream(requested, config, sm)
    (error,) = [f for f in effective(requested, facts, sm).findings if f.severity == "error"]
    assert f"SM 80 (Ampere) or later; some is SM {sm}" in error.why


def effective(requested: BuildConfig, facts: CheckpointFacts, sm: int) -> Effective:
    """The prediction for a GPU of that compute capability."""
    return predict_build(requested, facts, Gpu("some", sm, 80 * GIB))


@pytest.mark.parametrize(("quantization", "kv_cache"), COMBINATIONS)
def test_what_upstream_refuses_on_blackwell_the_preflight_refuses(
    quantization: str, kv_cache: str | None, tmp_path: Path
) -> None:
    config, facts = load_config(tmp_path, quantization=quantization, kv_cache=kv_cache)
    requested = BuildConfig.from_recipe(recipe(quantization, kv_cache=kv_cache))
    findings = effective(requested, facts, 100).findings
    refused = any(finding.severity == "error" for finding in findings)
    int_formats = quantization in ("int8_sq", "int4_awq", "w4a8_awq") or kv_cache == "int8"
    assert refused == int_formats
    if refused:
        with pytest.raises(RuntimeError, match="not supported on SM>=100"):
            upstream(requested, config, 100)
    else:
        upstream(requested, config, 100)


def test_the_rules_by_hand(tmp_path: Path) -> None:
    """A few results that do not come from either program."""
    config, _ = load_config(tmp_path, quantization="int8_sq", kv_cache="int8")
    requested = BuildConfig.from_recipe(
        recipe("int8_sq", kv_cache="int8", max_batch_size=2, max_num_tokens=4096)
    )
    found = upstream(requested, config, 90)
    assert found["max_num_tokens"] == 2 * 1024
    assert found["opt_num_tokens"] == 2
    assert found["kv_cache_type"] == "PAGED"
    assert found["plugin_config"]["use_paged_context_fmha"] is False
    assert found["plugin_config"]["use_fp8_context_fmha"] is False
    assert found["plugin_config"]["weight_only_groupwise_quant_matmul_plugin"] is None


@pytest.mark.parametrize(
    "argument",
    [
        ["--use_inflight_batching"],
        ["--enable_xqa", "enable"],
        ["--multi_block_mode", "enable"],
        ["--use_custom_all_reduce", "enable"],
        ["--context_fmha_fp32_acc", "enable"],
        ["--auto_parallel", "2"],
        ["--smooth_quant_gemm_plugin", "float16"],
        ["--context_fmha", "true"],
        ["--gemm_plugin", "int8"],
        ["--kv_cache_type", "blocks"],
        ["--max_batch", "4"],
    ],
)
def test_arguments_that_upstream_does_not_have(
    argument: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        arguments.parser().parse_args(["--checkpoint_dir", "x", *argument])
    assert "trtllm-build: error: " in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ALGOS)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (4, 1)])
def test_the_loader_wants_the_tensors_that_our_validator_wants(
    quantization: str, tp: int, pp: int, tmp_path: Path
) -> None:
    settings = checkpoint_config(quantization, tp=tp, pp=pp, intermediate_size=2048)
    directory = write_headers(tmp_path / "checkpoint", settings)
    config = checkpoint.read_config(directory, silent)
    ours = CheckpointConfig.from_directory(directory)
    for rank in range(tp * pp):
        wanted = {name: tensor.shape for name, tensor in expected_tensors(ours, rank).items()}
        assert checkpoint.parameters(config, rank) == wanted


def test_an_awq_shape_that_upstream_pads_does_not_load(tmp_path: Path) -> None:
    settings = checkpoint_config("int4_awq", tp=2, intermediate_size=1152)
    directory = tmp_path / "checkpoint"
    write_headers(directory, settings)
    config = checkpoint.read_config(directory, silent)
    shapes = checkpoint.parameters(config, 0)
    # 1152 = 9 * 128 is not divisible by 128 * 2, so that upstream rounds it up to 1280.
    assert shapes["transformer.layers.0.mlp.fc.weight"] == (1280 // 2 // 2, 512)
    exported = shapes | {"transformer.layers.0.mlp.fc.weight": (1152 // 2 // 2, 512)}
    write_header(directory / "rank0.safetensors", exported)
    with pytest.raises(RuntimeError, match=r"not the same shape.*mlp\.fc\.weight"):
        checkpoint.load(directory, config, 0, silent)


def test_the_loader_is_as_strict_and_as_lax_as_upstreams(tmp_path: Path) -> None:
    settings = checkpoint_config("int4_awq")
    settings["quantization"]["pre_quant_scale"] = False
    directory = write_headers(tmp_path / "a", settings)
    complete = checkpoint_config("int4_awq")
    scaled = checkpoint.parameters(
        checkpoint.read_config(write_headers(tmp_path / "b", complete), silent), 0
    )
    write_header(directory / "rank0.safetensors", scaled)
    lines: list[str] = []
    config = checkpoint.read_config(directory, silent)
    # Silent garbage: the scales are there, and only a warning says that nobody reads them.
    checkpoint.load(directory, config, 0, lambda level, text: lines.append(f"{level} {text}"))
    assert lines[0].startswith("W Provided but not required tensors: ")
    assert "prequant_scaling_factor" in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": {"quant_algo": None, "bits": 4}}, "unexpected keyword argument 'bits'"),
        ({"mapping": {"world_size": 1, "auto_parallel": False}}, "argument 'auto_parallel'"),
        ({"mapping": {"world_size": 4, "tp_size": 2}}, "world_size must equal"),
        ({"architecture": "GPT2LMHeadModel"}, "Unsupported model architecture"),
        ({"architecture": "Qwen2ForCausalLM", "qwen_type": "qwen2"}, "no attribute 'seq_length'"),
    ],
)
def test_configurations_that_do_not_load(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(checkpoint_config("float16") | changes))
    with pytest.raises((TypeError, ValueError, AssertionError, AttributeError), match=message):
        checkpoint.read_config(tmp_path, silent)
