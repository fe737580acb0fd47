"""The C++ backend's configuration: golden files, and a review of each parameter with its reason."""

from __future__ import annotations

import os
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError, UnsupportedError
from pipeline.recipe.schema import Recipe
from pipeline.recipe.tensorrt import LookaheadSection
from pipeline.triton.contract import MODELS
from tests.unit.triton import tensorrt
from tests.unit.triton.by_target import engine_model, render_configs
from tests.unit.triton.demo import ENGINE as CPU_ENGINE
from tests.unit.triton.tensorrt import GOLDEN, LLAMA_8B, LLAMA_70B, NAMES, QWEN_7B

# Parameter, its value for all three engines (None for absent), and why. The keys are those of
# NVIDIA's config.pbtxt for TensorRT-LLM 1.2, and two that it lacks.
REVIEW: list[tuple[str, str | None, str]] = [
    ("max_beam_width", "1", "what the engines were built with; the recipe allows no more"),
    ("FORCE_CPU_ONLY_INPUT_TENSORS", "no", "upstream's; the backend takes tensors where they are"),
    ("gpt_model_type", "inflight_fused_batching", "anything else is static or refused"),
    ("gpt_model_path", "/models/tensorrt_llm/1/engine", "absolute: relative would be the CWD's"),
    ("encoder_model_path", None, "there is no encoder; absent and empty mean the same"),
    ("max_tokens_in_paged_kv_cache", None, "the free-memory fraction sizes the cache"),
    ("max_attention_window_size", None, "full attention; no model here slides"),
    ("sink_token_length", None, "belongs to a sliding window"),
    ("batch_scheduler_policy", "guaranteed_no_evict", "the recipe's; a typo would be silent"),
    ("kv_cache_free_gpu_mem_fraction", "0.9", "the recipe's: of the memory free after loading"),
    ("cross_kv_cache_fraction", None, "an error for decoder-only engines"),
    ("kv_cache_host_memory_bytes", "0", "no offloading to the host"),
    ("kv_cache_onboard_blocks", "true", "internal; the default"),
    ("enable_trt_overlap", "false", "experimental with CUDA graphs, which are off"),
    ("exclude_input_in_output", "true", "the default would return the prompt as well"),
    ("cancellation_check_period_ms", "100", "the recipe's"),
    ("stats_check_period_ms", "100", "how fresh the metrics are; the default"),
    ("iter_stats_max_iterations", "1000", "the default; 0 would empty the metrics"),
    ("request_stats_max_iterations", "0", "nothing reads them"),
    ("enable_kv_cache_reuse", "true", "all three engines have paged context attention"),
    # samplingTopKKernels.cu takes the logarithm of the sum over the tokens that top_k leaves off
    # every score but not off their sum: a greedy text would score 0 everywhere.
    ("normalize_log_probs", "false", "log p over the whole vocabulary, as OpenAI's"),
    ("enable_chunked_context", "true", "all three engines have paged context attention"),
    ("gpu_device_ids", None, "the launcher decides which GPUs a server sees"),
    ("participant_ids", None, "only for an orchestrator that does not spawn its workers"),
    ("num_nodes", "1", "the launcher starts one machine"),
    ("lora_cache_optimal_adapter_size", "8", "the default; the engines have no LoRA plugin"),
    ("lora_cache_max_adapter_size", "64", "the default"),
    ("lora_cache_gpu_memory_fraction", "0.05", "the default"),
    ("lora_cache_host_memory_bytes", str(2**30), "the default"),
    ("lora_prefetch_dir", None, "there are no adapters"),
    ("decoding_mode", "top_k_top_p", "beam width 1"),
    (
        "executor_worker_path",
        "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        "where the container has it; used by the orchestrator",
    ),
    ("lookahead_window_size", None, "decoding_mode is not lookahead"),
    ("lookahead_ngram_size", None, "decoding_mode is not lookahead"),
    ("lookahead_verification_set_size", None, "decoding_mode is not lookahead"),
    ("medusa_choices", None, "decoding_mode is not medusa"),
    ("eagle_choices", None, "decoding_mode is not eagle"),
    ("gpu_weights_percent", "1.0", "less only for weight-streaming engines"),
    ("enable_context_fmha_fp32_acc", "false", "the default"),
    ("multi_block_mode", "true", "the default"),
    ("cuda_graph_mode", "false", "the default"),
    ("cuda_graph_cache_size", "0", "CUDA graphs are off"),
    ("speculative_decoding_fast_logits", "false", "there is no draft model"),
    ("tokenizer_dir", "/models/preprocessing/1/tokenizer", "must be present; ignored in C++"),
    ("guided_decoding_backend", "", "must be present; empty is off"),
    ("xgrammar_tokenizer_info_path", "", "must be present; empty is off"),
    ("recv_poll_period_ms", "0", "the default: waiting ranks poll, which answers fastest"),
    ("max_queue_size", "256", "the recipe's; the backend itself reads the queue policy"),
]
# What TensorRT-LLM 1.2's own file has, by name, read from it independently of this project.
UPSTREAM = """
max_beam_width FORCE_CPU_ONLY_INPUT_TENSORS gpt_model_type gpt_model_path encoder_model_path
max_tokens_in_paged_kv_cache max_attention_window_size sink_token_length batch_scheduler_policy
kv_cache_free_gpu_mem_fraction cross_kv_cache_fraction kv_cache_host_memory_bytes
kv_cache_onboard_blocks enable_trt_overlap exclude_input_in_output cancellation_check_period_ms
stats_check_period_ms iter_stats_max_iterations request_stats_max_iterations enable_kv_cache_reuse
normalize_log_probs enable_chunked_context gpu_device_ids participant_ids num_nodes
lora_cache_optimal_adapter_size lora_cache_max_adapter_size lora_cache_gpu_memory_fraction
lora_cache_host_memory_bytes lora_prefetch_dir decoding_mode executor_worker_path
lookahead_window_size lookahead_ngram_size lookahead_verification_set_size medusa_choices
eagle_choices gpu_weights_percent enable_context_fmha_fp32_acc multi_block_mode cuda_graph_mode
cuda_graph_cache_size speculative_decoding_fast_logits tokenizer_dir guided_decoding_backend
xgrammar_tokenizer_info_path
"""


def parse(text: str) -> proto.ModelConfig:
    return text_format.Parse(text, proto.ModelConfig())


def rendered(name: str = LLAMA_8B, **serve: object) -> proto.ModelConfig:
    configs = render_configs(tensorrt.recipe(name, **serve), tensorrt.engine_config(name))
    return parse(configs["tensorrt_llm"])


def values(config: proto.ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_golden_file(name: str) -> None:
    text = render_configs(tensorrt.recipe(name), tensorrt.engine_config(name))["tensorrt_llm"]
    golden = GOLDEN / name / "config.pbtxt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "UPDATE_GOLDEN=1 writes the files again"
    assert "${" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_was_reviewed(name: str) -> None:
    written = values(parse((GOLDEN / name / "config.pbtxt").read_text()))
    expected = {key: value for key, value, _why in REVIEW if value is not None}
    assert written == expected


def test_the_review_covers_upstreams_file() -> None:
    reviewed = {key for key, _value, _why in REVIEW}
    assert set(UPSTREAM.split()) <= reviewed
    assert reviewed - set(UPSTREAM.split()) == {"recv_poll_period_ms", "max_queue_size"}


def test_empty_parameters_are_present() -> None:
    # Absent, the backend does not load: it reads the three without a default.
    text = (GOLDEN / LLAMA_8B / "config.pbtxt").read_text()
    assert 'key: "guided_decoding_backend"' in text
    assert 'key: "xgrammar_tokenizer_info_path"' in text


@pytest.mark.parametrize(("name", "batch"), [(LLAMA_8B, 64), (QWEN_7B, 64), (LLAMA_70B, 128)])
def test_what_surrounds_the_parameters(name: str, batch: int) -> None:
    config = parse((GOLDEN / name / "config.pbtxt").read_text())
    assert config.backend == "tensorrtllm"
    assert config.max_batch_size == batch
    assert config.model_transaction_policy.decoupled
    assert list(config.dynamic_batching.preferred_batch_size) == [batch]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (1, proto.ModelInstanceGroup.KIND_CPU)
    ]
    kinds = {t.name: proto.DataType.Name(t.data_type) for t in (*config.input, *config.output)}
    assert kinds["prompt_embedding_table"] == "TYPE_FP16"
    assert kinds["encoder_input_features"] == "TYPE_FP16"
    assert kinds["context_logits"] == kinds["generation_logits"] == "TYPE_FP32"


def test_the_other_four_models_are_those_of_the_cpu_target() -> None:
    recipe = tensorrt.recipe(LLAMA_8B)
    on_gpu = render_configs(recipe, tensorrt.engine_config(LLAMA_8B))
    compiled = recipe.compile.model_copy(update={"target": "openvino"})
    cpu_engine = {**CPU_ENGINE, "build_config": {"max_batch_size": 64}}
    on_cpu = render_configs(recipe.model_copy(update={"compile": compiled}), cpu_engine)
    # The CPU's engine hands tickets to its ensemble (model_repo/common/receipts.py).
    told_of = {"ensemble", "postprocessing"} & set(MODELS)
    for model in told_of:
        lines = iter(on_cpu[model].splitlines())
        assert "ticket" not in on_gpu[model].lower()
        assert all(line in lines for line in on_gpu[model].splitlines()), model
    for model in set(MODELS) - told_of:
        assert (on_gpu[model] == on_cpu[model]) is (model != "tensorrt_llm"), model


def test_the_serve_section_reaches_the_backend() -> None:
    config = rendered(
        max_queue_size=7,
        max_tokens_in_paged_kv_cache=16384,
        kv_cache_free_gpu_mem_fraction=0.5,
        enable_kv_cache_reuse=False,
        enable_chunked_context=False,
        exclude_input_in_output=False,
        batch_scheduler_policy="max_utilization",
        cancellation_check_period_ms=20,
    )
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert {
        "max_queue_size": "7",
        "max_tokens_in_paged_kv_cache": "16384",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "enable_kv_cache_reuse": "false",
        "enable_chunked_context": "false",
        "exclude_input_in_output": "false",
        "batch_scheduler_policy": "max_utilization",
        "cancellation_check_period_ms": "20",
    }.items() <= values(config).items()


def _changed(**changes: Any) -> dict[str, Any]:
    """An engine's config.json with values replaced wherever their names occur."""

    def walk(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: changes.get(key, walk(value)) for key, value in node.items()}

    return walk(tensorrt.engine_config())


@pytest.mark.parametrize(
    ("changes", "off", "reason"),
    [
        # What trtllm-build leaves behind when it drops paged context attention by itself.
        (
            {"use_paged_context_fmha": False},
            {"enable_kv_cache_reuse", "enable_chunked_context"},
            "built without use_paged_context_fmha",
        ),
        (
            {"kv_cache_quant_algo": "INT8"},
            {"enable_kv_cache_reuse", "enable_chunked_context"},
            "an INT8 KV cache has no paged context attention",
        ),
        ({"gather_context_logits": True}, {"enable_kv_cache_reuse"}, "gathers context logits"),
        ({}, set(), ""),
    ],
)
def test_what_the_engine_cannot_do_is_off_with_the_reason(
    changes: dict[str, Any], off: set[str], reason: str
) -> None:
    model = engine_model(tensorrt.recipe(), _changed(**changes))
    for name in ("enable_kv_cache_reuse", "enable_chunked_context"):
        assert model.parameters[name] == ("false" if name in off else "true")
    assert set(model.switched_off) == off
    assert all(reason in why for why in model.switched_off.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.1.0"}, r"built with TensorRT-LLM 1\.1\.0, not 1\.2\.1"),
        ({"world_size": 2}, r"world_size is 2, but tp_size 1 x pp_size 1 is 1"),
        ({"world_size": 16, "tp_size": 16}, r"16 ranks need more than one machine of 8 GPUs"),
        ({"gpt_attention_plugin": None}, r"in-flight batching needs gpt_attention_plugin,"),
        ({"remove_input_padding": False}, r"in-flight batching needs remove_input_padding,"),
        ({"kv_cache_type": "CONTINUOUS"}, r"in-flight batching needs kv_cache_type PAGED,"),
        ({"logits_dtype": "float16"}, r"Its logits are float16, .* TYPE_FP32"),
        ({"speculative_decoding_mode": 4}, r"built for speculative decoding of kind 4"),
        (
            {"speculative_decoding_mode": 8, "max_draft_len": 15},
            r"guesses 0 tokens by the recipe, and the engine was built for 15",
        ),
        (
            {"speculative_decoding_mode": 2, "max_draft_len": 5},
            r"guesses 0 tokens by the recipe, and the engine was built for 5",
        ),
        ({"max_beam_width": 0}, r"max_beam_width 1 is more than the 0 it was built for"),
    ],
)
def test_engines_that_the_backend_cannot_serve(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RepositoryError, match=reason):
        render_configs(tensorrt.recipe(), _changed(**changes))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"version": "1.2.1", "build_config": {"max_batch_size": 4}}, "KeyError: 'pretrained_c"),
        (_changed(plugin_config=None), "TypeError"),
        (_changed(tp_size="two"), "ValueError"),
    ],
)
def test_configurations_that_are_not_an_engines(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(RepositoryError, match=rf"not that of a TensorRT-LLM engine.*{reason}"):
        render_configs(tensorrt.recipe(), config)


def test_a_kv_cache_that_holds_no_sequence_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"cache of 4096 tokens does not hold one sequence.* 8192 tokens"
    ):
        rendered(max_tokens_in_paged_kv_cache=4096)


def test_a_backend_that_answers_once() -> None:
    texts = render_configs(tensorrt.recipe(decoupled=False), tensorrt.engine_config())
    engine = parse(texts["tensorrt_llm"])
    assert engine.backend == "tensorrtllm"
    assert not any(parse(text).model_transaction_policy.decoupled for text in texts.values())


def test_guided_decoding_has_a_file_of_the_tokenizer() -> None:
    # getGuidedDecodingConfigFromParams: with one of the two empty it is off without a word.
    found = values(rendered(guided_decoding="xgrammar"))
    assert found["guided_decoding_backend"] == "xgrammar"
    path = "/models/tensorrt_llm/1/xgrammar_tokenizer_info.json"
    assert found["xgrammar_tokenizer_info_path"] == path
    model = engine_model(tensorrt.recipe(guided_decoding="xgrammar"), tensorrt.engine_config())
    assert list(model.files) == ["xgrammar_tokenizer_info.json"]
    assert not engine_model(tensorrt.recipe(), tensorrt.engine_config()).files


def test_features_of_the_runtime_reach_the_backend() -> None:
    found = values(rendered(kv_cache_host_memory=1.5, cuda_graphs=12))
    assert found["kv_cache_host_memory_bytes"] == "1610612736"
    assert found["cuda_graph_mode"] == "true"
    assert found["cuda_graph_cache_size"] == "12"


def test_an_engine_without_reuse_keeps_nothing_on_the_host() -> None:
    built = engine_model(
        tensorrt.recipe(kv_cache_host_memory=1.5), _changed(use_paged_context_fmha=False)
    )
    assert built.parameters["kv_cache_host_memory_bytes"] == "0"
    assert "built without use_paged" in built.switched_off["kv_cache_host_memory"]


def _lookahead() -> Recipe:
    """The first golden recipe, with lookahead decoding of (4, 3, 4)."""
    plain = tensorrt.recipe()
    options = plain.compile.tensorrt.model_copy(update={"lookahead": LookaheadSection()})
    section = plain.compile.model_copy(update={"tensorrt": options})
    return plain.model_copy(update={"compile": section})


def test_lookahead_decoding_has_its_sizes() -> None:
    engine = _changed(speculative_decoding_mode=8, max_draft_len=15)
    texts = render_configs(_lookahead(), engine)
    sizes = {
        "decoding_mode": "lookahead",
        "lookahead_window_size": "4",
        "lookahead_ngram_size": "3",
        "lookahead_verification_set_size": "4",
    }
    assert sizes.items() <= values(parse(texts["tensorrt_llm"])).items()
    assert values(parse(texts["tensorrt_llm_bls"]))["decodes_greedily"] == "true"


@pytest.mark.parametrize("changes", [{}, {"speculative_decoding_mode": 8, "max_draft_len": 14}])
def test_lookahead_decoding_needs_its_engine(changes: dict[str, Any]) -> None:
    with pytest.raises(RepositoryError, match=r"guesses 15 tokens by the recipe"):
        render_configs(_lookahead(), _changed(**changes))
