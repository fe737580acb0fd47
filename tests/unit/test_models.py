"""Facts read from config.json, against what transformers says of the same configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SourceError, UnsupportedError
from pipeline.models import ModelFacts

LLAMA = {
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
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def test_llama_3_1_8b() -> None:
    facts = ModelFacts.from_config(LLAMA, "config.json")
    assert facts.head_size == 128
    assert facts.rotary_base == 500000.0
    assert facts.rotary_scaling == LLAMA["rope_scaling"]
    shapes = {linear.name: (linear.out_features, linear.in_features) for linear in facts.linears}
    # 32 query heads and 2 x 8 KV heads of 128.
    assert shapes["attention.qkv"] == (6144, 4096)
    assert shapes["mlp.proj"] == (4096, 14336)


def test_rope_of_transformers_5_is_the_same() -> None:
    old = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "rope_scaling")}
    new = old | {"rope_parameters": {"rope_theta": 500000.0, **LLAMA["rope_scaling"]}}  # type: ignore[dict-item]
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
    assert (facts.attention_bias, facts.qk_layernorm, facts.qwen_type) == (bias, norms, qwen_type)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported.*LlamaForCausalLM",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "type yarn is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads"),
    ],
)
def test_unsupported_features_are_named(change: dict[str, object], expected: str) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        ModelFacts.from_config(LLAMA | change, "config.json")
    assert caught.value.exit_code == 3


def test_a_sliding_window_counts_only_when_it_is_used() -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}
    assert ModelFacts.from_config(mistral, "c").sliding_window == 4096
    qwen = mistral | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    assert ModelFacts.from_config(qwen, "c").sliding_window is None


def test_incomplete_and_unreadable_configurations(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no config\.json"):
        ModelFacts.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        ModelFacts.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="not a JSON object"):
        ModelFacts.from_directory(tmp_path)
    incomplete = {key: value for key, value in LLAMA.items() if key != "hidden_size"}
    (tmp_path / "config.json").write_text(json.dumps(incomplete))
    with pytest.raises(SourceError, match="hidden_size"):
        ModelFacts.from_directory(tmp_path)
