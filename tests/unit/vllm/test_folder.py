"""What lies in an export: shards, config.json, companions, and what serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("safetensors", reason="the folder is written with safetensors")
pytest.importorskip("torch", reason="checkpoints are described by the stage that quantizes")

from safetensors import safe_open

from pipeline.checkpoint import open_checkpoint
from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.source.snapshot import expected_tensors
from pipeline.targets.vllm.folder import write_folder
from tests.unit.vllm.support import export, write_model


def tensors_of(folder: Path) -> dict[str, str]:
    """The file of every tensor of a folder."""
    return {
        name: path.name
        for path in sorted(folder.glob("*.safetensors"))
        for name in safe_open(path, "np").keys()  # noqa: SIM118  it is no dict
    }


def test_a_folder_has_what_a_snapshot_has(tmp_path: Path) -> None:
    source = write_model(
        tmp_path / "model", _name_or_path="/somewhere", auto_map={"A": "m.A"}, dtype="float32"
    )
    output = export(source, tmp_path, "float16")
    names = {path.name for path in (output / "model").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE.txt",
    }, "no code, and no index of other files"
    before = json.loads((source / "config.json").read_text())
    after = json.loads((output / "model/config.json").read_text())
    assert after.keys() == before.keys() - {"_name_or_path", "auto_map"}
    assert (before["dtype"], after["dtype"]) == ("float32", "float16")
    # Every tensor that transformers loads, under the names of the source's own check.
    facts = open_checkpoint(tmp_path / "checkpoint").facts
    assert tensors_of(output / "model").keys() == expected_tensors(facts).keys()


def test_both_names_of_the_dtype_are_the_checkpoint_s(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", dtype="float32", torch_dtype="float32")
    output = export(source, tmp_path, "int4_awq", model={"dtype": "bfloat16"})
    config = json.loads((output / "model/config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert (
        json.loads((output / "triton/vllm_model/1/model.json").read_text())["dtype"] == "bfloat16"
    )


def test_a_tied_head_is_left_out_and_one_of_its_own_is_not(tmp_path: Path) -> None:
    """TensorRT-LLM's checkpoint has a head in any case; the model may say that it is tied."""
    source = write_model(tmp_path / "model", tie_word_embeddings=True)
    output = export(source, tmp_path, "float16")
    assert "lm_head.weight" not in tensors_of(output / "model")
    assert json.loads((output / "model/config.json").read_text())["tie_word_embeddings"] is True

    checkpoint = tmp_path / "checkpoint"
    from safetensors.numpy import load_file, save_file

    weights = load_file(checkpoint / "rank0.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + np.float16(1)
    save_file(weights, checkpoint / "rank0.safetensors")
    again = tmp_path / "again"
    again.mkdir()
    write_folder(open_checkpoint(checkpoint), source, again, None, Silent())
    assert "lm_head.weight" in tensors_of(again)
    assert json.loads((again / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_large_model_is_cut_into_files_with_an_index(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    output = export(source, tmp_path)
    whole, parts = output / "model", tmp_path / "parts"
    parts.mkdir()
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    size = write_folder(
        checkpoint, source, parts, "compressed-tensors", Silent(), shard_bytes=20_000
    )
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert index["weight_map"] == tensors_of(parts)
    for path in parts.glob("*.safetensors"):
        with safe_open(path, "np") as read, safe_open(whole / "model.safetensors", "np") as one:
            assert read.metadata() == {"format": "pt"}
            names = list(read.keys())
            sizes = [read.get_tensor(name).nbytes for name in names]
            assert len(sizes) == 1 or sum(sizes) <= 20_000
            for name in names:
                np.testing.assert_array_equal(read.get_tensor(name), one.get_tensor(name))
    assert not list(parts.glob(".part*"))


def test_gptq_tensors_lie_in_the_file_as_they_are_named(tmp_path: Path) -> None:
    """Its matrices are transposed, and safetensors writes a view in the order of its memory."""
    source = write_model(tmp_path / "model")
    output = export(source, tmp_path, vllm={"layout": "gptq"})
    layer = open_checkpoint(tmp_path / "checkpoint").weights().layers[1]
    with safe_open(output / "model/model.safetensors", "np") as read:
        scales = read.get_tensor("model.layers.1.self_attn.k_proj.scales")
        words = read.get_tensor("model.layers.1.self_attn.k_proj.qweight").view(np.uint32)
    assert layer.qkv.weights_scaling_factor is not None
    rows = slice(128, 192)  # k, behind the 128 rows of q
    np.testing.assert_array_equal(
        scales, layer.qkv.weights_scaling_factor[rows].T.astype(np.float16)
    )
    # Two rows of the checkpoint lie in one byte, the even one low, in two's complement.
    packed = layer.qkv.weight[64:96].view(np.uint8)
    codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(64, 128) ^ 8
    for place in (0, 1, 7):
        np.testing.assert_array_equal(words[3] >> (4 * place) & 15, codes[:, 24 + place])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"mlp.proj.prequant_scaling_factor": 1.1},
            r"layers\.0\.mlp\.up_proj\.weight_scale has numbers that float16 has not.*portable",
        ),
        (
            {"attention.dense.prequant_scaling_factor": 1.1},
            r"layers\.0\.self_attn\.o_proj has pre-quant scales.*query heads.*portable",
        ),
        (
            {"attention.qkv.prequant_scaling_factor": 1.1},
            r"layers\.0\.input_layernorm has numbers that float16 has not.*portable",
        ),
        (
            {"mlp.gate.prequant_scaling_factor": 1.1},
            r"layers\.0\.mlp\.up_proj has pre-quant scales.*portable",
        ),
    ],
)
def test_scales_that_find_no_exact_place_are_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    source = write_model(tmp_path / "model")
    with pytest.raises(CompileError, match=said):
        export(source, tmp_path, values=values)


@pytest.mark.parametrize(
    "value",
    [
        {"attention.qkv.prequant_scaling_factor": 2.0, "input_layernorm.weight": 0.75},
        {"mlp.proj.prequant_scaling_factor": 0.5},
    ],
)
def test_scales_that_fold_without_rounding_do(tmp_path: Path, value: dict[str, Any]) -> None:
    source = write_model(tmp_path / "model")
    output = export(source, tmp_path, values=value)
    layer = open_checkpoint(tmp_path / "checkpoint").weights().layers[0]
    with safe_open(output / "model/model.safetensors", "np") as read:
        norm = read.get_tensor("model.layers.0.input_layernorm.weight")
        up = read.get_tensor("model.layers.0.mlp.up_proj.weight_scale")
    before = layer.gate.weights_scaling_factor
    assert before is not None
    if "mlp.proj.prequant_scaling_factor" in value:
        np.testing.assert_array_equal(up, before.astype(np.float16) / np.float16(2))
        np.testing.assert_array_equal(norm, layer.input_layernorm)
    else:
        np.testing.assert_array_equal(norm, np.full(128, 1.5, np.float16))
        np.testing.assert_array_equal(up, before.astype(np.float16))


def test_what_serves_it_lies_beside_it(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    ranks = {"tensor_parallel": 2, "max_batch_size": 16, "max_num_tokens": 64}
    output = export(
        source,
        tmp_path,
        compile=ranks,
        quantize={"group_size": 64},
        vllm={"gpu_memory_utilization": 0.5},
    )
    arguments = {
        "dtype": "float16",
        "max_model_len": 64,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
    }
    model = json.loads((output / "triton/vllm_model/1/model.json").read_text())
    assert model == {"model": "/export/model", **arguments}
    assert (
        "vllm serve model --dtype float16 --max-model-len 64 --max-num-seqs 16 "
        "--max-num-batched-tokens 64 --gpu-memory-utilization 0.5 --tensor-parallel-size 2 "
        "--host 127.0.0.1 --port 8000\n"
    ) in (output / "README.md").read_text()
    (service,) = yaml.safe_load((output / "compose.yaml").read_text())["services"].values()
    (mount,) = service["volumes"]
    assert (mount["target"], mount["read_only"]) == ("/export", True)
    assert service["command"] == ["tritonserver", "--model-repository=/export/triton"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_triton_reads_the_repository_s_config(tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tritonclient.grpc import model_config_pb2 as proto

    output = export(write_model(tmp_path / "model"), tmp_path)
    text = (output / "triton/vllm_model/config.pbtxt").read_text()
    config = text_format.Parse(text, proto.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("vllm_model", "vllm", 0)
    assert config.model_transaction_policy.decoupled
    (group,) = config.instance_group
    assert group.kind == proto.ModelInstanceGroup.KIND_MODEL


@pytest.mark.parametrize(("name", "warned"), [("int8_sq", True), ("int4_awq", False)])
def test_the_trap_of_amx_is_said(tmp_path: Path, name: str, warned: bool) -> None:
    output = export(write_model(tmp_path / "model"), tmp_path, name)
    assert ("AMX" in (output / "README.md").read_text()) is warned


@pytest.mark.parametrize(("values", "warned"), [({}, True), ({"weights_scaling_factor": 1}, False)])
def test_fp8_that_vllm_would_round_again_is_said(
    tmp_path: Path, values: dict[str, Any], warned: bool
) -> None:
    """Gate and up have a scale each, and vLLM makes one matrix of both."""
    output = export(write_model(tmp_path / "model"), tmp_path, "fp8", values=values)
    assert ("gate_proj and up_proj" in (output / "README.md").read_text()) is warned
    config = json.loads((output / "model/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "modelopt"
