"""Pre-quant scales moved out of a layer, against the layer's own arithmetic written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import CheckpointConfig, Layer, Linear
from pipeline.checkpoint.folding import FoldedLayer, fold
from pipeline.errors import UnsupportedError
from tests.unit.checkpoint.support import HEAD, HEADS, HIDDEN, INNER, KV_HEADS, config
from tests.unit.checkpoint.test_dequantize import pack

GROUP = 64
KV = KV_HEADS * HEAD


def facts(**changes: Any) -> Any:
    return CheckpointConfig.from_dict(config(**changes), "config.json").facts


def scales(random: np.random.Generator, count: int) -> np.ndarray:
    return random.uniform(0.25, 4.0, count).astype(np.float16)


def int4(random: np.random.Generator, rows: int, columns: int, smooth: np.ndarray) -> Linear:
    return Linear(
        "l",
        "W4A16_AWQ",
        pack(random.integers(-8, 8, (rows, columns)).astype(np.int8)),
        weights_scaling_factor=random.uniform(0.01, 0.02, (rows, columns // GROUP)).astype("f4"),
        prequant_scaling_factor=smooth,
    )


def int8(random: np.random.Generator, rows: int, columns: int, smooth: np.ndarray) -> Linear:
    return Linear(
        "l",
        "W8A8_SQ_PER_CHANNEL",
        random.integers(-127, 128, (rows, columns)).astype(np.int8),
        weights_scaling_factor=random.uniform(0.01, 0.02, rows).astype(np.float32),
        prequant_scaling_factor=smooth,
        activation_scaling_factor=0.02,
    )


def layer(make: Any, kv: int = KV, *, one_for_gate_and_up: bool = True) -> Layer:
    random = np.random.default_rng(3)
    q = HEADS * HEAD
    gated = scales(random, HIDDEN)
    other = gated if one_for_gate_and_up else scales(random, HIDDEN)
    return Layer(
        input_layernorm=scales(random, HIDDEN),
        qkv=replace(
            make(random, q + 2 * kv, HIDDEN, scales(random, HIDDEN)),
            bias=random.normal(size=q + 2 * kv).astype(np.float16),
        ),
        dense=make(random, HIDDEN, q, scales(random, q)),
        post_layernorm=scales(random, HIDDEN),
        fc=make(random, INNER, HIDDEN, gated),
        gate=make(random, INNER, HIDDEN, other),
        proj=make(random, HIDDEN, INNER, scales(random, INNER)),
    )


def weight(linear: Linear) -> np.ndarray:
    """float64 [N, K] that acts on x, scale by scale as TensorRT-LLM's kernels do."""
    assert linear.weights_scaling_factor is not None
    assert linear.prequant_scaling_factor is not None
    if linear.algo == "W4A16_AWQ":
        rows = []
        for row in range(linear.out_features):
            nibbles = linear.weight[row // 2].view(np.uint8) >> (4 * (row % 2)) & 15
            codes = nibbles.astype(np.int64)
            steps = linear.weights_scaling_factor[row].astype(np.float16).astype(np.float64)
            rows.append(np.where(codes > 7, codes - 16, codes) * np.repeat(steps, GROUP))
        values = np.array(rows)
    else:
        values = linear.weight.astype(np.float64) * linear.weights_scaling_factor[:, None]
    return values * linear.prequant_scaling_factor.astype(np.float64)


def of_the_norm(found: FoldedLayer, name: str, norm: str) -> np.ndarray:
    """What a linear computes of the normalized input before the norm's weight, as one matrix."""
    return found.linears[name].values().astype(np.float64) * found.norms[norm]


@pytest.mark.parametrize("make", [int4, int8])
def test_a_layer_computes_the_same_without_its_scales(make: Any) -> None:
    """Attention mixes values of one KV head over positions, which no scale per channel changes."""
    given = layer(make)
    found = fold(given, facts())
    split = np.split(weight(given.qkv), [HEADS * HEAD, HEADS * HEAD + KV])
    for name, part in zip("qkv", split, strict=True):
        moved = of_the_norm(found, f"self_attn.{name}_proj", "input_layernorm")
        np.testing.assert_allclose(moved, part * given.input_layernorm, rtol=1e-6)
    gate = of_the_norm(found, "mlp.gate_proj", "post_attention_layernorm")
    np.testing.assert_allclose(gate, weight(given.fc) * given.post_layernorm, rtol=1e-6)
    # x = silu(gate) * up is linear in up: column j of down meets row j of up alone.
    up = of_the_norm(found, "mlp.up_proj", "post_attention_layernorm")
    down = found.linears["mlp.down_proj"].values().astype(np.float64)
    np.testing.assert_allclose(
        down[:9] @ up,
        weight(given.proj)[:9] @ (weight(given.gate) * given.post_layernorm),
        rtol=1e-4,
        atol=1e-5,
    )
    assert found.linears["mlp.down_proj"].prequant is None


def test_a_kv_head_of_several_query_heads_has_no_room() -> None:
    given = layer(int4)
    found = fold(given, facts())
    assert list(found.left) == ["self_attn.o_proj"]
    assert "serves 2 query heads" in found.left["self_attn.o_proj"]
    left = found.linears["self_attn.o_proj"]
    assert np.array_equal(left.prequant, given.dense.prequant_scaling_factor.astype("f4"))  # type: ignore[union-attr]
    np.testing.assert_allclose(left.values(), weight(given.dense), rtol=1e-6)


def test_rows_of_v_take_the_scale_of_o_where_each_head_has_its_own() -> None:
    given = layer(int4, kv=HEADS * HEAD)
    found = fold(given, facts(num_key_value_heads=HEADS))
    assert not found.left
    values, output = found.linears["self_attn.v_proj"], found.linears["self_attn.o_proj"]
    moved = given.dense.prequant_scaling_factor
    assert moved is not None
    assert given.qkv.bias is not None
    wanted = given.qkv.bias[-HEADS * HEAD :].astype(np.float64) * moved
    np.testing.assert_allclose(values.bias, wanted, rtol=1e-6)  # type: ignore[arg-type]
    rows = weight(given.qkv)[-HEADS * HEAD :] * given.input_layernorm
    np.testing.assert_allclose(
        output.values()[:9].astype(np.float64) @ of_the_norm(found, values.name, "input_layernorm"),
        weight(given.dense)[:9] @ rows,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_quantized_kv_cache_keeps_the_scale_of_o() -> None:
    given = replace(layer(int4, kv=HEADS * HEAD), kv_cache_scaling_factor=0.1)
    found = fold(given, facts(num_key_value_heads=HEADS))
    assert "KV cache" in found.left["self_attn.o_proj"]


def test_of_two_scales_for_one_input_the_second_stays() -> None:
    given = layer(int4, one_for_gate_and_up=False)
    found = fold(given, facts())
    assert list(found.left) == ["mlp.up_proj", "self_attn.o_proj"]
    assert found.linears["mlp.gate_proj"].prequant is None
    down = found.linears["mlp.down_proj"].values().astype(np.float64)
    up = of_the_norm(found, "mlp.up_proj", "post_attention_layernorm")
    np.testing.assert_allclose(
        down[:9] @ up,
        weight(given.proj)[:9] @ (weight(given.gate) * given.post_layernorm),
        rtol=1e-4,
        atol=1e-5,
    )


def test_codes_stay_and_norms_of_16_bits_have_exact_products() -> None:
    given = layer(int4)
    found = fold(given, facts())
    moved = given.qkv.prequant_scaling_factor
    assert moved is not None
    exact = given.input_layernorm.astype(np.float64) * moved
    assert found.norms["input_layernorm"].dtype == np.float32
    assert np.array_equal(found.norms["input_layernorm"], exact)
    codes = np.concatenate([found.linears[f"self_attn.{name}_proj"].weight for name in "qkv"])
    assert np.array_equal(pack(codes), given.qkv.weight)


def test_scales_of_one_move_nothing() -> None:
    given = layer(int4)
    ones = {
        name: replace(
            getattr(given, name),
            prequant_scaling_factor=np.ones(getattr(given, name).in_features, np.float16),
        )
        for name in ("qkv", "dense", "fc", "gate", "proj")
    }
    found = fold(replace(given, **ones), facts())
    assert not found.left
    assert all(matrix.prequant is None for matrix in found.linears.values())
    assert found.norms["input_layernorm"] is given.input_layernorm
    for name, linear in zip(
        ("o", "gate", "up", "down"), ("dense", "fc", "gate", "proj"), strict=True
    ):
        matrix = next(m for key, m in found.linears.items() if key.endswith(f".{name}_proj"))
        steps = ones[linear].weights_scaling_factor.astype(np.float16).astype(np.float32)
        assert np.array_equal(matrix.scale, steps)


def test_a_divided_scale_is_refused() -> None:
    given = replace(layer(int4), qkv=replace(layer(int4).qkv, algo="W4A8_AWQ"))
    with pytest.raises(UnsupportedError, match="W4A8_AWQ cannot be moved"):
        fold(given, facts())


@pytest.mark.parametrize(
    ("field", "what"), [("zero", "zero points"), ("input_order", "groups out of order")]
)
def test_what_codes_alone_do_not_say_is_refused(field: str, what: str) -> None:
    made = layer(int4)
    columns = made.fc.in_features
    values = {
        "zero": np.zeros((columns // GROUP, made.fc.out_features), np.float16),
        "input_order": np.arange(columns, dtype=np.int32),
    }
    other = replace(made, fc=replace(made.fc, **{field: values[field]}))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=f"{what} are not folded"):
        fold(other, facts())


def test_zero_points_and_order_go_along_for_who_asks() -> None:
    """The values are W[n, k] = (code - zero point) * scale of the group that input k is in."""
    random = np.random.default_rng(8)
    made = layer(int4)
    codes = random.integers(0, 16, (INNER, HIDDEN))
    zeros = random.integers(1, 16, (INNER, HIDDEN // GROUP))
    order = random.permutation(HIDDEN).astype(np.int32)
    step = np.full(zeros.shape, 0.5, np.float16)
    stored = replace(
        made.fc,
        weight=pack((codes - 8).astype(np.int8)),
        weights_scaling_factor=step,
        zero=((8 - zeros) * step).T.astype(np.float16),
        input_order=order,
        prequant_scaling_factor=np.ones(HIDDEN, np.float16),
    )
    other = replace(made.gate, prequant_scaling_factor=np.ones(HIDDEN, np.float16))
    folded = fold(replace(made, fc=stored, gate=other), facts(), codes_alone=False)
    found = folded.linears["mlp.gate_proj"].values()
    for column, feature in enumerate(order):
        group = column // GROUP
        expected = (codes[:, column] - zeros[:, group]) * 0.5
        np.testing.assert_array_equal(found[:, feature], expected)
