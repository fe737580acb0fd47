"""Upstream's features: what the pre-flight says of them, and what their flags and numbers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UnsupportedError
from pipeline.targets import get_target
from pipeline.targets.tensorrt.gpus import GIB
from pipeline.targets.tensorrt.plan.lines import preview_lines
from pipeline.targets.tensorrt.plan.preview import preview_engine, refuse_errors

from .recipes import found, model, preview, recipe

PLUGINS = "compile.tensorrt.plugin_config"
HOST = "serve.kv_cache_host_memory"
LLAMA = "llama-3.1-8b"


def refuse(folder: Path, *overrides: str) -> None:
    refuse_errors(recipe(folder, *overrides), model(LLAMA))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["serve.enable_kv_cache_reuse=false"], r"enable_kv_cache_reuse is false"),
        (["compile.tensorrt.gather_context_logits=true"], r"returns prompt logits reuses none"),
        ([f"{PLUGINS}.use_paged_context_fmha=false"], r"built without use_paged_context_fmha"),
        # trtllm-build drops it for an INT8 KV cache.
        (["quantize.kv_cache=int8"], r"built without use_paged_context_fmha"),
    ],
)
def test_the_host_keeps_blocks_for_reuse_alone(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    expected = rf"KV blocks on the host would never be used.*{reason}"
    with pytest.raises(UnsupportedError, match=expected):
        refuse(tmp_path, f"{HOST}=4", *overrides)


def test_how_much_the_host_keeps(tmp_path: Path) -> None:
    result = preview(tmp_path, f"{HOST}=2.5", "compile.gpu=L4")
    # 2 (keys, values) x 32 layers x 8 heads x 128 x 2 bytes a token, 32 tokens a block.
    assert result.memory.host_kv_tokens == int(2.5 * GIB) // 131_072 // 32 * 32 == 20480
    assert result.memory.host_kv_cache == 20480 * 131_072
    assert any("20480 tokens, of the host's memory" in line for line in preview_lines(result))
    plain = preview(tmp_path, "compile.gpu=L4")
    assert not any("host" in line for line in preview_lines(plain))
    # It takes nothing of the GPU.
    assert plain.memory.kv_tokens == result.memory.kv_tokens


def test_a_host_cache_below_one_block_is_refused(tmp_path: Path) -> None:
    # 131072 x 32 bytes are 4 MiB, 1/256 GiB.
    with pytest.raises(UnsupportedError, match="does not hold one block"):
        refuse(tmp_path, f"{HOST}=0.0038")
    refuse(tmp_path, f"{HOST}=0.00390625")


@pytest.mark.parametrize("value", ["0", "-1", "4GiB"])
def test_a_host_memory_is_a_number_above_zero(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match="kv_cache_host_memory"):
        recipe(tmp_path, f"{HOST}={value}")


def test_cuda_graphs_take_memory(tmp_path: Path) -> None:
    of = ["compile.gpu=L4", "compile.pipeline_parallel=2"]
    without = preview(tmp_path, *of)
    result = preview(tmp_path, "serve.cuda_graphs=8", *of)
    # 4 to 10 MB each, for each of two micro batches.
    assert result.memory.cuda_graphs == 8 * 2 * 10_000_000
    assert result.memory.fixed - without.memory.fixed == 160_000_000
    assert any(line.startswith("  CUDA graphs") for line in preview_lines(result))
    assert not any("CUDA graphs" in line for line in preview_lines(without))


def test_more_cuda_graphs_than_sequences_are_not_kept(tmp_path: Path) -> None:
    result = preview(tmp_path, "serve.cuda_graphs=65")
    finding = found(result, "cuda_graphs 65 becomes 64")
    assert (finding.severity, finding.key) == ("warning", "serve.cuda_graphs")
    assert result.memory.cuda_graphs == 640_000_000
    fits = preview_engine(recipe(tmp_path, "serve.cuda_graphs=64"), model(LLAMA))
    assert not [f for f in fits.effective.findings if f.key == "serve.cuda_graphs"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (f"{HOST}=4", r"no kv_cache_host_memory.*in the host's memory already"),
        ("serve.cuda_graphs=4", r"no cuda_graphs.*without a GPU"),
    ],
)
def test_the_cpu_target_refuses_what_it_has_not(tmp_path: Path, setting: str, reason: str) -> None:
    settings = recipe(tmp_path, "compile.target=openvino", setting)
    with pytest.raises(UnsupportedError, match=reason) as error:
        get_target("openvino").check(settings, model(LLAMA))
    assert setting.split("=", maxsplit=1)[0] in str(error.value)
