from __future__ import annotations

import pytest

from pipeline.checkpoint import CheckpointConfig
from pipeline.errors import CheckpointError, UnsupportedError
from tests.unit.checkpoint.support import AWQ, config

WHERE = "config.json"


def read(**changes: object) -> CheckpointConfig:
    return CheckpointConfig.from_dict(config(**changes), WHERE)


def test_rope_scaling_reaches_the_facts_whichever_key_names_its_type() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = read(rotary_base=5e5, rotary_scaling={"type": "llama3", **scaling})
    new = read(rotary_base=5e5, rotary_scaling={"rope_type": "llama3", **scaling})
    assert old.facts == new.facts
    assert old.facts.rotary_base == 5e5
    assert old.facts.rotary_scaling == {"rope_type": "llama3", **scaling}


def test_a_lost_rotary_base_is_an_error_because_tensorrt_llm_would_assume_one() -> None:
    incomplete = config()
    del incomplete["rotary_base"]
    with pytest.raises(CheckpointError, match="rotary_base is missing"):
        CheckpointConfig.from_dict(incomplete, WHERE)


def test_positions_must_be_those_of_rope() -> None:
    """PretrainedConfig's default is learned_absolute, with which Qwen is built without rope."""
    incomplete = config()
    del incomplete["position_embedding_type"]
    with pytest.raises(CheckpointError, match="position_embedding_type is missing"):
        CheckpointConfig.from_dict(incomplete, WHERE)
    with pytest.raises(CheckpointError, match="position_embedding_type is 'learned_absolute'"):
        read(position_embedding_type="learned_absolute")


def test_qwen_needs_the_keys_that_tensorrt_llm_defaults_silently() -> None:
    qwen = {"architecture": "Qwen3ForCausalLM", "attn_bias": False, "seq_length": 8192}
    assert read(**qwen, qwen_type="qwen3").facts.qk_layernorm
    with pytest.raises(CheckpointError, match="qwen_type is missing"):
        read(**qwen)
    with pytest.raises(CheckpointError, match="qwen_type is 'qwen2' for Qwen3ForCausalLM"):
        read(**qwen, qwen_type="qwen2")


def test_every_key_of_upstreams_quantization_is_known() -> None:
    """The fields of QuantConfig in models/modeling_utils.py of 1.2; engines list all of them."""
    section = {"smoothquant_val": 0.5, "clamp_val": None, "use_meta_recipe": False}
    section |= {"mamba_ssm_cache_dtype": None, "kv_cache_quant_algo": None}
    assert read(quantization={"quant_algo": None, **section}).quantization.algo == "NO_QUANT"


def test_an_unknown_quantization_key_is_refused_like_upstream() -> None:
    with pytest.raises(CheckpointError, match="unknown quantization key groupsize"):
        read(quantization={"quant_algo": None, "groupsize": 128})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pre_quant_scale": False}, "pre-quant scales would be ignored"),
        ({"has_zero_point": "yes"}, "has_zero_point is 'yes'"),
        # Upstream's W4A8 layer has no zero points.
        ({"quant_algo": "W4A8_AWQ", "has_zero_point": True}, "has_zero_point is True"),
        ({"group_size": 32}, "group_size is 32"),
        # "W4A8_AWQ with group_size = 64 is not implemented yet!" when upstream makes the layer.
        ({"quant_algo": "W4A8_AWQ", "group_size": 64}, "group_size is 64, not 128"),
    ],
)
def test_awq_without_its_keys_would_load_wrong_and_is_refused(
    change: dict[str, object], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(quantization=AWQ | change)


@pytest.mark.parametrize(
    ("algo", "reason"),
    [
        ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "PER_TOKEN_PLUGIN is not supported.*q/k norms"),
        ("W8A16", "quantizes weight-only formats itself"),
        ("NVFP4", "NVFP4 is not supported.*W4A16_AWQ"),
    ],
)
def test_other_formats_are_refused_by_name(algo: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        read(quantization={"quant_algo": algo})


def test_a_quantized_lm_head_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="lm_head is quantized"):
        read(quantization=AWQ | {"exclude_modules": []})


def test_excluded_modules_stay_in_floating_point() -> None:
    patterns = ["lm_head", "*.attention.dense"]
    quantization = read(quantization=AWQ | {"exclude_modules": patterns}).quantization
    assert quantization.algo_of("transformer.layers.1.attention.dense") == "NO_QUANT"
    assert quantization.algo_of("transformer.layers.1.attention.qkv") == "W4A16_AWQ"


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"world_size": 4, "tp_size": 2, "pp_size": 1}, "world_size 4, tp_size 2"),
        ({"world_size": 3, "tp_size": 1, "pp_size": 3}, "2 layers cannot be divided"),
        (
            {"world_size": 3, "tp_size": 3, "pp_size": 1},
            "4 attention heads cannot be split over 3.*tp_size 3",
        ),
    ],
)
def test_impossible_mappings(mapping: dict[str, int], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(mapping=mapping)


def test_a_missing_size_names_the_file() -> None:
    incomplete = config()
    del incomplete["intermediate_size"]
    with pytest.raises(CheckpointError, match=r"config\.json: .*intermediate_size"):
        CheckpointConfig.from_dict(incomplete, WHERE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mapping": [1]}, r"mapping is \[1\], not an object"),
        ({"mapping": {"tp_size": "x"}}, r"mapping\.tp_size is 'x', not a positive integer"),
        ({"mapping": {"pp_size": 0}}, r"mapping\.pp_size is 0"),
        ({"mapping": {"world_size": True}}, r"mapping\.world_size is True"),
        ({"quantization": [1]}, r"quantization is \[1\]"),
        ({"quantization": AWQ | {"exclude_modules": 5}}, "exclude_modules is 5, not a list"),
        ({"quantization": AWQ | {"exclude_modules": ["a", 5]}}, "not a list of patterns"),
        ({"embedding_sharding_dim": 7}, "embedding_sharding_dim is 7"),
        ({"embedding_sharding_dim": "0"}, "embedding_sharding_dim is '0'"),
        ({"use_parallel_embedding": "no"}, "use_parallel_embedding is 'no'"),
        ({"head_size": 0}, "head_size is 0"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon is nan"),
        ({"rotary_base": float("inf")}, "rotary_base is inf"),
        ({"rotary_scaling": 8}, "rotary_scaling is 8"),
        ({"rotary_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"hidden_size": 256.0}, r"hidden_size is 256\.0"),
    ],
)
def test_values_of_the_wrong_kind_are_named(change: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(**change)


def test_a_quant_algo_that_is_no_name_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="quant_algo 5 is not supported"):
        read(quantization={"quant_algo": 5})


def test_every_linear_must_be_divisible_over_the_ranks() -> None:
    mapping = {"world_size": 2, "tp_size": 2, "pp_size": 1}
    with pytest.raises(CheckpointError, match=r"251 of mlp\.fc cannot be split over 2"):
        read(mapping=mapping, intermediate_size=251)
    split = {"hidden_size": 255, "use_parallel_embedding": True, "embedding_sharding_dim": 1}
    with pytest.raises(CheckpointError, match="embeddings of 255 features cannot be split over 2"):
        read(mapping=mapping, **split)


def test_a_mistral_checkpoint_without_a_window_attends_to_everything() -> None:
    # Unlike in a Hugging Face config.json, where a missing key means a window of 4096.
    assert read(architecture="MistralForCausalLM").facts.sliding_window is None
    assert read(architecture="MistralForCausalLM", sliding_window=64).facts.sliding_window == 64


def test_a_missing_number_of_kv_heads_means_as_many_as_heads() -> None:
    settings = config(architecture="MistralForCausalLM")
    del settings["num_key_value_heads"]
    assert CheckpointConfig.from_dict(settings, WHERE).facts.num_key_value_heads == 4


def test_a_missing_activation_is_an_error_because_tensorrt_llm_would_take_gelu() -> None:
    settings = config()
    del settings["hidden_act"]
    with pytest.raises(CheckpointError, match="hidden_act is missing"):
        CheckpointConfig.from_dict(settings, WHERE)
