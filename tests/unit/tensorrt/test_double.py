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
from pipeline.errors import CheckpointError, UnsupportedError
from pipeline.preflight import model_checks
from pipeline.recipe.schema import Recipe
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
    plugins = arguments.plugin_config(flags, config["dtype"])
    overrides.validate_plugins(plugins, sm)
    built = build_config(flags, plugins)
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


def loaded(
    directory: Path, settings: dict[str, Any], without: str = "", **shapes: tuple[int, ...]
) -> list[str]:
    """What the double's loader says of rank 0.

    Args:
        directory: A new directory.
        settings: ``config.json``.
        without: A tensor that the rank file lacks.
        shapes: Shapes of layer 0's tensors by the end of their names, dots as underscores.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(settings))
    config = checkpoint.read_config(directory, silent)
    tensors = checkpoint.parameters(config, 0)
    for end, shape in shapes.items():
        tensors[f"transformer.layers.0.{end.replace('__', '.')}"] = shape
    tensors.pop(without, None)
    write_header(directory / "rank0.safetensors", tensors)
    lines: list[str] = []
    checkpoint.load(directory, config, 0, lambda level, text: lines.append(f"{level} {text}"))
    return lines


def with_quantization(name: str, **changes: Any) -> dict[str, Any]:
    settings = checkpoint_config(name)
    settings["quantization"] |= changes
    return settings


def test_what_upstream_refuses_of_a_checkpoint_the_double_and_the_validator_refuse(
    tmp_path: Path,
) -> None:
    """Texts of quantization/functional.py, models/modeling_utils.py and functional.py."""
    w4a8 = with_quantization("w4a8_awq", group_size=64)
    with pytest.raises(NotImplementedError, match="W4A8_AWQ with group_size = 64 is not impl"):
        loaded(tmp_path / "groups", w4a8)
    with pytest.raises(CheckpointError, match="group_size is 64, not 128"):
        CheckpointConfig.from_dict(w4a8, "config.json")

    zero = with_quantization("int4_awq", has_zero_point=True)
    lacking = "transformer.layers.3.mlp.proj.zero"
    with pytest.raises(RuntimeError, match=rf"Required but not provided tensors:.*{lacking}"):
        loaded(tmp_path / "zero", zero, lacking)
    ours = expected_tensors(CheckpointConfig.from_dict(zero, "config.json"), 0)
    upstreams = checkpoint.parameters(checkpoint.read_config(tmp_path / "zero", silent), 0)
    assert ours[lacking].shape == upstreams[lacking]

    head = with_quantization("fp8", exclude_modules=[])
    lacking = "lm_head.weights_scaling_factor"
    with pytest.raises(RuntimeError, match=rf"Required but not provided tensors:.*{lacking}"):
        loaded(tmp_path / "head", head, lacking)
    with pytest.raises(UnsupportedError, match="lm_head is quantized"):
        CheckpointConfig.from_dict(head, "config.json")

    rope = checkpoint_config("float16", rotary_scaling={"factor": 2.0})
    with pytest.raises(ValueError, match="Unsupported rotary scaling type: None"):
        loaded(tmp_path / "rope", rope)
    with pytest.raises(CheckpointError, match="rope_type is None, not one of"):
        CheckpointConfig.from_dict(rope, "config.json")

    keys = {"attention__k_cache_scaling_factor": (1,)}
    both = {**keys, "attention__v_cache_scaling_factor": (1,)}
    cached = checkpoint_config("fp8", kv_cache="fp8")
    with pytest.raises(AssertionError, match=r"attention\.v_cache_scaling_factor not found"):
        loaded(tmp_path / "keys", cached, **keys)
    assert loaded(tmp_path / "both", cached, **both) == []


def test_what_upstream_loads_the_double_loads(tmp_path: Path) -> None:
    scalar = {"mlp__fc__activation_scaling_factor": ()}
    assert loaded(tmp_path / "scalar", checkpoint_config("fp8"), **scalar) == []
    # The scales of column-parallel layers are merged into others, and named for that.
    (line,) = loaded(tmp_path / "w4a8", checkpoint_config("w4a8_awq"))
    assert line.startswith("W Provided but not required tensors: ")
    assert line.count(".activation_scaling_factor'") == line.count("'") // 2 == 3 * 4
    assert "mlp.proj" not in line


@pytest.mark.parametrize(
    "plugins",
    [
        {"gemm_swiglu_plugin": "fp8"},
        {"low_latency_gemm_swiglu_plugin": "fp8"},
        {"low_latency_gemm_plugin": "fp8"},
    ],
)
def test_plugins_that_upstream_refuses_the_preflight_refuses(
    plugins: dict[str, Any], tmp_path: Path
) -> None:
    """Texts of plugin.py (``validate``) and builder.py (``optimize_model_with_config``)."""
    config, facts = load_config(tmp_path, quantization="fp8")
    (name,) = plugins

    def asked(**changes: Any) -> BuildConfig:
        return BuildConfig.from_recipe(recipe("fp8", plugins={**plugins, **changes}))

    assert errors(asked(), facts, 90) == []
    upstream(asked(), config, 90)
    assert f"{name} is not available" in errors(asked(), facts, 100)
    with pytest.raises(NotImplementedError, match=f"{name}=fp8 is not supported on SM 100"):
        upstream(asked(), config, 100)
    unfused = asked(use_fused_mlp=False)
    if "swiglu" in name:
        assert f"{name} does not go with use_fused_mlp false" in errors(unfused, facts, 90)
        with pytest.raises(RuntimeError, match="GemmSwiGLU plugin requires --use_fused_mlp flag"):
            upstream(unfused, config, 90)
    else:
        assert errors(unfused, facts, 90) == []
        upstream(unfused, config, 90)


def errors(requested: BuildConfig, facts: CheckpointFacts, sm: int) -> list[str]:
    """What the pre-flight refuses on a GPU of that compute capability."""
    found = effective(requested, facts, sm).findings
    return [finding.what for finding in found if finding.severity == "error"]


def test_what_is_written_of_a_llama_and_a_qwen(tmp_path: Path) -> None:
    """Keys and values of upstream's ``to_dict`` methods for two ranks, by hand."""
    rank = {"moe_tp_size": 2, "attn_tp_size": 2, "moe_ep_size": 1, "moe_cluster_size": 1}
    rank |= {"attn_cp_size": 1, "cp_config": {}}
    rank |= {"enable_attention_dp": False, "enable_lm_head_tp_in_adp": False}
    llama, _ = load_config(tmp_path / "llama", quantization="float16", tp=2)
    assert rank.items() <= llama["mapping"].items()
    assert llama["rotary_embedding_dim"] == 64
    assert llama["quantization"]["mamba_ssm_cache_dtype"] is None
    own = {"fc_after_embed": False, "layer_idx_offset": 0, "has_partial_lora_mask": False}
    own |= {"use_input_layernorm_in_first_layer": True, "use_last_layernorm": True}
    assert own.items() <= llama.items()
    qwen = {"architecture": "Qwen2ForCausalLM", "qwen_type": "qwen2", "seq_length": 8192}
    settings = checkpoint_config("float16", **qwen, attn_bias=True)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = checkpoint.read_config(tmp_path, silent)
    assert {"mlp_only_layers": [], "decoder_sparse_step": 1}.items() <= config.items()
    assert not own.keys() & config.keys()


def test_every_build_switches_the_paged_state_off(tmp_path: Path) -> None:
    config, _ = load_config(tmp_path, quantization="float16")
    flags = arguments.parser().parse_args(["--checkpoint_dir", "x"])
    built = build_config(flags, arguments.plugin_config(flags, config["dtype"]))
    lines: list[str] = []
    overrides.apply(built, config, 90, lambda level, text: lines.append(f"{level} {text}"))
    assert lines[0] == "W Overriding paged_state to False"
    assert built["plugin_config"]["paged_state"] is False


SHAPES = tuple(itertools.product((8, 16, 24), (1, 2, 4, 8), (32, 64, 96), (1, 2, 4, 8), (64, 128)))


@pytest.mark.parametrize("quantization", ["int4_awq", "w4a8_awq"])
def test_shapes_are_refused_exactly_where_the_double_pads_them(
    quantization: str, tmp_path: Path
) -> None:
    """A layer that upstream pads does not load; heads, KV heads, head size, ranks, group."""
    verdicts = set()
    for heads, kv_heads, head_size, tp, group in SHAPES:
        if heads % tp or heads % kv_heads or (quantization == "w4a8_awq" and group == 64):
            continue
        sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        sizes |= {"hidden_size": 3072, "intermediate_size": 4096, "head_size": head_size}
        settings = checkpoint_config(quantization, tp=tp, **sizes)
        settings["quantization"]["group_size"] = group
        (tmp_path / "config.json").write_text(json.dumps(settings))
        padded = checkpoint.parameters(checkpoint.read_config(tmp_path, silent), 0)
        config = CheckpointConfig.from_dict(settings, "config.json")
        plain = {name: tensor.shape for name, tensor in expected_tensors(config, 0).items()}
        asked = Recipe.model_validate(
            {
                "name": "t",
                "model": {"source": "m"},
                "quantize": {
                    "format": quantization,
                    "group_size": group,
                    "calibration": {"text": "c.txt"},
                },
                "compile": {"tensor_parallel": tp},
            }
        )
        refused = next(model_checks._quantization(asked, config.facts), None) is not None
        assert refused == (padded != plain), (heads, kv_heads, head_size, tp, group)
        verdicts.add((refused, kv_heads < tp))
    assert len(verdicts) == 4


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
