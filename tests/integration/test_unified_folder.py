"""ModelOpt's Hugging Face layout of a stored checkpoint, against ModelOpt's own export."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import open_checkpoint
from pipeline.checkpoint.reader import TensorFile
from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.targets.edgellm.target import EdgeLlmTarget
from pipeline.targets.llmapi.target import LlmApiTarget
from pipeline.targets.llmapi.unified import write_unified
from tests.doubles.llm_api.serving import PACKAGE
from tests.integration.quantize_support import calibration_words, recipe, run_stage, write_source

# ModelOpt's export says much about itself and about torch.
pytestmark = pytest.mark.filterwarnings("ignore")

# ModelOpt's own presets of the formats.
PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
}
Made = Callable[..., tuple[Path, Path]]


def double(module: str) -> Any:
    """A module of the stand-in for ``tensorrt_llm``, whose readers are written from upstream's."""
    name = f"{PACKAGE.name}.{module}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PACKAGE / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    return sys.modules[name]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Llama", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made(format)``: the recipe's checkpoint, and it with pre-quant scales of one."""
    found: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            changes = {"kv_cache": "fp8"} if name == "fp8" else {}
            run_stage(recipe(source, format=name, samples=2, **changes), source, folder / "as_is")
            found[name] = folder / "as_is", with_scales_of_one(folder / "as_is", folder / "ones")
        return found[name]

    return make


def with_scales_of_one(checkpoint: Path, output: Path) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    output.mkdir()
    (output / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    tensors = {
        name: torch.ones_like(value) if name.endswith("prequant_scaling_factor") else value
        for name, value in load_file(checkpoint / "rank0.safetensors").items()
    }
    save_file(tensors, output / "rank0.safetensors")
    return output


def exported_by_modelopt(source: Path, name: str, output: Path) -> Path:
    import copy

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16).float()
    ids = AutoTokenizer.from_pretrained(source)(calibration_words()[:600], return_tensors="pt")
    config = copy.deepcopy(getattr(mtq, PRESETS[name]))
    if name == "fp8":
        config["quant_cfg"] |= mtq.FP8_KV_CFG["quant_cfg"]
    mtq.quantize(model, config, lambda m: m(ids["input_ids"][:, :32]))
    model.half()
    export_hf_checkpoint(model, dtype=torch.float16, export_dir=output)
    return output


def layout(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        for name, entry in TensorFile(path).tensors.items():
            tensors[name] = (entry.dtype, tuple(entry.shape))
    return tensors


AWQ = pytest.param("int4_awq", marks=pytest.mark.proof)  # its calibration takes seconds


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("fp8", True),
        pytest.param("int4_awq", True, marks=pytest.mark.proof),
        pytest.param("int8_sq", False, marks=pytest.mark.proof),
    ],
)
def test_layout_is_modelopts(
    name: str, fused: bool, source: Path, made: Made, tmp_path: Path
) -> None:
    theirs = exported_by_modelopt(source, name, tmp_path / "theirs")
    ours = tmp_path / "ours"
    ours.mkdir()
    checkpoint = made(name)[1 if fused else 0]
    write_unified(checkpoint, source, ours, Silent(), fused=fused)
    have, want = layout(ours), layout(theirs)
    assert set(have) == set(want)
    different = {key: (have[key], want[key]) for key in want if have[key] != want[key]}
    # ModelOpt computes scales in the dtype of the model that it calibrated, here float32; those
    # that multiply activations or weights are read into the model's own.
    assert all(
        key.endswith(("weight_scale", "pre_quant_scale")) and mine[1] == other[1]
        for key, (mine, other) in different.items()
    ), different
    kept, theirs_kept = (
        json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
        for folder in (ours, theirs)
    )
    assert {key: kept[key] for key in theirs_kept} == theirs_kept


@pytest.mark.parametrize("name", ["fp8", AWQ])
def test_codes_and_scales_are_the_checkpoints(
    name: str, source: Path, made: Made, tmp_path: Path
) -> None:
    """Read as upstream's linears read them, every weight is that of the evaluated checkpoint."""
    from pipeline.reference import load_reference

    checkpoint = made(name)[1]
    write_unified(checkpoint, source, tmp_path, Silent(), fused=True)
    read = double("weights").open_folder(tmp_path).state_dict()
    wanted = load_reference(checkpoint).state_dict()
    weights = [key for key in read if key.endswith("weight")]
    assert len(weights) > 14
    for key in weights:
        np.testing.assert_array_equal(read[key].numpy(), wanted[key].float().numpy(), err_msg=key)


@pytest.mark.proof
def test_scales_that_nobody_would_read_are_refused(
    source: Path, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match=r"attention.qkv has pre-quant scales.*portable: true"):
        write_unified(made("int4_awq")[0], source, tmp_path, Silent(), fused=True)


@pytest.mark.proof
def test_edge_llm_keeps_every_pre_quant_scale(source: Path, made: Made, tmp_path: Path) -> None:
    checkpoint = made("int8_sq")[0]
    settings = recipe(source, format="int8_sq")
    facts = EdgeLlmTarget().compile(checkpoint, settings, tmp_path, Silent(), source)
    assert facts["quant_algo"] == "W8A8_SQ_PER_CHANNEL"
    layer = open_checkpoint(checkpoint).weights().layers[0]
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    prefix = "model.layers.0."
    np.testing.assert_array_equal(
        tensors[f"{prefix}self_attn.k_proj.pre_quant_scale"], layer.qkv.prequant_scaling_factor
    )
    np.testing.assert_array_equal(
        tensors[f"{prefix}mlp.up_proj.pre_quant_scale"], layer.gate.prequant_scaling_factor
    )
    rows = slice(256, 256 + 128)  # k follows the 256 rows of q
    np.testing.assert_array_equal(
        tensors[f"{prefix}self_attn.k_proj.weight"], layer.qkv.weight[rows]
    )
    readme = (tmp_path / "README.md").read_text()
    assert "tensorrt-edgellm-export checkpoint onnx" in readme
    assert "Not run by us" in readme


def test_large_models_are_cut_into_files(source: Path, made: Made, tmp_path: Path) -> None:
    checkpoint = made("fp8")[1]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write_unified(checkpoint, source, whole, Silent(), fused=True)
    facts = write_unified(checkpoint, source, cut, Silent(), fused=True, shard_bytes=200_000)
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert facts["files"] == len(set(index["weight_map"].values())) > 1
    assert set(index["weight_map"]) == set(layout(whole))
    assert layout(cut) == layout(whole)
    for name, file in index["weight_map"].items():
        assert name in TensorFile(cut / file).tensors


def test_folder_of_the_llm_api_is_whole(source: Path, made: Made, tmp_path: Path) -> None:
    settings = recipe(source, format="fp8", samples=2, kv_cache="fp8")
    facts = LlmApiTarget().compile(made("fp8")[0], settings, tmp_path, Silent(), source)
    assert facts["engine_bytes"] > 0
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert (tmp_path / "checkpoint" / "tokenizer.json").is_file()
    sizes = json.loads((tmp_path / "config.json").read_text())
    assert sizes["build_config"]["max_seq_len"] == settings.compile.max_seq_len
