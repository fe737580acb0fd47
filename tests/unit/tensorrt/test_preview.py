"""What the GPU target refuses or warns of, from config.json and the recipe alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, UnsupportedError
from pipeline.models.architectures import ARCHITECTURES, TensorRtLlm
from pipeline.recipe.file import load_recipe
from pipeline.targets import get_target
from pipeline.targets.tensorrt.gpus import GPUS, Gpu, find_gpu
from pipeline.targets.tensorrt.plan.lines import preview_lines
from pipeline.targets.tensorrt.plan.preview import preview_engine, preview_here, refuse_errors
from tests.doubles.trtllm_build.machine import pretend

from ...conftest import PROJECT
from .recipes import DATA, TEXT, found, model, preview, recipe

PLUGINS = "compile.tensorrt.plugin_config"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["quantize.format=fp8", "compile.gpu=A100-80GB"], "FP8 does not run on A100-80GB"),
        (["quantize.format=w4a8_awq", "compile.gpu=A10"], "W4A8_AWQ does not run on A10.*SM 86"),
        (["compile.gpu=B200"], "W4A16_AWQ is refused on B200.*SM 100 to 119"),
        (["compile.gpu=B300"], "W4A16_AWQ is refused on B300.*B300 is SM 103"),
        (["compile.gpu=T4"], r"does not run on T4.*SM 80 \(Ampere\) or later; T4 is SM 75"),
        (["quantize.format=float16", "compile.gpu=V100"], "does not run on V100.*V100 is SM 70"),
        (["quantize.format=int8_sq", "compile.gpu=B200"], "W8A8_SQ_PER_CHANNEL is refused"),
        (["quantize.format=w4a8_awq", "compile.gpu=B200"], "W4A8_AWQ is refused on B200"),
        (
            ["quantize.format=fp8", "quantize.kv_cache=int8", "compile.gpu=B200"],
            "an INT8 KV cache is refused on B200",
        ),
        ([f"{PLUGINS}.gpt_attention_plugin=null"], "would not load.*In-flight batching"),
        ([f"{PLUGINS}.remove_input_padding=false"], "would not load.*packed input"),
        (["compile.tensorrt.kv_cache_type=continuous"], "would not load.*paged KV cache"),
        ([f"{PLUGINS}.gemm_plugin=fp8"], "gemm_plugin fp8 does not go with W4A16_AWQ"),
        ([f"{PLUGINS}.gemm_swiglu_plugin=fp8"], "gemm_swiglu_plugin is not available.*FP8 weights"),
        (
            [f"{PLUGINS}.gemm_swiglu_plugin=fp8", "quantize.format=fp8", "compile.gpu=L40S"],
            "kernels for Hopper only",
        ),
        (
            [f"{PLUGINS}.low_latency_gemm_plugin=fp8", "quantize.format=fp8", "compile.gpu=B200"],
            "refuses it on SM 100",
        ),
        (
            [
                f"{PLUGINS}={{gemm_swiglu_plugin: fp8, use_fused_mlp: false}}",
                "quantize.format=fp8",
                "compile.gpu=H200",
            ],
            "gemm_swiglu_plugin does not go.*GemmSwiGLU plugin requires --use_fused_mlp flag",
        ),
        (
            [
                f"{PLUGINS}={{low_latency_gemm_swiglu_plugin: fp8, use_fused_mlp: false}}",
                "quantize.format=fp8",
            ],
            "low_latency_gemm_swiglu_plugin does not go.*Leave .*use_fused_mlp or",
        ),
        (["compile.max_seq_len=131073"], "longer than the model's 131072 positions"),
        (["quantize.format=bfloat16", "compile.gpu=L4", "compile.max_seq_len=65536"], "not fit L4"),
    ],
)
def test_refusals_name_key_reason_and_remedy(
    tmp_path: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(UnsupportedError, match=expected) as caught:
        get_target("tensorrt").check(recipe(tmp_path, *overrides), model("llama-3.1-8b"))
    error = caught.value
    assert error.exit_code == 3
    assert "recipe.yaml" in str(error.where) or "--set" in str(error.where)
    assert error.why
    assert error.fix


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "1.3.0rc22",
            "TensorRT-LLM 1.3.0rc22 cannot build engines.*Triton 26.07 the last container",
        ),
        ("1.1.0", "1.1.0 is not the pinned 1.2.1.*Triton 25.12, 26.01, 26.02 holds"),
    ],
)
def test_the_installed_tensorrt_llm_is_looked_at_first(
    version: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", tensorrt_llm=version)
    with pytest.raises(UnsupportedError, match=expected):
        get_target("tensorrt").check(recipe(tmp_path), model("llama-3.1-8b"))


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"programs": (), "tensorrt_llm": None}, "no NVIDIA GPU.* and neither TensorRT-LLM nor"),
        ({"programs": ("nvidia-smi",), "tensorrt_llm": None}, "Here, neither TensorRT-LLM nor"),
        ({"programs": ("docker",), "tensorrt_llm": None}, r"installed\); the stages before"),
        ({"programs": ("nvidia-smi", "docker"), "tensorrt_llm": None}, None),
        ({"programs": ("nvidia-smi",)}, None),
    ],
)
def test_the_plan_says_what_this_machine_lacks(
    machine: dict[str, Any], why: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", **machine)
    monkeypatch.setattr(subprocess, "run", None)  # nothing is started to find out
    result = preview_here(recipe(tmp_path), model("llama-3.1-8b"))
    notes = [f for f in result.effective.findings if f.key == "compile.target"]
    if why is None:
        assert notes == []
        return
    (note,) = notes
    assert note.severity == "note"
    assert re.search(why, note.why)
    assert "set compile.target to openvino" in note.remedy


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    overrides = (f"{PLUGINS}.remove_input_padding=false", "compile.gpu=B200")
    with pytest.raises(UnsupportedError, match=r"refused on B200.*Also: the engine would not"):
        refuse_errors(recipe(tmp_path, *overrides), model("llama-3.1-8b"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["compile.gpu=A100-40GB"],
        ["compile.gpu=l40s"],
        ["quantize.format=int8_sq", "compile.gpu=A10"],
        ["quantize.format=fp8", "quantize.kv_cache=fp8", "compile.gpu=H100-80GB"],
        ["quantize.format=fp8", "compile.gpu=B200"],
        ["quantize.format=w4a8_awq", "compile.gpu=L40S"],
        ["quantize.format=float16", "compile.gpu=B200"],
        ["quantize.format=int8_sq", "compile.gpu=RTX 5090"],
        [
            f"{PLUGINS}={{gemm_swiglu_plugin: fp8, gemm_plugin: fp8}}",
            "quantize.format=fp8",
            "compile.gpu=H200",
        ],
    ],
)
def test_combinations_that_work(tmp_path: Path, overrides: list[str]) -> None:
    refuse_errors(recipe(tmp_path, *overrides), model("llama-3.1-8b"))


def test_linear_rope_reaches_no_further_than_upstreams_table(tmp_path: Path) -> None:
    """``create_attention_const_params`` of tensorrt_llm/layers/attention.py makes a table of
    ``max_position_embeddings`` rows for any rope, and the kernels check no position against it.
    """
    rope = {"rope_type": "linear", "factor": 2.0}
    linear = model("llama-3.1-8b", rope_scaling=rope)
    refuse_errors(recipe(tmp_path, "compile.max_seq_len=131072"), linear)
    with pytest.raises(
        UnsupportedError, match=r"table of 131072 positions.*reaches 262144.*131072"
    ):
        refuse_errors(recipe(tmp_path, "compile.max_seq_len=131073"), linear)
    with pytest.raises(UnsupportedError, match="the model's 262144 positions"):
        refuse_errors(recipe(tmp_path, "compile.max_seq_len=262145"), linear)
    # A model that says what its positions were before counts the factor in them already.
    rope["original_max_position_embeddings"] = 65536
    refuse_errors(
        recipe(tmp_path, "compile.max_seq_len=131072"), replace(linear, rotary_scaling=rope)
    )
    with pytest.raises(UnsupportedError, match="the model's 131072 positions"):
        refuse_errors(recipe(tmp_path, "compile.max_seq_len=262144"), model("llama-3.1-8b"))


def test_a_sliding_window_bounds_the_sequence(tmp_path: Path) -> None:
    mistral = replace(model("llama-3.1-8b"), sliding_window=4096)
    with pytest.raises(UnsupportedError, match="sliding window of 4096"):
        refuse_errors(recipe(tmp_path), mistral)


def test_long_prompts_without_chunked_context(tmp_path: Path) -> None:
    chunked = preview(tmp_path, "compile.max_num_tokens=2048")
    assert not [f for f in chunked.effective.findings if "refused" in f.what]
    whole = preview(tmp_path, "compile.max_num_tokens=2048", "serve.enable_chunked_context=false")
    finding = found(whole, "prompts of more than 2048 tokens are refused")
    assert "4096, or serve.enable_chunked_context to true" in finding.remedy
    int8 = preview(tmp_path, "compile.max_num_tokens=2048", "quantize.kv_cache=int8")
    assert "enable_chunked_context" not in found(int8, "prompts of more than").remedy


def test_a_kv_cache_smaller_than_a_sequence_is_refused_before_the_build(tmp_path: Path) -> None:
    """The executor's text: the KV cache "must be large enough to process at least 1 sequence"."""
    small = "serve.max_tokens_in_paged_kv_cache=1024"
    finding = found(preview(tmp_path, small), "a KV cache of 1024 tokens does not hold one")
    assert finding.severity == "error"
    assert finding.key == "serve.max_tokens_in_paged_kv_cache"
    assert "8192" in finding.remedy
    enough = preview(tmp_path, "serve.max_tokens_in_paged_kv_cache=8192")
    assert not [f for f in enough.effective.findings if "does not hold one" in f.what]


@pytest.mark.parametrize("off", ["serve.enable_chunked_context=false", "quantize.kv_cache=int8"])
def test_max_utilization_needs_chunked_context_for_long_streams(tmp_path: Path, off: str) -> None:
    """executorImpl.cpp refuses prompt + max_tokens - 1 beyond the longest prompt: "This cannot be
    run unless streaming is disabled, context chunking is enabled or the GUARANTEED_NO_EVICT
    scheduling policy is used". Without chunks the longest prompt is max_num_tokens (trtGptModel.h).
    """
    asked = ("serve.batch_scheduler_policy=max_utilization", "compile.max_num_tokens=4096")
    finding = found(preview(tmp_path, *asked, off), "streams of more than 4097 tokens")
    assert finding.severity == "warning"
    assert finding.key == "serve.batch_scheduler_policy"
    assert "guaranteed_no_evict" in finding.remedy
    # Only a server can switch on what the engine is able to do.
    assert ("enable_chunked_context" in finding.remedy) == off.startswith("serve")
    # In a step that holds whole sequences any of them can be computed again.
    wide = preview(tmp_path, *asked, off, "compile.max_num_tokens=8191")
    for quiet in (wide, preview(tmp_path, *asked), preview(tmp_path, off)):
        assert not [f for f in quiet.effective.findings if "streams of more" in f.what]


def test_the_plan_says_what_the_server_switches_off(tmp_path: Path) -> None:
    on, off = preview(tmp_path), preview(tmp_path, "serve.enable_chunked_context=false")
    assert "KV cache reuse on, chunked context on" in "\n".join(preview_lines(on))
    line = "KV cache reuse on, chunked context off (serve.enable_chunked_context)"
    assert line in "\n".join(preview_lines(off))
    assert off.as_dict()["switched_off"] == ["enable_chunked_context"]
    # What the engine cannot do is nothing to switch off.
    int8 = preview(tmp_path, "serve.enable_chunked_context=false", "quantize.kv_cache=int8")
    assert "chunked context not possible" in "\n".join(preview_lines(int8))


def test_an_fp8_kv_cache_comes_with_the_reports_of_it(tmp_path: Path) -> None:
    fp8 = ("quantize.format=fp8", "quantize.kv_cache=fp8")
    llama = preview(tmp_path, *fp8)
    note = found(llama, "reused between prompts is reported to give wrong text")
    assert (note.severity, note.key) == ("note", "serve.enable_kv_cache_reuse")
    assert "NVIDIA/TensorRT-LLM#2699" in note.why
    qwen = found(preview(tmp_path, *fp8, of="qwen2.5-7b"), "reported to break Qwen2.5")
    assert (qwen.severity, qwen.key) == ("warning", "quantize.kv_cache")
    assert "NVIDIA/TensorRT-LLM#4218" in qwen.why
    alone = preview(tmp_path, *fp8, "serve.enable_kv_cache_reuse=false")
    # Without FP8 weights the engine reuses nothing.
    awq = preview(tmp_path, "quantize.kv_cache=fp8")
    plain = preview(tmp_path, "quantize.format=fp8", of="qwen2.5-7b")
    for quiet in (alone, awq, plain):
        assert not [f for f in quiet.effective.findings if "reported" in f.what]


def test_groupwise_kernels_may_be_missing(tmp_path: Path) -> None:
    for overrides in (["quantize.format=w4a8_awq"], ["compile.tensor_parallel=4"]):
        note = found(preview(tmp_path, *overrides), "may find no kernel")
        assert note.severity == "note"
        assert "Have not found any valid GEMM config" in note.why
    for overrides in ([], ["quantize.format=fp8", "compile.tensor_parallel=4"]):
        quiet = preview(tmp_path, *overrides)
        assert not [f for f in quiet.effective.findings if "no kernel" in f.what]


def test_the_epsilon_of_qwen3s_query_and_key_norms_is_upstreams(tmp_path: Path) -> None:
    """``Attention`` of tensorrt_llm/layers/attention.py has ``eps=1e-05``; Qwen3-8B says 1e-6."""
    note = found(preview(tmp_path, of="qwen3-8b"), "normalizes queries and keys")
    assert note.severity == "note"
    assert "epsilon of 1e-05, the model says 1e-06" in note.what
    same = preview(tmp_path, of=model("qwen3-8b", rms_norm_eps=1e-5))
    for quiet in (same, preview(tmp_path, of="qwen2.5-7b")):
        assert not [f for f in quiet.effective.findings if "normalizes queries" in f.what]


def test_the_plan_claims_nothing_about_prompts_beyond_max_input_len(tmp_path: Path) -> None:
    """``preprocessing`` refuses them, whatever the engine would take."""
    said = "\n".join(preview_lines(preview(tmp_path)))
    assert "max_input_len 4096" in said
    assert "enforce" not in said
    assert "longer prompts" not in said


def test_prompt_logits_switch_reuse_off(tmp_path: Path) -> None:
    result = preview(tmp_path, "compile.tensorrt.gather_context_logits=true")
    assert not result.effective.kv_cache_reuse
    assert result.effective.chunked_context
    assert found(result, "reuse is switched off at run time").severity == "warning"


def test_a_full_gpu_is_warned_of_before_triton_refuses_it(tmp_path: Path) -> None:
    # 16.1 GiB of weights and 1 GiB of KV cache fit 22 GiB, 8 GiB of activations do not.
    result = preview(
        tmp_path, "quantize.format=float16", "compile.gpu=L4", "compile.max_num_tokens=65536"
    )
    assert result.memory.sequences == 0
    assert found(result, "may not hold one sequence").severity == "warning"


def test_an_unknown_gpu_names_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no GPU H10-80GB.*Did you mean H100-80GB\?") as caught:
        preview_engine(recipe(tmp_path, "compile.gpu=H10-80GB"), model("llama-3.1-8b"))
    assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match=r"table\. Known: A30, A100-40GB"):
        find_gpu("quantum", "here")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("A100", "A100-40GB or A100-80GB"),
        ("h100", "H100-80GB or H100-94GB"),
        ("RTX", "RTX-3090 or RTX-A6000 or RTX-4090 or RTX-6000-Ada or RTX-5090 or RTX-PRO-6000"),
        ("A100-80G", "A100-80GB"),
        ("H10O-80GB", "H100-80GB"),
    ],
)
def test_a_name_that_is_nearly_one(typed: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=rf"Did you mean {meant}\?"):
        find_gpu(typed, "here")


# As nvidia-smi gives them: name and MiB.
DEVICES = {
    "A100-40GB": ("NVIDIA A100-SXM4-40GB", 40960),
    "A100-80GB": ("NVIDIA A100 80GB PCIe", 81920),
    "A10": ("NVIDIA A10", 23028),
    "L4": ("NVIDIA L4", 23034),
    "L40S": ("NVIDIA L40S", 46068),
    "H100-80GB": ("NVIDIA H100 80GB HBM3", 81559),
    "H100-94GB": ("NVIDIA H100 NVL", 95830),
    "H200": ("NVIDIA H200", 143771),
    "RTX-4090": ("NVIDIA GeForce RTX 4090", 24564),
    "RTX-6000-Ada": ("NVIDIA RTX 6000 Ada Generation", 49140),
    "RTX-PRO-6000": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_known_by_its_name_and_size(name: str) -> None:
    device, mib = DEVICES[name]
    alike = [gpu.name for gpu in GPUS.values() if gpu.is_like(Gpu(device, 0, mib << 20))]
    assert alike == [name]
    assert GPUS[name].is_like(Gpu(device, 0, 0))


def test_gpu_names_are_forgiving() -> None:
    assert find_gpu("h100 80gb", "") is GPUS["H100-80GB"]
    assert find_gpu("rtx_4090", "") is GPUS["RTX-4090"]


@pytest.mark.parametrize(
    ("name", "sm"),
    [
        ("GB200", 100),
        ("B300", 103),
        ("A100-80GB", 80),
        ("A10", 86),
        ("L4", 89),
        ("H200", 90),
        ("B200", 100),
        ("RTX-5090", 120),
    ],
)
def test_compute_capabilities(name: str, sm: int) -> None:
    assert GPUS[name].sm == sm


def test_the_plan_of_a_70b_takes_a_second_and_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((DATA / "llama-3.1-70b.json").read_text())
    (tmp_path / "c.txt").write_text("text")
    path = tmp_path / "recipe.yaml"
    text = TEXT.replace("{source: m}", f"{{source: {tmp_path}}}")
    path.write_text(text.replace("c.txt", str(tmp_path / "c.txt")).replace("{text: h.txt}", "null"))
    code = (
        "import sys, time\n"
        f"sys.argv = ['trtllm-pipeline', 'plan', {str(path)!r}, '--json', '--build-dir',"
        f" {str(tmp_path / 'build')!r}, '--set', 'quantize.format=fp8', '--set',"
        " 'quantize.kv_cache=fp8', '--set', 'compile.tensor_parallel=4', '--set',"
        " 'compile.gpu=H100-80GB']\n"
        "from pipeline.cli.main import app\n"
        "try: app()\n"
        # 3 where this machine's disk has no room for it; all is printed before.
        "except SystemExit as exit: assert exit.code in (None, 0, 3)\n"
        "assert time.process_time() < 1, time.process_time()\n"
        # NumPy measures how fast this machine quantizes.
        "heavy = {'torch', 'transformers', 'modelopt', 'tensorrt_llm'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    engine = json.loads(answer.stdout)["engine"]
    assert engine["memory"]["weights"] == 18_166_074_816
    assert engine["memory"]["kv_bytes_per_token"] == 40_960
    assert engine["build_config"]["plugin_config"]["use_fp8_context_fmha"] is True
    assert engine["kv_cache_reuse"] is True
    assert engine["world_size"] == 4


def test_the_inspection_itself_takes_milliseconds(tmp_path: Path) -> None:
    asked, facts = recipe(tmp_path, "compile.gpu=H200"), model("llama-3.1-70b")
    started = time.process_time()
    preview_engine(asked, facts)
    assert time.process_time() - started < 0.5


def test_the_plan_is_printed(tmp_path: Path) -> None:
    plan = preview(tmp_path, "compile.gpu=L4", "quantize.kv_cache=int8")
    text = "\n".join(preview_lines(plan))
    assert "engine: W4A16_AWQ, INT8 KV cache, 1 x L4 (SM 89)" in text
    assert "use_paged_context_fmha off" in text
    assert "KV cache reuse not possible, chunked context not possible" in text
    assert "weights                 5.31 GiB" in text
    assert "KV cache                64.0 KiB a token, 0.50 GiB a sequence" in text
    assert "warning: use_paged_context_fmha is switched off" in text
    assert "(quantize.kv_cache)" in text


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (PROJECT / "configs").glob("*.yaml") if not p.name.startswith("demo")),
    ids=lambda path: path.stem,
)
def test_the_shipped_recipes_build_what_they_say(path: Path) -> None:
    asked = load_recipe(path)
    name = next(file.stem for file in DATA.glob("*.json") if path.stem.startswith(file.stem))
    result = preview_engine(asked, model(name))
    assert asked.compile.gpu
    assert {finding.severity for finding in result.effective.findings} <= {"note"}
    assert result.effective.config == result.requested
    assert result.effective.kv_cache_reuse
    assert result.memory.sequences
    assert result.memory.sequences >= 8


def test_an_architecture_of_which_tensorrt_llm_has_no_class_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream ends with "Unsupported model architecture", when the checkpoint is written."""
    llama = ARCHITECTURES["LlamaForCausalLM"]
    assert not [f for f in preview(tmp_path).effective.findings if "no class" in f.what]
    monkeypatch.setitem(ARCHITECTURES, llama.name, replace(llama, tensorrt_llm=TensorRtLlm()))
    with pytest.raises(UnsupportedError, match=r"has no class for LlamaForCausalLM.*MODEL_MAP"):
        refuse_errors(recipe(tmp_path), model("llama-3.1-8b"))
