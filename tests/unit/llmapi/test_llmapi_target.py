"""What the targets llmapi and edgellm refuse, write into model.yaml, and report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import RecipeError, UnsupportedError, UsageError
from pipeline.models.facts import ModelFacts
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from pipeline.targets.llmapi.arguments import model_yaml
from pipeline.targets.llmapi.migration import migration_lines, migration_page
from pipeline.triton.running import ServerOptions
from tests.conftest import DEMO_MODEL, PROJECT


def recipe(target: str, **settings: Any) -> Recipe:
    given = {"compile.target": target, "quantize.format": "float16", **settings}
    named = [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    return load_recipe(PROJECT / "configs" / "demo.yaml", named)


def check(target: str, **settings: Any) -> None:
    get_target(target).check(recipe(target, **settings), ModelFacts.from_directory(DEMO_MODEL))


@pytest.mark.parametrize("gpu", ["A100-80GB", "H100-80GB", "B200", "RTX-5090"])
def test_sixteen_bit_runs_everywhere(gpu: str) -> None:
    check("llmapi", compile__gpu=gpu)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"quantize__format": "int8_sq"},
            r"no method for W8A8_SQ.*compile.target: tensorrt.*edgellm",
        ),
        ({"quantize__format": "int4_awq"}, r"scales of their own.*quantize.portable: true"),
        ({"quantize__format": "w4a8_awq"}, r"scales of their own.*Choose int4_gptq"),
        (
            {"quantize__format": "int8_sq", "quantize__kv_cache": "int8"},
            r"does not run int8_sq",
        ),
        ({"quantize__format": "fp8", "quantize__kv_cache": "int8"}, r"has no INT8 KV cache"),
        (
            {"quantize__format": "int4_gptq", "compile__gpu": "B200"},
            r"int4_gptq on B200 \(SM 100\).*Ampere, Ada and Hopper, not Blackwell.*fp8",
        ),
        (
            {"quantize__format": "fp8", "compile__gpu": "A100-80GB"},
            r"fp8 on A100-80GB \(SM 80\).*Ada, Hopper and Blackwell.*int4_gptq",
        ),
        ({"compile__gpu": "T4"}, r"float16 on T4 \(SM 75\).*Choose another GPU"),
        ({"quantize__format": "float32"}, r"computes in 16 bits.*float16 or bfloat16"),
        ({"compile__tokens_per_block": "64"}, r"KV blocks of 32 tokens"),
        ({"serve__guided_decoding": "xgrammar"}, r"guided decoding is not handed on"),
    ],
)
def test_what_the_backend_lacks_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"(?s){reason}"):
        check("llmapi", **settings)


def test_portable_and_hessian_int4_pass() -> None:
    check("llmapi", quantize__format="int4_awq", quantize__portable="true")
    check("llmapi", quantize__format="int4_gptq", compile__gpu="L4")
    check("llmapi", quantize__format="fp8", quantize__kv_cache="fp8", compile__gpu="B200")


def test_unknown_gpu_is_told() -> None:
    with pytest.raises(RecipeError, match="there is no GPU H100 in the table"):
        check("llmapi", compile__gpu="H100")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quantize__format": "w4a8_awq"}, r"no linear for W4A8_AWQ.*int8_sq"),
        ({"quantize__format": "bfloat16"}, r"computes in float16 alone.*Set quantize.format"),
        (
            {"quantize__format": "int8_sq", "model__dtype": "bfloat16"},
            r"computes in float16 alone.*Set model.dtype",
        ),
        ({"quantize__format": "int4_awq", "quantize__group_size": "64"}, r"groups of 128 alone"),
        ({"quantize__format": "int8_sq", "quantize__kv_cache": "int8"}, r"no INT8 KV cache"),
        ({"compile__pipeline_parallel": "2"}, r"does not spread layers"),
        (
            {"quantize__format": "fp8", "compile__edgellm__device": "jetson-orin"},
            r"Jetson Orin does not compute in FP8",
        ),
    ],
)
def test_what_edge_llm_lacks_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"(?s){reason}"):
        check("edgellm", **settings)


def test_edge_llm_takes_the_int8_that_no_other_compiler_of_nvidias_keeps() -> None:
    check("edgellm", quantize__format="int8_sq")
    check("edgellm", quantize__format="int8_sq", compile__edgellm__device="jetson-orin")
    check("edgellm", quantize__format="fp8", compile__edgellm__device="thor")
    facts = ModelFacts.from_directory(DEMO_MODEL)
    lines = get_target("edgellm").explain(recipe("edgellm"), facts).lines
    assert any("--maxKVCacheCapacity 512" in line for line in lines)
    assert "Not run by us" in lines[-1]


def test_model_yaml_is_the_recipe_in_upstreams_names() -> None:
    settings = recipe(
        "llmapi",
        quantize__format="fp8",
        quantize__kv_cache="fp8",
        compile__tensor_parallel="2",
        serve__kv_cache_host_memory="1.5",
        serve__batch_scheduler_policy="max_utilization",
        serve__decoupled="false",
        compile__llmapi__sampler="TorchSampler",
    )
    values = yaml.safe_load(model_yaml(settings))
    assert values["model"] == "/models/tensorrt_llm/1/engine/checkpoint"
    assert values["tensor_parallel_size"] == 2
    assert values["kv_cache_config"] == {
        "enable_block_reuse": True,
        "free_gpu_memory_fraction": 0.9,
        "tokens_per_block": 32,
        "host_cache_size": 3 * 2**29,
        "dtype": "fp8",
    }
    assert values["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert values["sampler_type"] == "TorchSampler"
    assert values["triton_config"]["max_batch_size"] == 0
    assert values["triton_config"]["decoupled"] is False


def test_migration_speaks_of_this_recipe() -> None:
    fp8 = "\n".join(migration_lines(recipe("llmapi", quantize__format="fp8")))
    assert "by at most half a step of FP8" in fp8
    plain = migration_page(recipe("llmapi"))
    assert "half a step" not in plain
    assert "penalties" not in plain
    ignoring = migration_page(recipe("llmapi", compile__llmapi__sampler="TorchSampler"))
    assert "penalties and seeds" in ignoring
    assert [line for line in plain.splitlines() if line.startswith("## ")] == [
        "## Lost, or not as it was",
        "## Gained",
        "## As before",
    ]


def test_other_ways_to_get_an_engine_are_refused(tmp_path: Path) -> None:
    target = get_target("llmapi")
    with pytest.raises(UnsupportedError, match="no engine that could be taken in"):
        target.given_files(tmp_path)
    with pytest.raises(UnsupportedError, match="no build script for the LLM API"):
        target.build_script(None, recipe("llmapi"))  # type: ignore[arg-type]


def repository(folder: Path, ranks: int) -> Path:
    engine = folder / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    mapping = f'{{"pretrained_config": {{"mapping": {{"world_size": {ranks}}}}}}}'
    (engine / "config.json").write_text(mapping)
    return folder


def test_one_tritonserver_whatever_the_ranks(tmp_path: Path) -> None:
    target, folder = get_target("llmapi"), repository(tmp_path, 2)
    options = ServerOptions("127.0.0.1", 8001, 8000, 8002)
    command = list(target.serve_command(folder, options).command)
    assert "mpirun" not in command
    assert '"device=0,1"' in " ".join(command)
    assert any(word.endswith("tritonserver:26.06-trtllm-python-py3") for word in command)
    assert "nvidia" in target.compose(folder, options)
    assert target.contained(folder, "30").gpus == 2
    with pytest.raises(UsageError, match=r"2 rank\(s\), so it needs 2 different GPU"):
        target.serve_command(folder, ServerOptions("127.0.0.1", 8001, 8000, 8002, devices=[0]))


def test_nothing_heavy_is_imported_for_a_plan() -> None:
    import subprocess

    code = (
        "import sys; from pipeline.targets import get_target;"
        "get_target('llmapi'); get_target('edgellm');"
        "print([m for m in ('numpy', 'torch', 'safetensors', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() in ("[]", "['yaml']")
