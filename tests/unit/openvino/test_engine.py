"""The engine directory, from checkpoints that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline._version import __version__
from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.store.digests import file_digest, files_below
from pipeline.targets import get_target
from tests.unit.checkpoint.support import (
    INT8,
    config,
    float16_tensors,
    int8_tensors,
    write_checkpoint,
)


def recipe(**compile_section: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": "somewhere"},
            "quantize": {"format": "float16"},
            "compile": {"max_input_len": 64, "max_seq_len": 128, **compile_section},
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), config(), float16_tensors())


def build(checkpoint: Path, output: Path, settings: Recipe) -> dict[str, Any]:
    output.mkdir()
    return get_target("openvino").compile(checkpoint, settings, output, Silent())


def test_the_directory_states_what_it_was_built_for(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    facts = build(checkpoint, output, recipe(max_batch_size=3))
    assert files_below(output) == ["config.json", "openvino_model.bin", "openvino_model.xml"]
    written = json.loads((output / "config.json").read_text())
    assert written == {
        "version": __version__,
        "target": "openvino",
        "pretrained_config": json.loads((checkpoint / "config.json").read_text()),
        "build_config": {
            "max_batch_size": 3,
            "max_input_len": 64,
            "max_seq_len": 128,
            "max_num_tokens": 2048,
            "max_beam_width": 1,
            "tokens_per_block": 32,
            "kv_cache_type": "PAGED",
        },
        "runtime": {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        },
    }
    assert facts["engine_bytes"] == (output / "openvino_model.bin").stat().st_size
    assert facts["quant_algo"] == "NO_QUANT"


@pytest.mark.parametrize(
    ("options", "runtime"),
    [
        ({"inference_precision": "bf16"}, ("bf16", "bf16", "0")),
        ({"kv_cache_precision": "u8"}, ("f32", "u8", "0")),
        ({"dynamic_quantization_group_size": 32}, ("f32", "f32", "32")),
    ],
)
def test_execution_options_reach_the_engine(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], runtime: tuple[str, ...]
) -> None:
    facts = build(checkpoint, tmp_path / "engine", recipe(openvino=options))
    names = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    assert facts["runtime"] == dict(zip(names, runtime, strict=True))


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        output = tmp_path / name
        build(checkpoint, output, recipe())
        digests.append({file: file_digest(output / file) for file in files_below(output)})
    assert digests[0] == digests[1]


def test_a_checkpoint_with_a_quantized_kv_cache_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", config(quantization=INT8), int8_tensors()
    )
    with pytest.raises(CompileError, match="does not execute an INT8 KV cache"):
        build(checkpoint, tmp_path / "engine", recipe())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml"])
def test_a_full_disk_is_reported(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(CompileError, match=r"the engine cannot be saved.*disk has room"):
        get_target("openvino").compile(checkpoint, recipe(), tmp_path, Silent())
