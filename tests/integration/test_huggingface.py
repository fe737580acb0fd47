"""Loading the source model, whichever transformers wrote its config.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import SourceError
from pipeline.models.facts import ModelFacts
from pipeline.source.loading import load_causal_lm
from pipeline.source.snapshot import check_snapshot, expected_tensors
from tests.integration.quantize_support import ARCHITECTURES, write_source

HEAD, THETA = 64, 500_000.0
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=128,
        max_position_embeddings=256,
        rope_theta=THETA,
        rope_scaling=SCALING,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _inverse_frequencies(directory: Path) -> torch.Tensor:
    model: Any = load_causal_lm(directory, torch.float32)
    frequencies: torch.Tensor = model.model.rotary_emb.inv_freq
    return frequencies


def test_rope_keys_of_transformers_5_are_not_overlooked(model: Path, tmp_path: Path) -> None:
    old = json.loads((model / "config.json").read_text())
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": THETA, **SCALING}
    (tmp_path / "config.json").write_text(json.dumps(new))
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    found = _inverse_frequencies(tmp_path)
    torch.testing.assert_close(found, _inverse_frequencies(model), rtol=0, atol=0)
    # The highest frequencies are not scaled; by the definition of rope they are theta^(-2i/d).
    assert float(found[1]) == pytest.approx(THETA ** (-2 / HEAD), rel=1e-6)


def test_what_transformers_cannot_load_is_a_source_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(SourceError, match="transformers cannot load the model"):
        load_causal_lm(tmp_path, torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tensors_asked_for_are_those_that_transformers_saves(
    architecture: str, tmp_path: Path
) -> None:
    source = write_source(architecture, tmp_path)
    state = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    expected = expected_tensors(ModelFacts.from_directory(source))
    saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tied = {"lm_head.weight"} if architecture == "Qwen2" else set()
    assert expected.keys() == saved.keys() - tied
    assert all(shape == saved[name] for name, shape in expected.items())
    contents = check_snapshot(source, ModelFacts.from_directory(source), "here")
    assert contents.parameters == sum(math.prod(shape) for shape in expected.values())
