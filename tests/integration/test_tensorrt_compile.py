"""Checkpoints of the real quantize stage through the build, with the double of ``trtllm-build``.

The double loads names and shapes by the rules of TensorRT-LLM 1.2, so this shows that what is
exported can be loaded, in every format and for several ranks. No engine is built.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.build.build import build_engine
from tests.doubles.trtllm_build.machine import pretend
from tests.integration.quantize_support import matrix_recipe, run_stage, write_source

ALGOS = {
    "float16": None,
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "fp8": "FP8",
    "w4a8_awq": "W4A8_AWQ",
}
CASES = [
    ("Llama", "float16", 1),
    ("Llama", "float16", 2),
    ("Llama", "int4_awq", 1),
    ("Llama", "int4_awq", 2),
    ("Qwen2", "int8_sq", 1),
    ("Qwen2", "int8_sq", 2),
    ("Qwen3", "fp8", 1),
    ("Qwen3", "fp8", 2),
    ("Llama", "w4a8_awq", 2),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``source(architecture)``: a tiny random model, made once."""
    folder = tmp_path_factory.mktemp("sources")

    def make(architecture: str) -> Path:
        path = folder / architecture
        return path if path.exists() else write_source(architecture, path)

    return make


def for_tensorrt(recipe: Recipe) -> Recipe:
    """The same recipe for this target, with sizes that no override touches."""
    sizes = {"max_batch_size": 4, "max_input_len": 128, "max_seq_len": 256, "max_num_tokens": 512}
    values = recipe.model_dump(mode="json", by_alias=True)
    values["compile"] |= {"target": "tensorrt", **sizes}
    return Recipe.model_validate(values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_what_the_quantize_stage_writes_is_loaded_and_built(
    case: tuple[str, str, int], source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, quantization, tp = case
    model = source(architecture)
    recipe = for_tensorrt(matrix_recipe(model, quantization, tp))
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "engine"
    run_stage(recipe, model, checkpoint)
    output.mkdir()
    pretend(monkeypatch, tmp_path / "machine", sm="90", gpus=str(tp))
    facts = build_engine(checkpoint, recipe, output, Silent())
    engines = sorted(path.name for path in output.glob("rank*.engine"))
    assert engines == [f"rank{rank}.engine" for rank in range(tp)]
    assert facts["world_size"] == tp
    # Nothing was lost on loading: upstream only warns about tensors that it does not know.
    assert not [text for text in facts["warnings"] if "not required tensors" in text]
    config = json.loads((output / "config.json").read_text())
    quantized = config["pretrained_config"]["quantization"]
    assert quantized["quant_algo"] == ALGOS[quantization]
    # matrix_recipe gives int8_sq an INT8 KV cache and fp8 an FP8 one.
    reuse = quantization != "int8_sq"
    assert facts["kv_cache_reuse"] is reuse
    plugins = config["build_config"]["plugin_config"]
    assert plugins["use_paged_context_fmha"] is reuse
    assert plugins["use_fp8_context_fmha"] is (quantization == "fp8")
    assert plugins["nccl_plugin"] == ("float16" if tp == 2 else None)


def test_a_checkpoint_of_other_ranks_does_not_load(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = source("Llama")
    recipe = for_tensorrt(matrix_recipe(model, "float16"))
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "engine"
    run_stage(recipe, model, checkpoint)
    output.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    config["mapping"] |= {"tp_size": 2, "world_size": 2}
    (checkpoint / "config.json").write_text(json.dumps(config))
    pretend(monkeypatch, tmp_path / "machine", sm="90", gpus="2")
    with pytest.raises(CompileError, match="trtllm-build failed") as caught:
        build_engine(checkpoint, recipe, output, Silent())
    assert "another shape" in str(caught.value)
