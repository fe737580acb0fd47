"""What a key that config.json leaves out means, against transformers' own configuration classes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts

from .quantize_support import ARCHITECTURES

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": None},
        {"num_attention_heads": 64},
        {"head_dim": 32},
        {"sliding_window": None},
        {"sliding_window": 99},
        {"use_sliding_window": False, "sliding_window": 99},
        {"tie_word_embeddings": True},
        {"rms_norm_eps": 1e-3, "rope_theta": 5e5},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_facts_are_those_of_the_model_that_transformers_makes(
    family: str, changes: dict[str, Any]
) -> None:
    keys = SIZES | changes
    config: Any = getattr(transformers, f"{family}Config")(**keys)
    with torch.device("meta"):
        model: Any = getattr(transformers, f"{family}ForCausalLM")(config)
    file = {**keys, "architectures": [f"{family}ForCausalLM"]}
    parameters = inspect.signature(type(config).__init__).parameters
    if changes.get("sliding_window") and "sliding_window" not in parameters:
        # The class knows no window, and its cache of keys and values minds one.
        with pytest.raises(UnsupportedError, match="sliding_window is 99"):
            ModelFacts.from_config(file, "c")
        return
    facts = ModelFacts.from_config(file, "c")
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.out_features == facts.num_attention_heads * facts.head_size
    assert attention.k_proj.out_features == facts.num_key_value_heads * facts.head_size
    assert attention.head_dim == facts.head_size
    assert (attention.q_proj.bias is not None) == facts.attention_bias
    assert hasattr(attention, "q_norm") == facts.qk_layernorm
    assert model.model.norm.variance_epsilon == facts.norm_epsilon
    assert config.rope_theta == facts.rotary_base
    assert config.hidden_act == facts.hidden_act
    assert config.tie_word_embeddings == facts.tie_word_embeddings
    assert getattr(config, "sliding_window", None) == facts.sliding_window
