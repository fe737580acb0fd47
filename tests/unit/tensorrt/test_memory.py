"""The memory plan against sums done by hand and against the tensors of the checkpoint's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.expected import expected_tensors
from pipeline.checkpoint.quantization import Quantization
from pipeline.recipe.schema import ServeSection
from pipeline.targets.tensorrt.gpus import GIB, GPUS
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.memory import activation_bytes, plan_memory, weight_bytes
from pipeline.targets.tensorrt.trial.script_perplexity import KV_CACHE_FRACTION

from .recipes import found, model, preview

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}


def test_llama_3_1_8b_int4_awq_on_one_l4(tmp_path: Path) -> None:
    memory = preview(tmp_path, "compile.gpu=L4").memory
    # qkv 6144 x 4096, dense 4096 x 4096, fc, gate and proj 14336 x 4096.
    values = 6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096
    assert values == 218_103_808
    layer = values // 2  # two per byte
    layer += values // 128 * 2  # a float16 scale per group
    layer += (4 * 4096 + 14336) * 2  # pre-quant scales
    layer += 2 * 4096 * 2  # norms
    assert memory.weights == 32 * layer + 2 * 128256 * 4096 * 2 + 4096 * 2 == 5_702_557_696
    # 2 (keys, values) x 32 layers x 8 heads x 128 x 2 bytes.
    assert memory.kv_bytes_per_token == 131_072
    assert memory.kv_bytes_per_sequence == GIB
    # 8192 tokens x (4 x 4096 + 6144 + 3 x 14336) x 2 bytes, and 64 rows of float32 logits.
    assert memory.activations == 8192 * 65536 * 2 + 64 * 128256 * 4 == 1_106_575_360
    assert memory.runtime == GIB
    # 24 GB with ECC: 21.96 GiB. (21.96 - 5.31 - 1.03 - 1.00) x 0.9 = 13.16 GiB: 13 sequences.
    assert memory.gpu_memory == int(24 * 0.915 * GIB)
    assert memory.kv_pool == pytest.approx(13.16 * GIB, rel=1e-3)
    assert memory.sequences == 13


def test_qwen2_5_7b_int8_sq_on_two_a10(tmp_path: Path) -> None:
    result = preview(
        tmp_path,
        "quantize.format=int8_sq",
        "compile.tensor_parallel=2",
        "compile.gpu=A10",
        of="qwen2.5-7b",
    )
    memory = result.memory
    # Of 28 heads and 4 KV heads a rank has 14 and 2: qkv has 18 x 128 = 2304 rows.
    layer = 2304 * 3584 + 3584 * 1792 + 3 * 9472 * 3584  # int8
    layer += (2304 + 3584 + 2 * 9472 + 3584) * 4  # float32 scales of the rows
    layer += (3584 + 1792 + 2 * 3584 + 9472) * 2  # pre-quant scales
    layer += 5 * 4 + 2 * 3584 * 2 + 2304 * 2  # activation scales, norms, bias of qkv
    assert layer == 116_699_668
    assert memory.weights == 28 * layer + 2 * 76032 * 3584 * 2 + 3584 * 2 == 4_357_592_624
    assert memory.kv_bytes_per_token == 2 * 28 * 2 * 128 * 2 == 28_672
    assert memory.kv_bytes_per_sequence == 234_881_024
    assert memory.activations == 8192 * (4 * 3584 + 2304 + 3 * 9472) * 2 + 64 * 152064 * 4
    assert memory.runtime == GIB * 3 // 2
    # (21.96 - 4.06 - 0.72 - 1.50) x 0.9 = 14.11 GiB = 64.5 sequences of 224 MiB.
    assert memory.kv_pool == pytest.approx(14.11 * GIB, rel=1e-3)
    assert memory.sequences == 64


def test_llama_3_1_70b_fp8_with_fp8_cache_on_four_h100(tmp_path: Path) -> None:
    result = preview(
        tmp_path,
        "quantize.format=fp8",
        "quantize.kv_cache=fp8",
        "compile.tensor_parallel=4",
        "compile.max_batch_size=128",
        "compile.max_seq_len=16384",
        "compile.max_num_tokens=16384",
        "compile.gpu=H100-80GB",
        of="llama-3.1-70b",
    )
    memory = result.memory
    # A rank has 16 heads and 2 KV heads: qkv has 20 x 128 = 2560 rows.
    layer = 2560 * 8192 + 8192 * 2048 + 3 * 7168 * 8192  # one byte each
    layer += 5 * 2 * 4 + 2 * 8192 * 2 + 4  # two scales per linear, norms, the cache's scale
    assert layer == 213_942_316
    assert memory.weights == 80 * layer + 2 * 32064 * 8192 * 2 + 8192 * 2 == 18_166_074_816
    assert memory.kv_bytes_per_token == 2 * 80 * 2 * 128 == 40_960
    assert memory.kv_bytes_per_sequence == 640 << 20
    assert memory.activations == 16384 * (4 * 8192 + 2560 + 3 * 7168) * 2 + 128 * 128256 * 4
    # (78.40 - 16.92 - 1.80 - 1.50) x 0.9 = 52.36 GiB = 83.8 sequences of 640 MiB.
    assert memory.kv_pool == pytest.approx(52.36 * GIB, rel=1e-3)
    assert memory.sequences == 83


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "qwen3-8b"])
@pytest.mark.parametrize("algo", ["NO_QUANT", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "FP8"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_weights_are_the_tensors_of_the_checkpoint(name: str, algo: str, tp: int, pp: int) -> None:
    group = 128 if algo == "W4A16_AWQ" else None
    facts = CheckpointFacts(model(name), "float16", algo, "FP8", group, tp, pp)
    config = CheckpointConfig(
        facts=facts.model,
        dtype="float16",
        quantization=Quantization(algo, "FP8", group, ("lm_head",)),
        tp_size=tp,
        pp_size=pp,
        use_parallel_embedding=True,
        embedding_sharding_dim=0,
        raw={},
    )
    ranks = []
    for rank in range(tp * pp):
        size = 0
        for tensor, expected in expected_tensors(config, rank).items():
            if "_cache_scaling_factor" in tensor and "kv_cache" not in tensor:
                continue  # merged into one at load
            width = WIDTHS[expected.dtypes[0]]
            if algo == "W4A16_AWQ" and tensor.endswith(".weights_scaling_factor"):
                width = 2  # cast to the model's dtype at load
            count = 1
            for length in expected.shape:
                count *= length
            size += count * width
        ranks.append(size)
    assert weight_bytes(facts) == max(ranks)


def test_more_ranks_than_kv_heads_keep_copies(tmp_path: Path) -> None:
    tokens = {
        tp: preview(
            tmp_path, "quantize.format=fp8", f"compile.tensor_parallel={tp}"
        ).memory.kv_bytes_per_token
        for tp in (1, 8, 16)
    }
    assert tokens == {1: 131072, 8: 16384, 16: 16384}


def test_pipeline_ranks_share_layers_and_cache(tmp_path: Path) -> None:
    whole = preview(tmp_path).memory
    half = preview(tmp_path, "compile.pipeline_parallel=2").memory
    assert half.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    assert half.weights < whole.weights * 0.51


def test_a_last_block_counts_whole(tmp_path: Path) -> None:
    memory = preview(tmp_path, "compile.max_seq_len=8161").memory
    assert memory.kv_bytes_per_sequence == 8192 * memory.kv_bytes_per_token


def test_limits_of_the_cache(tmp_path: Path) -> None:
    few = preview(tmp_path, "compile.gpu=H200", "serve.max_tokens_in_paged_kv_cache=20000").memory
    assert (few.kv_tokens, few.sequences) == (20000, 2)
    half = preview(tmp_path, "compile.gpu=L4", "serve.kv_cache_free_gpu_mem_fraction=0.45").memory
    assert half.kv_pool == pytest.approx(13.16 * GIB / 2, rel=1e-3)


def test_without_a_gpu_there_is_no_capacity(tmp_path: Path) -> None:
    result = preview(tmp_path)
    assert result.memory.sequences is None
    assert result.memory.weights == 5_702_557_696
    assert found(result, "nothing that depends on the GPU").severity == "note"


def test_prompt_logits_are_counted() -> None:
    facts = CheckpointFacts(model("llama-3.1-8b"), "float16", "NO_QUANT", None, None, 1, 1)
    config = BuildConfig(8, 1024, 2048, 2048, 8)
    asked = replace(config, gather_context_logits=True)
    more = activation_bytes(asked, facts) - activation_bytes(config, facts)
    assert more == (2048 - 8) * 128256 * 4


def test_the_evaluation_engine_of_a_full_gpu_has_room_for_a_window(tmp_path: Path) -> None:
    result = preview(tmp_path, "quantize.format=float16", "compile.gpu=L4", of="qwen3-8b")
    serving = result.effective.config
    assert result.memory.sequences
    serve = ServeSection(kv_cache_free_gpu_mem_fraction=KV_CACHE_FRACTION)
    # With the serving engine's sizes the logits alone are 8192 x 151936 x 4 bytes.
    large = replace(serving, gather_context_logits=True)
    before = plan_memory(large, result.checkpoint, serve, GPUS["L4"])
    assert before.kv_tokens is not None
    assert before.kv_tokens < 2048
    small = serving.for_evaluation(2048)
    after = plan_memory(small, result.checkpoint, serve, GPUS["L4"])
    assert after.sequences == 1
    assert before.activations - after.activations > 4 * GIB


def test_the_bound_covers_the_published_log() -> None:
    llama2 = replace(
        model("llama-3.1-8b"),
        intermediate_size=11008,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    facts = CheckpointFacts(llama2, "float16", "FP8", None, None, 1, 1)
    bound = activation_bytes(BuildConfig(2048, 1024, 4096, 8192, 2048), facts) / 2**20
    assert 1134 < bound < 1134 * 1.1
    assert bound == pytest.approx(1214, abs=1)


@pytest.mark.parametrize(
    ("name", "reported"),
    [("A100-40GB", 39.39), ("H100-80GB", 79.10), ("T4", 15.0), ("B200", 178.35)],
)
def test_the_table_never_promises_more_than_drivers_report(name: str, reported: float) -> None:
    assert 0.97 * reported < GPUS[name].memory_gib <= reported
