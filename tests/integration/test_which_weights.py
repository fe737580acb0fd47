"""Of several sets of weights transformers decides which one is the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import SourceError
from pipeline.source.snapshot import (
    left_out,
    refuse_ambiguous_weights,
    snapshot_files,
    weight_files,
)

from .quantize_support import SIZES

INDEX = "model.safetensors.index.json"


def _save(directory: Path, value: float, shards: bool = False) -> None:
    """A model whose every weight is one value."""
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 64})
    model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.save_pretrained(directory, max_shard_size="200KB" if shards else "1GB")


def _loaded(directory: Path) -> float:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True)
    return float(model.model.norm.weight[0].detach())


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """An older sharded save, of 1s, and a newer whole one, of 2s."""
    old, new, both = (tmp_path / name for name in ("old", "new", "both"))
    _save(old, 1.0, shards=True)
    _save(new, 2.0)
    for directory in (old, new):
        shutil.copytree(directory, both, dirs_exist_ok=True)
    assert _loaded(old) == 1.0
    assert len(list(both.glob("*.safetensors"))) > 2
    return both


def test_two_sets_are_refused_and_the_one_of_transformers_is_named(both: Path) -> None:
    assert _loaded(both) == 2.0
    with pytest.raises(SourceError, match=rf"transformers takes model\.safetensors.*{INDEX}"):
        refuse_ambiguous_weights(both, "here")
    assert [path.name for path in weight_files(both)] == ["model.safetensors"]


def test_either_remedy_leaves_one_set(both: Path, tmp_path: Path) -> None:
    other = shutil.copytree(both, tmp_path / "other")
    shards = set(json.loads((both / INDEX).read_text())["weight_map"].values())
    for name in (INDEX, *shards):
        (both / name).unlink()
    (other / "model.safetensors").unlink()
    for directory, value, names in ((both, 2.0, ["model.safetensors"]), (other, 1.0, shards)):
        refuse_ambiguous_weights(directory, "here")
        assert _loaded(directory) == value
        assert {path.name for path in weight_files(directory)} == set(names)
        assert left_out(directory) == []


def test_an_index_without_its_files_is_not_read(both: Path) -> None:
    for path in both.glob("model-*.safetensors"):
        path.unlink()
    refuse_ambiguous_weights(both, "here")
    assert _loaded(both) == 2.0
    taken = [path.name for path in snapshot_files(both, code=False)]
    assert "model.safetensors" in taken
    assert INDEX not in taken


def test_files_that_no_index_names_are_not_read(both: Path) -> None:
    (both / "model.safetensors").rename(both / "model-00009-of-00009.safetensors")
    refuse_ambiguous_weights(both, "here")
    assert _loaded(both) == 1.0
    assert left_out(both) == ["model-00009-of-00009.safetensors"]


def test_pickles_and_variants_beside_are_not_read(both: Path) -> None:
    for path in both.glob("model-*.safetensors"):
        path.unlink()
    (both / INDEX).unlink()
    (both / "pytorch_model.bin").write_bytes(b"no pickle at all")
    (both / "model.fp16.safetensors").write_bytes(b"nor a model")
    assert _loaded(both) == 2.0
    assert [path.name for path in weight_files(both)] == ["model.safetensors"]


def test_a_file_that_config_json_names_wins_in_transformers(both: Path) -> None:
    for path in both.glob("model-*.safetensors"):
        path.unlink()
    (both / INDEX).unlink()
    _save(both / "third", 3.0)
    (both / "third" / "model.safetensors").rename(both / "model.other.safetensors")
    config = json.loads((both / "config.json").read_text())
    config["transformers_weights"] = "model.other.safetensors"
    (both / "config.json").write_text(json.dumps(config))
    assert _loaded(both) == 3.0
    with pytest.raises(SourceError, match=r"names 'model\.other\.safetensors' as the file"):
        refuse_ambiguous_weights(both, "here")
