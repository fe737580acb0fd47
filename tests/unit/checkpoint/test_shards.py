"""Ranks cut by hand, the way TensorRT-LLM documents it, must merge to the uncut tensors."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint import open_checkpoint
from pipeline.errors import CheckpointError
from tests.unit.checkpoint.support import (
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCAB,
    config,
    float16_tensors,
    write_checkpoint,
)


def cut(tensors: dict[str, np.ndarray], tp_size: int, rank: int) -> dict[str, np.ndarray]:
    """The part of one tensor-parallel rank."""
    part = {}
    for name, array in tensors.items():
        if name.endswith("qkv.weight"):
            kv_rows = max(KV_HEADS // tp_size, 1) * HEAD
            kv_rank = rank * KV_HEADS // tp_size if tp_size > KV_HEADS else rank
            q, k, v = np.split(array, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD])
            q_rows = len(q) // tp_size
            part[name] = np.concatenate(
                [
                    q[rank * q_rows : (rank + 1) * q_rows],
                    k[kv_rank * kv_rows : (kv_rank + 1) * kv_rows],
                    v[kv_rank * kv_rows : (kv_rank + 1) * kv_rows],
                ]
            )
        elif name.endswith(("dense.weight", "proj.weight")):
            part[name] = np.split(array, tp_size, axis=1)[rank]
        elif name.endswith(("fc.weight", "gate.weight")):
            part[name] = np.split(array, tp_size)[rank]
        elif name.endswith(("vocab_embedding.weight", "lm_head.weight")):
            padding = -len(array) % tp_size
            part[name] = np.split(np.pad(array, ((0, padding), (0, 0))), tp_size)[rank]
        else:
            part[name] = array
    return part


def assert_merged(directory: Path) -> None:
    weights, whole = open_checkpoint(directory).weights(), float16_tensors()
    assert weights.vocab_embedding.shape[0] == VOCAB
    found = {
        "transformer.vocab_embedding.weight": weights.vocab_embedding,
        "transformer.ln_f.weight": weights.ln_f,
        "lm_head.weight": weights.lm_head.weight,
    }
    for number, layer in enumerate(weights.layers):
        for linear in (layer.qkv, layer.dense, layer.fc, layer.gate, layer.proj):
            assert linear.name.startswith(f"transformer.layers.{number}.")
            found[f"{linear.name}.weight"] = linear.weight
        prefix = f"transformer.layers.{number}."
        found[f"{prefix}input_layernorm.weight"] = layer.input_layernorm
        found[f"{prefix}post_layernorm.weight"] = layer.post_layernorm
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_tensor_parallel_ranks(tmp_path: Path, tp_size: int) -> None:
    """With four ranks and two KV heads, neighbours hold copies."""
    settings = config(mapping={"world_size": tp_size, "tp_size": tp_size, "pp_size": 1})
    parts = [cut(float16_tensors(), tp_size, rank) for rank in range(tp_size)]
    assert_merged(write_checkpoint(tmp_path, settings, *parts))


def test_tensor_and_pipeline_parallel_ranks(tmp_path: Path) -> None:
    ranks = []
    for pp_rank in range(LAYERS):
        stage = {
            name.replace(f"layers.{pp_rank}.", "layers.0."): array
            for name, array in float16_tensors().items()
            if f"layers.{pp_rank}." in name
            or (pp_rank == 0 and "vocab_embedding" in name)
            or (pp_rank == 1 and ("ln_f" in name or "lm_head" in name))
        }
        ranks += [cut(stage, 2, tp_rank) for tp_rank in range(2)]
    settings = config(mapping={"world_size": 4, "tp_size": 2, "pp_size": 2})
    assert_merged(write_checkpoint(tmp_path, settings, *ranks))


def test_an_embedding_that_is_not_cut_or_cut_by_feature(tmp_path: Path) -> None:
    name = "transformer.vocab_embedding.weight"
    mapping = {"world_size": 2, "tp_size": 2, "pp_size": 1}
    parts = [cut(float16_tensors(), 2, rank) for rank in range(2)]
    whole = float16_tensors()[name]
    plain = [part | {name: whole} for part in parts]
    settings = config(mapping=mapping, use_parallel_embedding=False)
    assert_merged(write_checkpoint(tmp_path / "plain", settings, *plain))
    halves = np.split(whole, 2, axis=1)
    by_feature = [part | {name: half} for part, half in zip(parts, halves, strict=True)]
    settings = config(mapping=mapping, embedding_sharding_dim=1)
    assert_merged(write_checkpoint(tmp_path / "feature", settings, *by_feature))


def test_ranks_of_different_exports_are_noticed(tmp_path: Path) -> None:
    parts = [cut(float16_tensors(), 2, rank) for rank in range(2)]
    parts[1]["transformer.ln_f.weight"] = parts[1]["transformer.ln_f.weight"] * 2
    settings = config(mapping={"world_size": 2, "tp_size": 2, "pp_size": 1})
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, settings, *parts))
    with pytest.raises(CheckpointError, match=r"rank1.*ln_f\.weight differs"):
        checkpoint.weights()


def test_a_layer_is_joined_when_it_is_asked_for_and_only_the_last_one_is_kept(
    tmp_path: Path,
) -> None:
    parts = [cut(float16_tensors(), 2, rank) for rank in range(2)]
    damaged = "transformer.layers.1.input_layernorm.weight"
    parts[1][damaged] = parts[1][damaged] * 2
    settings = config(mapping={"world_size": 2, "tp_size": 2, "pp_size": 1})
    layers = open_checkpoint(write_checkpoint(tmp_path, settings, *parts)).weights().layers
    kept = weakref.ref(layers[0].qkv.weight)
    assert layers[0].qkv.weight is kept()
    with pytest.raises(CheckpointError, match=r"rank1.*layers\.1\.input_layernorm\.weight differs"):
        layers[1]
    assert kept() is None
    assert len(layers) == LAYERS
    assert len(layers[:1]) == 1
    with pytest.raises(IndexError, match="out of range"):
        layers[LAYERS]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_pages_of_the_layer_before_are_let_go_of(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, config(), float16_tensors())

    def resident() -> int:
        _, _, mapping = Path("/proc/self/smaps").read_text().partition(str(directory))
        return next(
            int(line.split()[1]) for line in mapping.splitlines() if line.startswith("Rss:")
        )

    layers = open_checkpoint(directory).weights().layers
    weight = layers[0].qkv.weight
    total = weight.sum(dtype=np.float64)
    assert resident() > 0
    proj = layers[1].proj
    assert resident() == 0
    assert weight.sum(dtype=np.float64) == total
    name = "transformer.layers.1.mlp.proj.weight"
    assert np.array_equal(proj.weight, float16_tensors()[name])
