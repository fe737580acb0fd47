"""Facts read from config.json, against what transformers says of the same configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SourceError, UnsupportedError
from pipeline.models.facts import ModelFacts

LLAMA3_ROPE: dict[str, object] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_ROPE,
}


def test_llama_3_1_8b() -> None:
    facts = ModelFacts.from_config(LLAMA, "config.json")
    assert facts.head_size == 128
    assert facts.rotary_base == 500000.0
    assert facts.rotary_scaling == LLAMA3_ROPE
    shapes = {linear.name: (linear.out_features, linear.in_features) for linear in facts.linears}
    # 32 query heads and 2 x 8 KV heads of 128.
    assert shapes["attention.qkv"] == (6144, 4096)
    assert shapes["mlp.proj"] == (4096, 14336)


def test_rope_of_transformers_5_is_the_same() -> None:
    old = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "rope_scaling")}
    new = old | {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3_ROPE}}
    assert ModelFacts.from_config(new, "c") == ModelFacts.from_config(LLAMA, "c")


def test_default_rope_in_rope_parameters_is_no_scaling() -> None:
    config = LLAMA | {
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    facts = ModelFacts.from_config(config, "c")
    assert facts.rotary_base == 1e6
    assert facts.rotary_scaling is None


@pytest.mark.parametrize(
    ("name", "bias", "norms", "qwen_type"),
    [
        ("LlamaForCausalLM", False, False, None),
        ("MistralForCausalLM", False, False, None),
        ("Qwen2ForCausalLM", True, False, "qwen2"),
        ("Qwen3ForCausalLM", False, True, "qwen3"),
    ],
)
def test_architectures(name: str, bias: bool, norms: bool, qwen_type: str | None) -> None:
    facts = ModelFacts.from_config(LLAMA | {"architectures": [name]}, "c")
    assert (facts.attention_bias, facts.qk_layernorm) == (bias, norms)
    assert facts.family.tensorrt_llm.switches.get("qwen_type") == qwen_type


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported.*LlamaForCausalLM",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4}},
            r"type yarn is not supported.*set max_position_embeddings to 131072",
        ),
        # As Qwen2.5's README adds it; the model was trained on 32768 positions.
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            (
                r"Remove rope_scaling .*max_position_embeddings to 32768 .*Qwen2\.5 .*"
                r"up to 32768 tokens need no scaling; longer .* refused"
            ),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            r"type dynamic is not supported.*Remove rope_scaling .* up to 131072 tokens",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            r"type longrope is not supported\. Supported rope types: default, linear, llama3\.$",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads"),
        ({"hidden_size": 16}, "have 0 features, which rope"),
        ({"head_dim": 65}, "have 65 features, which rope"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5 is not supported"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            r"partial_rotary_factor 0\.25 is not supported",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "attention_bias": False},
            "attention_bias is false, but the architecture always has",
        ),
        (
            {"quantization_config": {"quant_method": "hqq", "bits": 4}},
            "quantized already, by hqq.*Set model.source to the checkpoint that this one",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, "by a method it does not name"),
        ({"quantization_config": "int4"}, "quantized already"),
    ],
)
def test_unsupported_features_are_named(change: dict[str, object], expected: str) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        ModelFacts.from_config(LLAMA | change, "config.json")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a positive integer"),
        ({"hidden_size": -4096}, "hidden_size is -4096"),
        ({"hidden_size": 256.7}, r"hidden_size is 256\.7"),
        ({"hidden_size": 256.0}, r"hidden_size is 256\.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": 10**30}, "vocab_size is 1000"),
        ({"vocab_size": float("inf")}, "vocab_size is inf"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, not a finite positive number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rope_scaling": 5}, "rope_scaling is 5, not an object"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling.rope_type is None, not one of"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"rope_scaling\.factor is '2'"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}},
            r"rope_scaling\.type is 'linear', not the same as rope_type, 'llama3'",
        ),
        *(
            (
                {"rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != key}},
                rf"rope_scaling\.{key} is missing",
            )
            for key in LLAMA3_ROPE
            if key != "rope_type"
        ),
        (
            {"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4.0}},
            r"high_freq_factor is 4\.0, not larger than low_freq_factor",
        ),
        ({"architectures": {"a": 1}}, r"architectures is \{'a': 1\}, not a list of names"),
        ({"architectures": 5}, "architectures is 5"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'"),
        ({"architectures": [5]}, r"architectures is \[5\]"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', not true or false"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 0},
            "sliding_window is 0",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types is .* for each of 32 layers",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(
    change: dict[str, object], expected: str
) -> None:
    with pytest.raises(SourceError, match=rf"config\.json: .*{expected}") as caught:
        ModelFacts.from_config(LLAMA | change, "config.json")
    assert caught.value.exit_code == 5


def test_a_sliding_window_is_read_where_the_architecture_has_one() -> None:
    window = {"sliding_window": 1024}
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"]}
    assert ModelFacts.from_config(mistral | window, "c").sliding_window == 1024
    assert ModelFacts.from_config(mistral | {"sliding_window": None}, "c").sliding_window is None
    assert ModelFacts.from_config(LLAMA | {"sliding_window": None}, "c").sliding_window is None
    # transformers' cache of keys and values minds it in a Llama too.
    with pytest.raises(UnsupportedError, match=r"sliding_window is 1024.*set sliding_window to"):
        ModelFacts.from_config(LLAMA | window, "c")


WINDOWED = {"use_sliding_window": True, "sliding_window": 1024}


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    ("change", "sliding"),
    [
        ({"sliding_window": 1024}, 0),
        (WINDOWED | {"sliding_window": None}, 0),
        (WINDOWED | {"max_window_layers": 32}, 0),
        (WINDOWED | {"max_window_layers": 31}, 1),
        (WINDOWED | {"max_window_layers": 0}, 32),
        # 28 of the 32 layers attend to everything by default.
        (WINDOWED, 4),
        (WINDOWED | {"layer_types": ["full_attention"] * 32}, 0),
        ({"layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 2}, 2),
    ],
)
def test_windows_in_some_layers_are_refused(
    name: str, change: dict[str, object], sliding: int
) -> None:
    config = LLAMA | {"architectures": [name], **change}
    if not sliding:
        assert ModelFacts.from_config(config, "c").sliding_window is None
        return
    with pytest.raises(UnsupportedError, match=f"{sliding} of 32 layers attend to a sliding"):
        ModelFacts.from_config(config, "c")


def test_incomplete_and_unreadable_configurations(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no config\.json"):
        ModelFacts.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        ModelFacts.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100000)
    with pytest.raises(SourceError, match="cannot be read"):
        ModelFacts.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="not a JSON object"):
        ModelFacts.from_directory(tmp_path)
    incomplete = {key: value for key, value in LLAMA.items() if key != "hidden_size"}
    (tmp_path / "config.json").write_text(json.dumps(incomplete))
    with pytest.raises(SourceError, match="hidden_size"):
        ModelFacts.from_directory(tmp_path)
