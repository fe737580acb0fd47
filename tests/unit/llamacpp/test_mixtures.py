"""Which tensors get more bits, as llama.cpp's quantizer was seen to choose."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
from pipeline.models.facts import ModelFacts
from pipeline.targets.llamacpp.names import is_seventy
from pipeline.targets.llamacpp.types import MIXTURES
from tests.conftest import DEMO_MODEL


@pytest.mark.parametrize(
    ("family", "kv_heads", "layers", "found"),
    [
        ("Llama", 2, 80, "Q5_K"),
        ("Llama", 4, 80, "Q4_K"),  # 65B
        ("Llama", 2, 64, "Q4_K"),
        ("Mistral", 2, 80, "Q5_K"),
        ("Qwen2", 2, 80, "Q5_K"),
        ("Qwen2", 4, 80, "Q5_K"),
        ("Qwen3", 2, 80, "Q4_K"),
    ],
)
def test_attn_v_of_a_70b_model_has_five_bits(
    family: str, kv_heads: int, layers: int, found: str
) -> None:
    architecture = f"{family}ForCausalLM"
    facts = replace(
        ModelFacts.from_directory(DEMO_MODEL),
        architecture=architecture,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )
    seventy = is_seventy(facts)
    kinds = [
        MIXTURES["q4_k_m"].linear(name, layers // 8, layers, 256, seventy=seventy).name
        for name in ("attn_v", "ffn_down")
    ]
    assert kinds == [found, "Q4_K"]
