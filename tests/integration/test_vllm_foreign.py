"""Folders that other libraries quantized, through a checkpoint into a folder for vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from safetensors.numpy import load_file

from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.quantize.convert import convert
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stored import with_stored_format
from pipeline.targets.vllm.write import write_export
from tests.foreign_folders import Made, awq, gptq


def exported(made: Made, folder: Path, layout: str) -> Path:
    """The folder for vLLM of a quantized one."""
    data = {
        "name": "test",
        "model": {"source": str(made.path)},
        "compile": {
            "target": "vllm",
            "max_seq_len": 64,
            "max_input_len": 32,
            "vllm": {"layout": layout},
        },
    }
    wanted = Recipe.model_validate(with_stored_format(data))
    checkpoint, output = folder / "checkpoint", folder / "export"
    checkpoint.mkdir()
    output.mkdir()
    convert(made.path, wanted, checkpoint, Silent())
    write_export(checkpoint, made.path, wanted, output, Silent())
    return output / "model"


@pytest.mark.parametrize(
    "changes",
    [{}, {"sym": False}, {"act_order": True}, {"sym": False, "act_order": True}],
    ids=["sym", "asym", "act-order", "both"],
)
def test_a_gptq_folder_comes_back_byte_for_byte(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = gptq(tmp_path / "source", **changes)
    found = exported(made, tmp_path, "gptq")
    tensors = load_file(found / "model.safetensors")
    assert tensors.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert tensors[name].tobytes() == np.ascontiguousarray(tensor).tobytes(), name
    config = json.loads((found / "config.json").read_text())
    assert config["quantization_config"] == made.config["quantization_config"]


@pytest.mark.parametrize(
    "make",
    [partial(gptq, sym=False, v2=True), awq, partial(gptq, v2=True)],
    ids=["asym", "awq", "v2"],
)
def test_zero_points_are_read_by_compressed_tensors(
    tmp_path: Path, make: Callable[[Path], Made]
) -> None:
    """Its own dequantization gives the weights that the source stands for, to the last bit."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors needs Python 3.11")
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    made = make(tmp_path / "source")
    found = exported(made, tmp_path, "compressed-tensors")
    config = json.loads((found / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = load_file(found / "model.safetensors")
    for name, weight in made.weights.items():
        own = {
            key.removeprefix(f"{name}."): torch.from_numpy(tensor)
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        assert own.keys() == set(library.compression_param_names(scheme))
        own["weight_scale"] = own["weight_scale"].float()  # it computes in this dtype
        read = library.decompress(own, scheme)["weight"]
        np.testing.assert_array_equal(read.numpy(), weight, err_msg=name)


def test_groups_out_of_order_are_what_vllm_reads(tmp_path: Path) -> None:
    """vLLM takes ``weight_g_idx``, which compressed-tensors itself no longer reads."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors needs Python 3.11")
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    made = gptq(tmp_path / "source", sym=False, v2=True, act_order=True)
    found = exported(made, tmp_path, "compressed-tensors")
    config = json.loads((found / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["actorder"], weights["symmetric"]) == ("group", False)
    tensors = load_file(found / "model.safetensors")
    for name, weight in made.weights.items():
        packed, zeros, scale, group_of = (
            tensors[f"{name}.weight_{end}"] for end in ("packed", "zero_point", "scale", "g_idx")
        )
        codes = unpack_from_int32(torch.from_numpy(packed), 4, weight.shape).numpy()
        zero = unpack_from_int32(torch.from_numpy(zeros), 4, scale.shape, packed_dim=0).numpy()
        assert len(set(group_of[:8])) > 1, "in order after all"
        difference = codes.astype(np.float32) - zero[:, group_of]
        read = difference * scale.astype(np.float32)[:, group_of]
        np.testing.assert_array_equal(read, weight, err_msg=name)


@pytest.mark.parametrize(
    ("make", "layout", "said"),
    [
        (awq, "gptq", r"from 1 to 16, and the checkpoint 0 to 15.*layout to compressed-tensors"),
        (
            partial(gptq, sym=False),
            "compressed-tensors",
            r"from 0 to 15, and the checkpoint 1 to 16.*layout to gptq",
        ),
    ],
    ids=["awq", "gptq"],
)
def test_a_zero_point_that_a_layout_has_not_is_refused(
    tmp_path: Path, make: Callable[[Path], Made], layout: str, said: str
) -> None:
    """AutoAWQ counts from 0 to 15, the first GPTQ layout from 1 to 16."""
    with pytest.raises(CompileError, match=said):
        exported(make(tmp_path / "source"), tmp_path, layout)
