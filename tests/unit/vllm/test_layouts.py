"""Tensors and quantization_config of each layout, against ones that are written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.checkpoint.folding import Matrix
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.errors import CompileError
from pipeline.formats import FP8, W4A16_AWQ, W8A8_SQ_PER_CHANNEL
from pipeline.targets.vllm.layouts import LAYOUTS, Whole, pack_int32

# Eight rows of sixteen inputs in two groups: row r has the codes r - 8 to r - 1, twice.
CODES = (np.arange(8)[:, None] + np.arange(16) % 8 - 8).astype(np.int8)
SCALES = np.float32([[0.5, 0.25], [1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14]])
INT4 = Matrix("q", W4A16_AWQ, CODES, SCALES)


def test_eight_codes_are_one_word_the_first_lowest() -> None:
    assert pack_int32(np.arange(1, 9)[None], 1).view(np.uint32).tolist() == [[0x87654321]]
    assert pack_int32(np.arange(1, 9)[:, None], 0).view(np.uint32).tolist() == [[0x87654321]]
    columns = pack_int32(np.array([[0, 15]] * 8), 0)
    assert columns.flags.c_contiguous
    assert columns.tolist() == [[0, -1]]


def test_int4_as_compressed_tensors_packs_it() -> None:
    tensors = LAYOUTS[W4A16_AWQ]["compressed-tensors"].tensors(INT4, "float16")
    # Code + 8: row 0 has 0 to 7, row 1 has 1 to 8.
    assert tensors["weight_packed"].view(np.uint32)[:2].tolist() == [
        [0x76543210, 0x76543210],
        [0x87654321, 0x87654321],
    ]
    assert tensors["weight_packed"].dtype == np.int32
    assert tensors["weight_scale"].dtype == np.float16
    np.testing.assert_array_equal(tensors["weight_scale"], SCALES)
    assert tensors["weight_shape"].tolist() == [8, 16]
    assert tensors["weight_shape"].dtype == np.int64
    assert tensors.keys() == {"weight_packed", "weight_scale", "weight_shape"}


def test_int4_is_packed_as_compressed_tensors_itself_does() -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors needs Python 3.11")
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    theirs = pack_to_int32(torch.from_numpy(CODES), 4)
    tensors = LAYOUTS[W4A16_AWQ]["compressed-tensors"].tensors(INT4, "float16")
    np.testing.assert_array_equal(tensors["weight_packed"], theirs.numpy())


def test_gptq_is_the_first_format_written_out() -> None:
    """Words of consecutive inputs, zero points less one, everything with the inputs first."""
    tensors = LAYOUTS[W4A16_AWQ]["gptq"].tensors(INT4, "float16")
    assert {name: (str(t.dtype), t.shape) for name, t in tensors.items()} == {
        "qweight": ("int32", (2, 8)),
        "qzeros": ("int32", (2, 1)),
        "scales": ("float16", (2, 8)),
        "g_idx": ("int32", (16,)),
    }
    # Each column is a row of the weight; its eight codes are those of the row, plus 8.
    assert tensors["qweight"].view(np.uint32)[:, :3].tolist() == [
        [0x76543210, 0x87654321, 0x98765432],
        [0x76543210, 0x87654321, 0x98765432],
    ]
    assert tensors["qzeros"].view(np.uint32).tolist() == [[0x77777777], [0x77777777]]
    assert tensors["g_idx"].tolist() == [0] * 8 + [1] * 8
    # As every reader of the format computes it: W[n, k] = (code - zero) * scale[group, n].
    n, k = np.indices((8, 16))
    word = tensors["qweight"].view(np.uint32)[k // 8, n]
    zero = (tensors["qzeros"].view(np.uint32)[tensors["g_idx"][k], n // 8] >> 4 * (n % 8) & 15) + 1
    code = word >> (4 * (k % 8)).astype(np.uint32) & 15
    weight = (code.astype(int) - zero.astype(int)) * tensors["scales"][tensors["g_idx"][k], n]
    np.testing.assert_array_equal(weight, CODES * np.repeat(SCALES, 8, axis=1))


def test_gptq_says_what_it_is() -> None:
    assert LAYOUTS[W4A16_AWQ]["gptq"].configuration(Whole(128)) == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "lm_head": False,
    }


@pytest.mark.parametrize("scale", [1e-9, 1e6, 0.1001])
def test_a_scale_that_the_file_would_round_is_refused(scale: float) -> None:
    """A small one would become zero, a large one infinite."""
    matrix = replace(INT4, scale=np.full_like(SCALES, scale))
    with pytest.raises(CompileError, match=r"q\.weight_scale has numbers that float16 has not"):
        LAYOUTS[W4A16_AWQ]["gptq"].tensors(matrix, "bfloat16")


def test_scales_of_bfloat16_stay_what_they_are() -> None:
    small = np.float32(2.0**-30)
    matrix = replace(INT4, scale=np.full_like(SCALES, small))
    tensors = LAYOUTS[W4A16_AWQ]["compressed-tensors"].tensors(matrix, "bfloat16")
    assert (tensors["weight_scale"].astype(np.float32) == small).all()
    with pytest.raises(CompileError, match="layout to compressed-tensors"):
        LAYOUTS[W4A16_AWQ]["gptq"].tensors(matrix, "bfloat16")


def test_int8_has_a_scale_for_each_row_and_one_for_its_inputs() -> None:
    rows = np.arange(1, 9, dtype=np.float32)[:, None] / 7
    matrix = Matrix("q", W8A8_SQ_PER_CHANNEL, CODES, rows, activation_scale=0.1)
    tensors = LAYOUTS[W8A8_SQ_PER_CHANNEL]["compressed-tensors"].tensors(matrix, "float16")
    np.testing.assert_array_equal(tensors["weight"], CODES)
    assert tensors["weight_scale"].dtype == np.float32
    np.testing.assert_array_equal(tensors["weight_scale"], rows)
    assert tensors["input_scale"].tolist() == [np.float32(0.1)]


def test_fp8_is_the_same_in_both_of_its_layouts() -> None:
    bits = np.arange(128, dtype=np.uint8).reshape(8, 16) % 120
    weight = bits.view(numpy_dtype("float8_e4m3fn"))
    scale = np.broadcast_to(np.float32([[0.3]]), (8, 1))
    matrix = Matrix("q", FP8, weight, scale, activation_scale=0.2)
    modelopt = LAYOUTS[FP8]["modelopt"].tensors(matrix, "float16")
    compressed = LAYOUTS[FP8]["compressed-tensors"].tensors(matrix, "float16")
    assert modelopt.keys() == compressed.keys() == {"weight", "weight_scale", "input_scale"}
    # Numbers of no dimension, as ModelOpt writes them, and lists of one.
    assert modelopt["weight_scale"].shape == modelopt["input_scale"].shape == ()
    assert compressed["weight_scale"].shape == compressed["input_scale"].shape == (1,)
    for name, tensor in modelopt.items():
        np.testing.assert_array_equal(
            tensor.astype(float), compressed[name].squeeze().astype(float)
        )
    # TensorRT-LLM takes the bytes as int8, too.
    raw = LAYOUTS[FP8]["modelopt"].tensors(replace(matrix, weight=bits.view(np.int8)), "float16")
    np.testing.assert_array_equal(raw["weight"].astype(float), weight.astype(float))


def test_modelopt_says_what_vllm_looks_for() -> None:
    """``quant_algo`` beside ``quant_method``, and ``ignore`` for what is not quantized."""
    said = LAYOUTS[FP8]["modelopt"].configuration(Whole())
    assert (said["quant_method"], said["quant_algo"], said["ignore"]) == (
        "modelopt",
        "FP8",
        ["lm_head"],
    )


@pytest.mark.parametrize(
    ("algo", "form"),
    [
        (W4A16_AWQ, "pack-quantized"),
        (W8A8_SQ_PER_CHANNEL, "int-quantized"),
        (FP8, "float-quantized"),
    ],
)
def test_compressed_tensors_takes_the_configuration(algo: str, form: str) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors needs Python 3.11")
    from compressed_tensors.quantization import QuantizationConfig

    said = LAYOUTS[algo]["compressed-tensors"].configuration(Whole(64, plain=("m.q",)))
    read = QuantizationConfig.model_validate(said)
    assert read.format == form
    assert read.ignore == ["lm_head", "m.q"]
    scheme = read.config_groups["group_0"]
    assert scheme.weights.group_size == (64 if form == "pack-quantized" else None)
    assert (scheme.input_activations is None) == (form == "pack-quantized")
    assert not scheme.weights.dynamic
