"""Inverse frequencies against hand calculation; tests/integration compares with transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.models.facts import ModelFacts
from pipeline.targets.openvino.rope import inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def facts(**changes: Any) -> ModelFacts:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    }
    return ModelFacts.from_config({**config, **changes}, "config.json")


def test_plain_rope_by_hand() -> None:
    found = inverse_frequencies(facts(head_dim=8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1.0, 0.1, 0.01, 0.001], rtol=1e-7)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = facts(head_dim=8, rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(
        inverse_frequencies(scaled), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-7
    )


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    found = inverse_frequencies(facts(head_dim=128, rope_theta=500000.0, rope_scaling=LLAMA3))
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_allclose(found[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.sum() > 3
    assert np.all(found[between] < plain[between])
    assert np.all(found[between] > plain[between] / 8)


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [(None, 4096), ({"rope_type": "linear", "factor": 2.0}, 8192), (LLAMA3, 4096)],
)
def test_the_longest_sequence_counts_linear_scaling_only(scaling: Any, longest: int) -> None:
    assert facts(rope_scaling=scaling).longest_sequence == longest
