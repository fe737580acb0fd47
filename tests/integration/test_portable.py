"""Checkpoints with pre-quant scales of one: the same model, with nothing left to move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Checkpoint, dequantize, open_checkpoint
from pipeline.checkpoint.folding import fold
from pipeline.evaluation.moved import moved_factors
from pipeline.evaluation.scoring import scorer_of
from pipeline.evaluation.signal_to_noise import signal_to_noise
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from tests.integration.quantize_support import ARCHITECTURES, recipe, run_stage, write_source
from tests.integration.test_gptq import decoded, judge, logits
from tests.integration.test_quantize import assert_same_weights

SHOWN = {("Llama", "int4_awq"), ("Qwen2", "int8_sq")}
EACH = [
    pytest.param(
        architecture,
        name,
        marks=() if (architecture, name) in SHOWN else pytest.mark.proof,
        id=f"{architecture}-{name}",
    )
    for architecture in ARCHITECTURES
    for name in ("int4_awq", "int8_sq")
]
KV_CACHES = {"int8_sq": "int8", "int4_awq": None}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(name, folder / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def written(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``written(architecture, format, tp)``: the folder of a portable checkpoint, made once."""
    made: dict[tuple[str, str, int], Path] = {}

    def make(architecture: str, name: str, tp: int = 1) -> Path:
        key = (architecture, name, tp)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoints") / "out"
            settings = recipe(
                sources[architecture],
                format=name,
                group_size=64,
                portable=True,
                kv_cache=KV_CACHES[name],
                tp=tp,
            )
            run_stage(settings, sources[architecture], made[key])
        return made[key]

    return make


@pytest.mark.parametrize(("architecture", "name"), EACH)
def test_nothing_is_left_to_move(architecture: str, name: str, written: Any) -> None:
    opened: Checkpoint = open_checkpoint(written(architecture, name))
    for layer in opened.weights().layers:
        found = fold(layer, opened.facts)
        assert not found.left
        for matrix in found.linears.values():
            assert matrix.prequant is None
        assert found.norms["input_layernorm"] is layer.input_layernorm
        # The scales that matter were moved, not dropped.
        for linear in (layer.qkv, layer.dense, layer.fc, layer.gate, layer.proj):
            assert linear.prequant_scaling_factor is not None
            assert (linear.prequant_scaling_factor == 1).all()


@pytest.mark.parametrize(("architecture", "name"), EACH)
def test_part_for_part_it_is_the_source_behind_the_scales(
    architecture: str, name: str, written: Any, sources: dict[str, Path]
) -> None:
    """Norm times weight, of each linear behind a norm, is the source's; and rows of up meet down.

    Written out with the files of both, as neither moves a scale: what is measured is rounding.
    """
    truth = judge(sources[architecture], {})
    opened = open_checkpoint(written(architecture, name))
    # The same formats leave 0.10 and 0.0075 with scales of their own.
    most = {"int4_awq": 0.12, "int8_sq": 0.012}[name]
    moved = 0.0
    for number, layer in enumerate(opened.weights().layers):
        own = truth.model.layers[number]
        norm = own.input_layernorm.weight.detach().double().numpy()
        theirs = layer.input_layernorm.astype(np.float64)
        moved = max(moved, float(np.abs(theirs / norm - 1).max()))
        q = own.self_attn.q_proj.weight.detach().double().numpy()
        assert apart(dequantize(layer.qkv)[: len(q)] * theirs, q * norm) < most
        post = own.post_attention_layernorm.weight.detach().double().numpy()
        up, down = (
            getattr(own.mlp, f"{part}_proj").weight.detach().double().numpy()
            for part in ("up", "down")
        )
        # Of neurons that no text moves, rounding leaves nothing in either checkpoint.
        alive = own.mlp.gate_proj.weight.detach().abs().sum(1).numpy() > 0
        through = (
            dequantize(layer.proj).astype(np.float64)[:, alive]
            @ (dequantize(layer.gate) * layer.post_layernorm.astype(np.float64))[alive]
        )
        assert apart(through, down[:, alive] @ (up * post)[alive]) < 1.5 * most
        output = own.self_attn.o_proj.weight.detach().double().numpy()
        # Two query heads share a KV head here, so o_proj took its scale back.
        assert apart(dequantize(layer.dense), output) < 2 * most
    assert moved > 0.1


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The error's share, in the norm."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_transformers_computes_the_same_with_the_files_weights_and_norms(
    written: Any, sources: dict[str, Path]
) -> None:
    import torch

    folder = written("Llama", "int4_awq")
    model = judge(sources["Llama"], decoded(folder))
    with torch.no_grad():
        for own, layer in zip(
            model.model.layers, open_checkpoint(folder).weights().layers, strict=True
        ):
            own.input_layernorm.weight.copy_(torch.from_numpy(layer.input_layernorm.astype("f4")))
            own.post_attention_layernorm.weight.copy_(
                torch.from_numpy(layer.post_layernorm.astype("f4"))
            )
    theirs = logits(load_reference(folder))
    assert float((logits(model) - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_ranks_merge_to_the_single_rank_bit_for_bit(written: Any) -> None:
    parts = open_checkpoint(written("Qwen2", "int8_sq", 2)).weights()
    assert_same_weights(parts, open_checkpoint(written("Qwen2", "int8_sq")).weights())


def test_where_each_head_has_its_own_values_their_rows_take_the_scale_of_o(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product of o and v by head is the source's, and v by itself is not."""
    from tests.integration import quantize_support

    monkeypatch.setitem(quantize_support.SIZES, "num_key_value_heads", 4)
    source = write_source("Qwen2", tmp_path / "source")
    settings = recipe(source, format="int4_awq", group_size=64, portable=True)
    run_stage(settings, source, tmp_path / "out")
    truth = judge(source, {}).model.layers[0].self_attn
    layer = open_checkpoint(tmp_path / "out").weights().layers[0]
    v, bias = truth.v_proj.weight.detach().numpy(), truth.v_proj.bias.detach().numpy()
    output = truth.o_proj.weight.detach().numpy()
    norm = judge(source, {}).model.layers[0].input_layernorm.weight.detach().numpy()
    values = dequantize(layer.qkv)[-len(v) :] * layer.input_layernorm.astype(np.float32)
    assert layer.qkv.bias is not None
    biases = layer.qkv.bias[-len(v) :].astype(np.float32)
    dense = dequantize(layer.dense)
    for head in range(4):
        rows = slice(64 * head, 64 * head + 64)
        assert apart(dense[:, rows] @ values[rows], output[:, rows] @ (v * norm)[rows]) < 0.25
        assert apart(dense[:, rows] @ biases[rows], output[:, rows] @ bias[rows]) < 0.25
    assert apart(biases, bias) > 0.05


def test_the_signal_to_noise_of_moved_parts_is_that_of_rounding(
    written: Any, sources: dict[str, Path]
) -> None:
    import torch

    source: Any = load_source(sources["Llama"], trust_remote_code=False)
    found: Any = load_reference(written("Llama", "int4_awq"))
    score, rows = scorer_of(source, torch.device("cpu")), [range(1, 200)]

    def worst(kind: str = "linears", *, moved: bool = True) -> tuple[str, float]:
        models = (dict(model.named_modules()) for model in (source, found))
        factors = moved_factors(*models, one_each=False) if moved else None
        first = getattr(signal_to_noise(source, found, score, rows, factors=factors), kind)[0]
        return first.linear, first.db

    assert worst()[1] > 15
    assert worst("others")[1] > 50
    assert worst(moved=False)[1] < 12
    damages = {
        "model.layers.1.post_attention_layernorm": ("gate_proj", "up_proj", "down_proj"),
        "model.layers.0.mlp.up_proj": ("down_proj",),
        "model.layers.0.mlp.down_proj": ("down_proj",),
        "model.layers.1.self_attn.o_proj": ("o_proj",),
    }
    for name, told in damages.items():
        weight = found.get_submodule(name).weight
        kept = weight.detach().clone()
        with torch.no_grad():
            # Of half of the rows, or of a norm's channels.
            weight[::2] *= 2.0
        linear, db = worst()
        assert linear.rpartition(".")[2] in told, (name, linear)
        assert db < 12, name
        with torch.no_grad():
            weight.copy_(kept)


def test_a_scale_that_a_norm_has_no_room_for_stays_in_part(tmp_path: Path) -> None:
    """A norm of 3e4 and a scale of 10 are not finite in float16."""
    from safetensors.numpy import load_file, save_file

    source = write_source("Llama", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    norm = tensors["model.layers.0.input_layernorm.weight"]
    norm[:] = 3e4
    # What is hardly moved gets the largest scales.
    norm[::7] = 6e4
    for part in "qkv":
        tensors[f"model.layers.0.self_attn.{part}_proj.weight"] *= np.float32(1e-4)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    settings = recipe(source, format="int4_awq", group_size=64, portable=True)
    run_stage(settings, source, tmp_path / "out")
    layer = open_checkpoint(tmp_path / "out").weights().layers[0]
    truth = judge(source, {}).model.layers[0].self_attn.q_proj.weight.detach().numpy()
    found = dequantize(layer.qkv)[: len(truth)] * layer.input_layernorm.astype(np.float32)
    assert apart(found, truth * norm) < 0.15
