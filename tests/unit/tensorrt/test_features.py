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


LOOKAHEAD = "compile.tensorrt.lookahead"


@pytest.mark.parametrize(
    ("sizes", "draft"),
    [
        # examples/lookahead/README.md builds (7, 7, 7) with --max_draft_len=83.
        ((7, 7, 7), 83),
        # A hoster's configurations: (4, 5, 3) with 27 draft tokens, (1, 32, 1) with 61.
        ((4, 5, 3), 27),
        ((1, 32, 1), 61),
    ],
)
def test_the_draft_length_is_upstreams(
    sizes: tuple[int, int, int], draft: int, tmp_path: Path
) -> None:
    window, ngram, verification = sizes
    result = preview(
        tmp_path,
        "quantize.format=float16",
        f"{LOOKAHEAD}.window_size={window}",
        f"{LOOKAHEAD}.ngram_size={ngram}",
        f"{LOOKAHEAD}.verification_set_size={verification}",
    )
    flags = result.requested.flags()
    place = flags.index("--speculative_decoding_mode")
    assert flags[place + 1 : place + 4] == ["lookahead_decoding", "--max_draft_len", str(draft)]
    # The text is as long as before, and the step holds all guesses of 64 sequences.
    assert result.effective.config.max_seq_len == 8192 + draft
    assert result.effective.config.max_num_tokens == max(8192, 64 * (draft + 1))
    assert any(f"max_draft_len {draft}" in line for line in preview_lines(result))


def test_without_lookahead_no_flag_says_so(tmp_path: Path) -> None:
    result = preview(tmp_path)
    assert "--speculative_decoding_mode" not in result.requested.flags()
    assert not any("speculative" in line for line in preview_lines(result))


def test_guesses_take_logits(tmp_path: Path) -> None:
    plain = preview(tmp_path, "quantize.format=float16").memory
    guessing = preview(tmp_path, "quantize.format=float16", f"{LOOKAHEAD}={{}}").memory
    # (4, 3, 4): 1 + 7 x 2 = 15 tokens more, for 64 sequences, in float32.
    assert guessing.activations - plain.activations == 64 * 15 * 128256 * 4
    assert guessing.kv_bytes_per_sequence == plain.kv_bytes_per_sequence + 32 * 131_072


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "does not go with W4A16_AWQ.*float16, bfloat16 and FP8 only"),
        (["quantize.format=int8_sq"], "does not go with W8A8_SQ_PER_CHANNEL"),
        (["quantize.format=w4a8_awq"], "does not go with W4A8_AWQ"),
        (["quantize.format=fp8", "quantize.kv_cache=int8"], "with an INT8 KV cache"),
        (["quantize.format=fp8", "compile.pipeline_parallel=2"], "with pipeline parallelism"),
        (
            ["quantize.format=fp8", "compile.tensorrt.gather_context_logits=true"],
            "trtllm-build refuses gather_context_logits",
        ),
        (
            ["quantize.format=fp8", "serve.guided_decoding=xgrammar"],
            "guided decoding does not go with lookahead decoding",
        ),
    ],
)
def test_what_lookahead_does_not_go_with(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        refuse(tmp_path, f"{LOOKAHEAD}={{}}", *overrides)


@pytest.mark.parametrize("name", ["fp8", "float16", "bfloat16"])
def test_what_lookahead_goes_with(name: str, tmp_path: Path) -> None:
    result = preview(tmp_path, f"{LOOKAHEAD}={{}}", f"quantize.format={name}")
    assert not [f for f in result.effective.findings if f.severity == "error"]
    assert found(result, "decodes greedily").key == LOOKAHEAD
    assert not [f for f in result.effective.findings if "features may have no" in f.what]
    small = preview(
        tmp_path,
        f"{LOOKAHEAD}={{}}",
        f"quantize.format={name}",
        of=model(LLAMA, head_dim=64, hidden_size=2048),
    )
    assert found(small, "heads of 64 features may have no kernel").severity == "warning"


@pytest.mark.parametrize("setting", ["ngram_size=1", "window_size=0", "verification_set_size=0"])
def test_sizes_that_guess_nothing_are_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        recipe(tmp_path, f"{LOOKAHEAD}.{setting}")
