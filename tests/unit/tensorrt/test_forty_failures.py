"""Forty failures that users of TensorRT-LLM and its Triton backend reported, each with the answer.

A failure is *prevented* where it cannot happen or is refused before any work, *reported* where it
is said with its remedy, and *let through* where it is upstream's and nothing here can see it.
``repo#n`` is short for NVIDIA/TensorRT-LLM (llm), triton-inference-server/tensorrtllm_backend
(backend), triton-inference-server/server (server) and NVIDIA/Model-Optimizer (modelopt). Texts of
failed servers and builds are judged in ``test_failure_texts.py``.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from pipeline.errors import PipelineError
from pipeline.preflight.model_checks import check_model
from pipeline.quantize.export import checkpoint_config
from pipeline.targets.tensorrt.serve.container import Endpoints
from pipeline.targets.tensorrt.serve.launch import docker_launch
from pipeline.targets.tensorrt.toolchain import WAY_OUT
from tests.doubles.trtllm_build import checkpoint as upstream

from ...conftest import PROJECT
from ..triton.tensorrt import write_repository
from .recipes import DATA, found, model, preview, recipe
from .test_pains import _bound

HERE = "tests/unit/tensorrt/test_forty_failures.py"
TEXTS = "tests/unit/tensorrt/test_failure_texts.py"
PLAN = f"{HERE}::test_the_plan_answers"

# What these answers are made of, where it is not the pre-flight.


def unit(file: str, name: str) -> str:
    """A unit test."""
    return f"tests/unit/{file}::{name}"


class Row(NamedTuple):
    """One failure.

    Attributes:
        number: From 1 to 40.
        threads: Where it was reported, or upstream's text.
        what: What happened there.
        answer: What becomes of it here.
        how: By what.
        proofs: The tests that show it, as ``file::name``.
    """

    number: int
    threads: str
    what: str
    answer: Literal["prevented", "reported", "let through"]
    how: str
    proofs: tuple[str, ...] = ()


ROWS = (
    Row(
        1,
        "backend#720",
        "embedding bias: last dimension to be same as vocab size: 152064",
        "prevented",
        "preprocessing makes it as wide as the engine's padded vocabulary",
        (unit("model_repo/test_text_models.py", "test_a_bias_has_the_engines_vocabulary"),),
    ),
    Row(
        2,
        "backend#276, llm#2406",
        "output_log_probs are always 0",
        "prevented",
        "normalize_log_probs is false",
        (unit("model_repo/test_bls.py", "test_each_score_is_sent_once_and_an_end_id_has_none"),),
    ),
    Row(
        3,
        "llm#7580, llm#8785",
        "the log probs of a stream grow with every response",
        "prevented",
        "tensorrt_llm_bls sends each of them once",
        (unit("model_repo/test_bls.py", "test_each_score_is_sent_once_and_an_end_id_has_none"),),
    ),
    Row(
        4,
        "llm#10810",
        "cancelling a stream with generation logits aborts the process",
        "prevented",
        "generation logits are refused",
        (unit("model_repo/test_bls.py", "test_a_bad_request_gets_a_clear_error"),),
    ),
    Row(
        5,
        "llm#2699",
        "wrong text with an FP8 KV cache and reuse",
        "reported",
        "plan names the report, the way to notice and the way out",
        (
            PLAN,
            unit("tensorrt/test_preview.py", "test_an_fp8_kv_cache_comes_with_the_reports_of_it"),
        ),
    ),
    Row(
        6,
        "llm#4218",
        "an FP8 KV cache breaks Qwen2.5",
        "reported",
        "plan warns for this architecture; the gate measures the cache",
        (PLAN,),
    ),
    Row(
        7,
        "llm#9688, llm#1792, llm#1770, llm#1547",
        "AWQ and W4A8: no valid GEMM config",
        "reported",
        "an A100 and groups of 64 or 256 are refused; else plan notes it, the build passes it on",
        (
            PLAN,
            unit(
                "tensorrt/test_engine.py",
                "test_a_weight_without_a_kernel_is_passed_on_once_for_its_shape",
            ),
        ),
    ),
    Row(
        8,
        "llm#1636, llm#811, modelopt#23",
        "AWQ shapes that are not divisible by group size times ranks",
        "prevented",
        "plan refuses them, exactly where upstream pads",
        (
            PLAN,
            unit(
                "tensorrt/test_double.py",
                "test_shapes_are_refused_exactly_where_the_double_pads_them",
            ),
        ),
    ),
    Row(9, "llm#1084, llm#1104", "W4A8 on an A100", "prevented", "plan refuses it", (PLAN,)),
    Row(10, "llm#1235, llm#396, llm#143", "V100 and T4", "prevented", "plan refuses them", (PLAN,)),
    Row(
        11,
        "builder.py: SmoothQuant is not supported on SM>=100",
        "INT8 SmoothQuant on a B200",
        "prevented",
        "plan refuses it",
        (PLAN,),
    ),
    Row(
        12,
        "llm#2717, llm#2702, llm#6539",
        "a prompt longer than max_num_tokens without chunked context",
        "reported",
        "plan warns, whoever switched it off, and shows that it is off",
        (PLAN, unit("tensorrt/test_preview.py", "test_the_plan_says_what_the_server_switches_off")),
    ),
    Row(
        13,
        "backend#271",
        "KV cache reuse needs paged context attention",
        "prevented",
        "it is switched off with the reason where the engine lacks it",
        (unit("tensorrt/test_pains.py", "test_09_kv_reuse_follows_the_engine_and_says_so"),),
    ),
    Row(
        14,
        "llm#2166",
        "reuse with an INT8 KV cache",
        "prevented",
        "plan says that there is none; it is off in config.pbtxt",
        (PLAN, unit("tensorrt/test_pains.py", "test_08_an_int8_kv_cache_is_off_and_explained")),
    ),
    Row(15, "llm#254, llm#1303", "garbage with INT8 KV", "reported", "plan warns", (PLAN,)),
    Row(
        16,
        "backend#624",
        "garbage beyond 4096 tokens of Llama 3.1",
        "prevented",
        "its rope scaling is in the checkpoint; more than its positions are refused",
        (PLAN, f"{HERE}::test_the_rope_of_llama_3_1_is_in_the_checkpoint"),
    ),
    Row(
        17,
        "llm#2002, llm#2014",
        "SmoothQuant with max_num_tokens 49152",
        "reported",
        "plan warns of steps above 16384",
        (PLAN,),
    ),
    Row(
        18,
        "backend#33, llm#1047, llm#1992, llm#1796, llm#2021",
        "mpiSize is not tp * pp",
        "prevented",
        "the launcher starts as many processes as the engine has ranks",
        (
            unit("test_launch.py", "test_leader_layout"),
            f"{TEXTS}::test_serving_names_cause_and_remedy",
        ),
    ),
    Row(
        19,
        "backend#553, backend#712, llm#3654",
        "orte_init fails in the Python models under mpirun",
        "prevented",
        "none of them imports tensorrt_llm or MPI",
        (f"{HERE}::test_no_model_imports_what_starts_mpi",),
    ),
    Row(
        20,
        "backend#54",
        "NCCL errors with --net host",
        "prevented",
        "the container has a network of its own",
        (f"{HERE}::test_the_container_has_its_own_network",),
    ),
    Row(
        21,
        "backend#46, backend#103, backend#170, llm#213, llm#408, llm#1670",
        "NCCL: internal error, shared memory, out of memory",
        "reported",
        "shared memory and memlock are set; the causes of the rest are known",
        (f"{TEXTS}::test_serving_names_cause_and_remedy",),
    ),
    Row(
        22,
        "llm#3112",
        "MPI_Init fails on hosts with InfiniBand",
        "reported",
        "the cause names OMPI_MCA_pml, which is handed on to the container",
        (unit("test_handed_on.py", "test_what_the_libraries_read_is_handed_on"),),
    ),
    Row(
        23,
        "backend#375, llm#1231",
        "Expected length != real length",
        "prevented",
        "serve refuses an engine of another TensorRT-LLM",
        (
            unit("test_launch.py", "test_in_place_with_another_toolchain"),
            f"{TEXTS}::test_serving_names_cause_and_remedy",
        ),
    ),
    Row(
        24,
        "llm#1695",
        "another TensorRT in the engine than in Triton",
        "prevented",
        "the image is chosen by the engine's TensorRT",
        (unit("test_launch.py", "test_the_image_is_one_with_the_engines_tensorrt"),),
    ),
    Row(
        25,
        "backend#662, server#7950, backend#66",
        "undefined symbol; backend library not found",
        "reported",
        "cause and remedy are named",
        (f"{TEXTS}::test_serving_names_cause_and_remedy",),
    ),
    Row(
        26,
        "llm#1803",
        "a json key is missing in the engine's configuration",
        "reported",
        "the key is named before a server starts",
        (unit("triton/test_tensorrtllm.py", "test_configurations_that_are_not_an_engines"),),
    ),
    Row(
        27,
        "server#2600, server#4030",
        "a container without root cannot read the models",
        "prevented",
        "unreadable files are named before the start; SELinux is in the table of causes",
        (
            unit("test_launch.py", "test_a_repository_that_the_containers_user_cannot_read"),
            f"{TEXTS}::test_serving_names_cause_and_remedy",
        ),
    ),
    Row(
        28,
        "backend#275, llm#2813",
        "MPI_ABORT with several GPUs: every rank takes the ports",
        "prevented",
        "ranks other than the first serve nothing",
        (unit("test_launch.py", "test_leader_layout"),),
    ),
    Row(
        29,
        "server#7368, backend#146",
        "Triton crashes after many cancellations",
        "let through",
        "upstream's; compose restarts the container",
    ),
    Row(
        30,
        "backend#114, backend#149, llm#340",
        "a server that freezes under load",
        "reported",
        "clients give up after a time without tokens",
        (
            unit(
                "client/test_client.py",
                "test_silence_is_an_error_after_the_stall_limit_though_the_deadline_is_far",
            ),
        ),
    ),
    Row(
        31,
        "llm#713, llm#962, llm#301",
        "a vocabulary that AWQ or several ranks pad",
        "prevented",
        "the head is not quantized, and padding is not taken over",
        ("tests/integration/test_quantize.py::test_awq_does_not_pad_the_vocabulary",),
    ),
    Row(
        32,
        "llm#5650",
        "Qwen3: a weight of 6144 rows where 3840 are expected",
        "prevented",
        "the size of a head is in the checkpoint",
        (f"{HERE}::test_the_heads_of_qwen3_have_their_own_size",),
    ),
    Row(
        33,
        "llm#4641, backend#141",
        "a prompt beyond max_seq_len",
        "prevented",
        "preprocessing refuses it",
        (
            unit(
                "model_repo/test_text_models.py",
                "test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized",
            ),
        ),
    ),
    Row(
        34,
        "backend#128, backend#57, backend#82, llm#228",
        "stop words that are spelled with other tokens",
        "prevented",
        "tensorrt_llm_bls compares text; the ensemble does not, by design",
        (
            unit(
                "model_repo/test_stop_words.py",
                "test_any_split_gives_what_reading_letter_by_letter_gives",
            ),
        ),
    ),
    Row(
        35,
        "llm#829",
        "the format of word lists",
        "prevented",
        "clients send texts; preprocessing makes the lists",
        (
            unit(
                "model_repo/test_text_models.py", "test_word_lists_are_padded_as_upstream_pads_them"
            ),
        ),
    ),
    Row(
        36,
        "backend#634",
        "sequence_length does not show the end",
        "prevented",
        "tensorrt_llm_bls counts output_ids",
        (unit("model_repo/test_text_answer.py", "test_answers_count_the_tokens_they_are_made_of"),),
    ),
    Row(
        37,
        "llm#496",
        "SmoothQuant with scales per channel alone is poor",
        "reported",
        "the gate measures it; plan warns where there is none",
        (PLAN,),
    ),
    Row(
        38,
        "llm#10735",
        "a model that is quantized already",
        "prevented",
        "plan takes over what it can, and refuses the rest by the method that config.json names",
        (PLAN,),
    ),
    Row(
        39,
        "llm#14561",
        "the PyTorch backend rejects W4A16_AWQ of Qwen3.5",
        "let through",
        "another backend than the one built for here; the way out names what it takes",
        (f"{HERE}::test_the_way_out_is_named",),
    ),
    Row(
        40,
        "NVIDIA/nvidia-docker#543, MauriceNino/dashdot#1226",
        "a driver too old for the CUDA 13 image",
        "reported",
        "building and serving name the driver's branch",
        (
            f"{TEXTS}::test_serving_names_cause_and_remedy",
            f"{TEXTS}::test_building_names_cause_and_remedy",
        ),
    ),
)


def test_the_table_is_whole() -> None:
    assert [row.number for row in ROWS] == list(range(1, 41))
    for row in ROWS:
        # One was met in upstream's code alone.
        threads = r"[\w/-]+#\d+(, [\w/-]+#\d+)*|builder\.py: .*"
        assert re.fullmatch(threads, row.threads), row.number
        assert row.proofs or row.answer == "let through", row.number
    asked = {row.number for row in ROWS if PLAN in row.proofs}
    assert asked == {question.row for question in QUESTIONS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_each_answer_has_its_proof(row: Row) -> None:
    for proof in row.proofs:
        path, _, name = proof.partition("::")
        assert name in functions(path), proof


@cache
def functions(path: str) -> frozenset[str]:
    """The names of a file's functions; none where there is no file."""
    file = PROJECT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


class Question(NamedTuple):
    """A recipe, a model, and what ``plan`` has to say; ``error`` is a refusal."""

    row: int
    severity: str
    says: str
    overrides: tuple[str, ...]
    of: str = "llama-3.1-8b"
    changes: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


FP8_KV = ("quantize.format=fp8", "quantize.kv_cache=fp8")
SQ, W4A8 = "quantize.format=int8_sq", "quantize.format=w4a8_awq"
QUESTIONS = (
    Question(5, "note", "reused between prompts is reported to give wrong text", FP8_KV),
    Question(6, "warning", "reported to break Qwen2.5", FP8_KV, "qwen2.5-7b"),
    Question(7, "note", "may find no kernel for a weight of W4A8_AWQ", (W4A8,), "qwen2.5-7b"),
    Question(7, "error", "W4A8_AWQ does not run on A100", (W4A8, "compile.gpu=A100-80GB")),
    Question(7, "error", "groups of 128, not group_size 64", (W4A8, "quantize.group_size=64")),
    Question(7, "error", "256 is not one of 64 or 128", ("quantize.group_size=256",)),
    Question(
        8,
        "error",
        "11008 of mlp.fc is not a multiple of 512",
        ("compile.tensor_parallel=4",),
        changes={"intermediate_size": 11008},
    ),
    Question(9, "error", "needs SM 89 (Ada) or later", (W4A8, "compile.gpu=A100-40GB")),
    Question(10, "error", "need SM 80 (Ampere) or later; V100", ("compile.gpu=V100",)),
    Question(10, "error", "need SM 80 (Ampere) or later; T4", ("compile.gpu=T4",)),
    Question(11, "error", "W8A8_SQ_PER_CHANNEL is refused on B200", (SQ, "compile.gpu=B200")),
    Question(
        12,
        "warning",
        "prompts of more than 2048 tokens are refused",
        ("serve.enable_chunked_context=false", "compile.max_num_tokens=2048"),
    ),
    Question(
        12,
        "warning",
        "prompts of more than 2048 tokens are refused",
        (
            "compile.tensorrt.plugin_config={use_paged_context_fmha: false}",
            "compile.max_num_tokens=2048",
        ),
    ),
    Question(14, "warning", "no KV cache reuse", ("quantize.kv_cache=int8",)),
    Question(15, "warning", "an INT8 KV cache costs quality", ("quantize.kv_cache=int8",)),
    Question(16, "error", "the model's 131072 positions", ("compile.max_seq_len=131073",)),
    Question(17, "warning", "49152 is above 16384", (SQ, "compile.max_num_tokens=49152")),
    Question(37, "warning", "nothing measures what", (SQ, "evaluate=null")),
    Question(
        38,
        "error",
        "the model is quantized already, by hqq",
        (),
        changes={"quantization_config": {"quant_method": "hqq"}},
    ),
)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: str(question.row))
def test_the_plan_answers(question: Question, tmp_path: Path) -> None:
    if question.severity != "error":
        facts = model(question.of, **question.changes)
        said = found(preview(tmp_path, *question.overrides, of=facts), question.says)
        assert said.severity == question.severity
        assert said.why
        assert said.remedy
        return
    config = json.loads((DATA / f"{question.of}.json").read_text()) | question.changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PipelineError, match=re.escape(question.says)) as caught:
        check_model(recipe(tmp_path, *question.overrides), tmp_path)
    # Of the recipe, or what cannot be supported: nothing has run.
    assert caught.value.exit_code in (2, 3)


def test_the_rope_of_llama_3_1_is_in_the_checkpoint(tmp_path: Path) -> None:
    """backend#624 lost the scaling, and with it all but the first positions."""
    written = checkpoint_config(model("llama-3.1-8b"), recipe(tmp_path), "0.37")
    assert written["rotary_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert written["position_embedding_type"] == "rope_gpt_neox"


def test_the_heads_of_qwen3_have_their_own_size(tmp_path: Path) -> None:
    """Qwen3-4B: (32 + 2 x 8) heads of 128 are 6144 rows; of 2560 / 32 they would be 3840."""
    sizes = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8}
    facts = model("qwen3-8b", **sizes, head_dim=128)
    written = checkpoint_config(facts, recipe(tmp_path, "quantize.format=float16"), "0.37")
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded = upstream.read_config(tmp_path, lambda _level, _text: None)
    shapes = upstream.parameters(loaded, 0)
    assert shapes["transformer.layers.0.attention.qkv.weight"] == (6144, 2560)


def test_no_model_imports_what_starts_mpi() -> None:
    """Importing it calls MPI_Init, for which a Python stub of Triton is no rank.

    The front of the LLM API opens it, as NVIDIA's own model does, and is in no engine's repository.
    """
    models = PROJECT / "model_repo"
    files = [path for path in models.rglob("*.py") if path != models / "llmapi" / "opening.py"]
    imported = {
        name.partition(".")[0]
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "numpy" in imported
    assert imported.isdisjoint({"tensorrt_llm", "mpi4py", "torch", "tensorrt"})


def test_the_container_has_its_own_network(tmp_path: Path) -> None:
    repository = _bound(write_repository(tmp_path / "r"))
    command = docker_launch(repository, Endpoints("127.0.0.1")).text
    assert "--publish" in command
    assert not re.search(r"--net(work)?[ =]", command)
    assert not re.search(r"--ipc[ =]host", command)


def test_the_way_out_is_named() -> None:
    assert "LLM-API" in WAY_OUT
    assert "Edge-LLM" in WAY_OUT
