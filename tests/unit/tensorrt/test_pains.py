"""The sixteen things people report most about this path, each with the pipeline's answer.

The numbers and the threads are those of NVIDIA/TensorRT-LLM and
triton-inference-server/tensorrtllm_backend.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from model_repo.preprocessing.prompt import PromptEncoder
from model_repo.tensorrt_llm_bls.detokenizer import IncrementalDetokenizer
from pipeline.checkpoint import validate
from pipeline.errors import (
    CheckpointError,
    RecipeError,
    RepositoryError,
    UnsupportedError,
    UsageError,
)
from pipeline.preflight.model_checks import check_model
from pipeline.recipe.file import load_recipe
from pipeline.targets import get_target
from pipeline.targets.tensorrt.build.engine import write_manifest
from pipeline.targets.tensorrt.build.failures import explain_failure
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.serve.backend import build_parameters
from pipeline.targets.tensorrt.serve.container import Endpoints, server_command
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.targets.tensorrt.serve.launch import check_gpus, docker_launch, serving_container
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER, TENSORRT, check_tensorrt_llm
from pipeline.targets.tensorrt.trial.script_perplexity import _score, check_engine
from pipeline.triton.validate import check_repository
from pipeline.verdict.defaults import limit_of
from tests.unit.triton.by_target import render_configs

from ..checkpoint.support import INT8, config, int8_tensors, write_checkpoint
from ..model_repo.test_detokenizer import byte_level
from ..triton.tensorrt import LLAMA_8B, LLAMA_70B, engine_config, write_repository
from ..triton.tensorrt import recipe as triton_recipe
from .recipes import DATA, found, model, preview, recipe

ENDPOINTS = Endpoints("127.0.0.1")
L4 = InstalledGpu(0, "GPU-0", "NVIDIA L4", 89, 23034)


def _bound(repository: Path, **changes: object) -> Path:
    """A repository whose engine says what it is bound to."""
    manifest = {
        "gpu": {"name": "NVIDIA L4", "sm": 89},
        "tensorrt_llm": "1.2.1",
        "tensorrt": TENSORRT,
        "container": None,
    }
    write_manifest(repository / "tensorrt_llm/1/engine", manifest | changes)
    return repository


def _checked(folder: Path, name: str, *overrides: str) -> None:
    (folder / "config.json").write_text((DATA / f"{name}.json").read_text())
    check_model(recipe(folder, *overrides), folder)


def test_01_an_engine_of_another_version_names_the_image(tmp_path: Path) -> None:
    line = "Serialization assertion stdVersionRead == serializationVersion failed. Version tag does"
    failure = explain_failure([f"[TRT] [E] {line} not match."], 1)
    assert DEFAULT_CONTAINER.image in failure.fix
    assert serving_container({"tensorrt_llm": "1.2.1", "tensorrt": TENSORRT}) == DEFAULT_CONTAINER
    with pytest.raises(UnsupportedError, match="no container is known with TensorRT-LLM 0"):
        serving_container({"tensorrt_llm": "0.9.0", "tensorrt": "9.3"})
    repository = _bound(write_repository(tmp_path / "r"))
    other = Machine((InstalledGpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 90, 81559),), "580.65")
    with pytest.raises(UnsupportedError, match=r"engine is for NVIDIA L4 \(SM 89\), GPU 0 is"):
        check_gpus(repository, other, [0], 1)
    check_gpus(repository, Machine((L4,), "580.65"), [0], 1)


def test_02_no_template_variable_survives(tmp_path: Path) -> None:
    configs = render_configs(triton_recipe(), engine_config())
    assert all("${" not in text for text in configs.values())
    repository = write_repository(tmp_path / "r")
    path = repository / "tensorrt_llm/config.pbtxt"
    path.write_text(path.read_text() + '\nparameters { key: "x" value { string_value: "${x}" } }\n')
    with pytest.raises(RepositoryError, match=r"\$\{"):
        check_repository(repository, get_target("tensorrt").engine_problems)


@pytest.mark.parametrize("version", ["1.3.0rc22", "1.3.0rc29", "1.4.0rc1", "2.0.0"])
def test_03_a_version_without_engines_is_refused_with_the_way_out(version: str) -> None:
    with pytest.raises(UnsupportedError, match="removed upstream in July 2026") as caught:
        check_tensorrt_llm(version)
    text = str(caught.value)
    assert "1.2.1 is the last stable version" in text
    assert DEFAULT_CONTAINER.image in text
    assert "LLM-API" in text
    assert "Edge-LLM" in text


def test_04_smoothquant_is_per_channel_and_measured(tmp_path: Path) -> None:
    result = preview(tmp_path, "quantize.format=int8_sq", "evaluate=null")
    assert result.checkpoint.quant_algo == "W8A8_SQ_PER_CHANNEL"
    assert found(result, "nothing measures").severity == "warning"
    assert "smoothquant_alpha" in found(result, "close look").remedy
    gates = recipe(tmp_path, "quantize.format=int8_sq").evaluate
    assert gates
    assert limit_of(gates.gates, "perplexity_increase", 8_030_261_248, 8) == 0.02


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "qwen3-8b"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_05_smoothquant_of_each_model_and_tp_is_known(tmp_path: Path, name: str, tp: int) -> None:
    overrides = ("quantize.format=int8_sq", f"compile.tensor_parallel={tp}")
    _checked(tmp_path, name, *overrides)
    # Llama 3.1's rope and Qwen's biases, which broke conversions, are facts of the model.
    facts = model(name)
    assert (facts.rotary_scaling is not None) is (name == "llama-3.1-8b")
    assert facts.attention_bias is (name == "qwen2.5-7b")
    result = preview(tmp_path, *overrides, of=name)
    assert not [f for f in result.effective.findings if f.severity == "error"]


def test_05_more_ranks_than_kv_heads_are_refused_for_smoothquant(tmp_path: Path) -> None:
    overrides = ("quantize.format=int8_sq", "compile.tensor_parallel=16")
    with pytest.raises(UnsupportedError, match="int8_sq cannot repeat 8 KV heads over 16"):
        _checked(tmp_path, "llama-3.1-8b", *overrides)


def test_06_awq_shapes_are_checked_before_calibration(tmp_path: Path) -> None:
    _checked(tmp_path, "qwen2.5-7b", "compile.tensor_parallel=4")
    with pytest.raises(UnsupportedError, match="28 attention heads cannot be split over 8"):
        _checked(tmp_path, "qwen2.5-7b", "compile.tensor_parallel=8")
    with pytest.raises(RecipeError, match="64 or 128"):
        recipe(tmp_path, "quantize.group_size=256")
    with pytest.raises(UnsupportedError, match="W4A8_AWQ does not run on A100"):
        _checked(tmp_path, "llama-3.1-8b", "quantize.format=w4a8_awq", "compile.gpu=A100-80GB")
    llama2 = json.loads((DATA / "llama-3.1-8b.json").read_text()) | {"intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps(llama2))
    with pytest.raises(UnsupportedError, match=r"11008 of mlp\.fc is not a multiple of 512"):
        check_model(recipe(tmp_path, "compile.tensor_parallel=4"), tmp_path)


@pytest.mark.parametrize(
    "scale",
    [
        "transformer.layers.0.mlp.fc.activation_scaling_factor",
        "transformer.layers.1.attention.kv_cache_scaling_factor",
    ],
)
def test_07_a_missing_scale_is_found_in_the_checkpoint(tmp_path: Path, scale: str) -> None:
    tensors = int8_tensors()
    del tensors[scale]
    write_checkpoint(tmp_path, config(quantization=INT8), tensors)
    with pytest.raises(CheckpointError, match=f"{scale} is missing"):
        validate(tmp_path)


def test_08_an_int8_kv_cache_is_off_and_explained(tmp_path: Path) -> None:
    assert recipe(tmp_path).quantize.kv_cache is None
    result = preview(tmp_path, "quantize.kv_cache=int8")
    assert not result.effective.kv_cache_reuse
    assert not result.effective.chunked_context
    assert "one static scale per layer" in found(result, "INT8 KV cache costs").why
    assert result.memory.kv_bytes_per_token == preview(tmp_path).memory.kv_bytes_per_token // 2


def test_09_kv_reuse_follows_the_engine_and_says_so(tmp_path: Path) -> None:
    engine = engine_config()
    engine["build_config"]["plugin_config"]["use_paged_context_fmha"] = False
    parameters = build_parameters(
        triton_recipe(), TrtEngine.from_config(engine), engine_dir="e", tokenizer_dir="t"
    )
    assert parameters.values["enable_kv_cache_reuse"] == "false"
    assert "without use_paged_context_fmha" in parameters.switched_off["enable_kv_cache_reuse"]
    said = found(preview(tmp_path, "quantize.kv_cache=fp8"), "no KV cache reuse")
    assert "quantize.format to fp8" in said.remedy


def test_10_every_end_id_of_the_model_ends_a_text(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    ids = {"eos_token_id": [128001, 128008, 128009]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    encoder = PromptEncoder(tmp_path, add_special_tokens=True)
    assert encoder.end_ids == (128001, 128008, 128009)


def test_11_streaming_keeps_spaces_and_split_characters() -> None:
    tokenizer, text = byte_level(), "two  spaces, żółć and 😀"
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in tokenizer.encode(text).ids]
    assert "".join(pieces) + detokenizer.finish() == text


def test_12_a_kv_cache_that_cannot_hold_a_sequence_is_told_before_the_start(
    tmp_path: Path,
) -> None:
    tight = preview(
        tmp_path, "quantize.format=float16", "compile.gpu=L4", "compile.max_num_tokens=65536"
    )
    assert found(tight, "may not hold one sequence").severity == "warning"
    with pytest.raises(UnsupportedError, match="does not fit L4"):
        _checked(tmp_path, "llama-3.1-70b", "compile.gpu=L4")
    with pytest.raises(UnsupportedError, match="1000 tokens does not hold one sequence"):
        build_parameters(
            triton_recipe(LLAMA_8B, max_tokens_in_paged_kv_cache=1000),
            TrtEngine.from_config(engine_config()),
            engine_dir="e",
            tokenizer_dir="t",
        )


def test_13_the_engine_decides_how_many_processes_start(tmp_path: Path) -> None:
    repository = _bound(write_repository(tmp_path / "r", LLAMA_70B))
    command = server_command(4)
    assert command[0] == "mpirun"
    assert command.count("tritonserver") == 4
    assert '"device=0,1,2,3"' in docker_launch(repository, ENDPOINTS).text
    with pytest.raises(UsageError, match=r"4 rank\(s\), so it needs 4 different GPU"):
        docker_launch(repository, ENDPOINTS, devices=[0, 1])
    with pytest.raises(UsageError, match="1 were named"):
        docker_launch(repository, ENDPOINTS, devices=[0, 0, 0, 0])


def test_14_a_build_never_takes_upstreams_default_sizes(tmp_path: Path) -> None:
    path = tmp_path / "minimal.yaml"
    path.write_text("schema: 1\nname: t\nmodel: {source: m}\nquantize: {format: float16}\n")
    flags = BuildConfig.from_recipe(load_recipe(path, ["compile.target=tensorrt"])).flags()
    assert flags[flags.index("--max_batch_size") + 1] == "32"  # upstream's is 2048
    assert flags[flags.index("--max_num_tokens") + 1] == "2048"
    killed = explain_failure([], -signal.SIGKILL)
    assert "out-of-memory killer" in killed.why
    assert "workers" in killed.fix
    assert "GPU's memory" in explain_failure(["[TRT] [E] Error Code 2: OutOfMemory"], 1).why


def test_15_context_logits_come_from_an_engine_of_their_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    result = preview(tmp_path, "compile.tensorrt.gather_context_logits=true")
    assert "reuse is switched off" in found(result, "at run time").what
    built = BuildConfig.from_recipe(recipe(tmp_path))
    assert not built.gather_context_logits
    check_engine(built.for_evaluation(8191).as_dict(), 8191)
    with pytest.raises(ValueError, match="without --gather_context_logits"):
        check_engine(built.as_dict(), 100)
    with pytest.raises(ValueError, match="8192 tokens does not fit max_seq_len"):
        check_engine(built.for_evaluation(8191).as_dict(), 8192)
    with pytest.raises(ValueError, match="window 3 of 5 tokens got logits of shape"):
        _score(torch.ones(4, 8), [1, 2, 3, 4, 5], 8, 3)
    with pytest.raises(ValueError, match="positions without logits"):
        _score(torch.zeros(5, 8), [1, 2, 3, 4, 5], 8, 3)


@pytest.mark.parametrize(
    ("old", "replacement"),
    [
        ("use_inflight_batching: true", "in-flight batching is always on"),
        ("paged_kv_cache: true", "kv_cache_type: paged"),
        ("use_custom_all_reduce: true", "chosen at run time"),
        ("multi_block_mode: true", "runtime option"),
        ("enable_context_fmha: true", "write context_fmha"),
        ("auto_parallel: 8", "compile.tensor_parallel"),
    ],
)
def test_16_options_of_old_tutorials_name_their_replacement(
    tmp_path: Path, old: str, replacement: str
) -> None:
    with pytest.raises(RecipeError, match=replacement):
        recipe(tmp_path, f"compile.tensorrt.plugin_config={{{old}}}")
