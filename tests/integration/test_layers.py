"""Layers that are run one by one give the bits that they give in the whole model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from pipeline.errors import SourceError
from pipeline.layers.one_layer import one_layer
from pipeline.layers.weights import SnapshotWeights

from .quantize_support import ARCHITECTURES, EXTRAS, SIZES, VOCAB, write_source


def hidden_states(directory: Path, ids: Any, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    """What comes behind every layer: of transformers' whole model, and layer by layer."""
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    model = load(directory, dtype=dtype).eval()
    found: list[Any] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: found.append(out))
    config = transformers.AutoConfig.from_pretrained(directory)
    own = []
    with torch.inference_mode(), SnapshotWeights(directory) as read:
        model(input_ids=ids, use_cache=False)
        hidden = read("model.embed_tokens.weight").to(dtype)[ids]
        for index in range(config.num_hidden_layers):
            one = one_layer(config, index, read, dtype)
            one.model.norm = torch.nn.Identity()
            hidden = one.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
            own.append(hidden)
    return found, own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_layer_gives_the_bits_of_the_whole_model(
    architecture: str, dtype: Any, tmp_path: Path
) -> None:
    source = write_source(architecture, tmp_path / "source")
    ids = torch.randint(0, VOCAB, (3, 90), generator=torch.Generator().manual_seed(1))
    whole, own = hidden_states(source, ids, dtype)
    assert len(whole) == len(own) == SIZES["num_hidden_layers"]
    for one, other in zip(whole, own, strict=True):
        assert torch.equal(one, other)


def test_a_layer_has_the_window_of_its_own_number(tmp_path: Path) -> None:
    """Every second layer sees eight tokens; a layer that took another's mask would differ."""
    kinds = ["full_attention", "sliding_attention"] * 2
    config = transformers.Qwen2Config(
        **(SIZES | {"num_hidden_layers": 4}),
        **EXTRAS["Qwen2"],
        use_sliding_window=True,
        sliding_window=8,
        layer_types=kinds,
    )
    torch.manual_seed(7)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    whole, own = hidden_states(tmp_path, ids, torch.float32)
    assert len(whole) == len(own) == 4
    assert all(torch.equal(one, other) for one, other in zip(whole, own, strict=True))


def test_tensors_are_read_whole_and_by_rows(tmp_path: Path) -> None:
    source = write_source("Llama", tmp_path / "source")
    from safetensors.torch import load_file

    expected = load_file(source / "model.safetensors")
    with SnapshotWeights(source) as read:
        for name, tensor in expected.items():
            assert name in read
            assert read.rows(name) == len(tensor)
            assert torch.equal(read(name), tensor)
        rows = read("model.embed_tokens.weight", slice(490, 700))
        assert torch.equal(rows, expected["model.embed_tokens.weight"][490:])
        assert "lm_head" not in read
        with pytest.raises(SourceError, match="there is no tensor lm_head"):
            read("lm_head")


def test_a_file_that_is_cut_while_it_is_read_is_said(tmp_path: Path) -> None:
    source = write_source("Llama", tmp_path / "source")
    with SnapshotWeights(source) as read:
        os.truncate(source / "model.safetensors", 1000)
        with pytest.raises(SourceError, match="ended too soon") as error:
            read("model.norm.weight")
    assert "Let nothing write into the model's folder" in str(error.value)
