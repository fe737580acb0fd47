"""The contract against facts recorded from upstream's config.pbtxt files (TensorRT-LLM 1.2)."""

from __future__ import annotations

import pytest

from pipeline.triton.contract import CHECKED, MODELS, Tensor, scoring_prompts

# (model, inputs, outputs); preprocessing without 4 vision inputs and 9 vision outputs,
# and with what it checks beyond upstream's; tensorrt_llm_bls without 4 vision inputs, ensemble
# without its duplicate output. Each has add_special_tokens besides.
COUNTS = [
    ("preprocessing", 14 - 4 + len(CHECKED) + 1, 20 - 9),
    ("tensorrt_llm", 62, 21),
    ("postprocessing", 2, 1),
    ("tensorrt_llm_bls", 42 - 4 + 1, 19),
    ("ensemble", 36 + 1, 20 - 1),
]
REQUIRED = {
    "preprocessing": {"QUERY", "REQUEST_OUTPUT_LEN"},
    "tensorrt_llm": {"input_lengths", "request_output_len"},
    "postprocessing": {"TOKENS_BATCH", "SEQUENCE_LENGTH"},
    "tensorrt_llm_bls": {"text_input", "max_tokens"},
    "ensemble": {"text_input", "max_tokens"},
}
# Required by upstream; declared optional, so that preprocessing can refuse a request without them.
SAID_OPTIONAL = ("preprocessing", "ensemble")
SAMPLES = [
    ("tensorrt_llm", "seed", "TYPE_UINT64", (1,), ()),
    ("tensorrt_llm", "stop_words_list", "TYPE_INT32", (2, -1), None),
    ("tensorrt_llm", "runtime_top_p", "TYPE_FP32", (1,), ()),
    ("tensorrt_llm", "prompt_table_extra_ids", "TYPE_UINT64", (-1,), None),
    ("tensorrt_llm", "guided_decoding_guide", "TYPE_STRING", (1,), None),
    ("tensorrt_llm_bls", "return_log_probs", "TYPE_BOOL", (1,), ()),
    ("tensorrt_llm_bls", "stream", "TYPE_BOOL", (1,), None),
    ("ensemble", "return_log_probs", "TYPE_BOOL", (1,), None),
    ("ensemble", "lora_config", "TYPE_INT32", (-1, 3), None),
    ("preprocessing", "EMBEDDING_BIAS_WEIGHTS", "TYPE_FP32", (-1,), None),
]


@pytest.mark.parametrize(("model", "inputs", "outputs"), COUNTS)
def test_number_of_tensors(model: str, inputs: int, outputs: int) -> None:
    assert len(MODELS[model].inputs) == inputs
    assert len(MODELS[model].outputs) == outputs


@pytest.mark.parametrize("model", REQUIRED)
def test_required_inputs(model: str) -> None:
    declared = {t.name for t in MODELS[model].inputs if not t.optional}
    assert declared == (set() if model in SAID_OPTIONAL else REQUIRED[model])
    assert {t.name for t in MODELS[model].inputs} >= REQUIRED[model]


@pytest.mark.parametrize(("model", "name", "data_type", "dims", "reshape"), SAMPLES)
def test_tensor(
    model: str, name: str, data_type: str, dims: tuple[int, ...], reshape: tuple[int, ...] | None
) -> None:
    tensor: Tensor = next(t for t in MODELS[model].inputs if t.name == name)
    assert (tensor.data_type, tensor.dims, tensor.reshape) == (data_type, dims, reshape)


def test_what_preprocessing_checks_is_what_the_ensemble_takes() -> None:
    checks = {t.name: t for t in MODELS["preprocessing"].inputs}
    for name in CHECKED:
        taken = next(t for t in MODELS["ensemble"].inputs if t.name == name)
        checked = checks[name.upper()]
        assert checked.optional
        assert (checked.data_type, checked.dims) == (taken.data_type, taken.dims)


def test_only_the_models_that_stream_are_decoupled() -> None:
    assert {name for name, m in MODELS.items() if m.decoupled} == {
        "tensorrt_llm",
        "tensorrt_llm_bls",
    }


def test_scores_of_a_prompt_are_optional_and_beside_all_that_upstream_has() -> None:
    """A client of upstream's sees no difference."""
    upstream, ours = MODELS["tensorrt_llm"], scoring_prompts(MODELS["tensorrt_llm"])
    assert ours.inputs[: len(upstream.inputs)] == upstream.inputs
    assert ours.outputs[: len(upstream.outputs)] == upstream.outputs
    (asks,), (scores,) = ours.inputs[len(upstream.inputs) :], ours.outputs[len(upstream.outputs) :]
    assert (asks.name, asks.optional, asks.data_type) == (
        "return_prompt_log_probs",
        True,
        "TYPE_BOOL",
    )
    assert (scores.name, scores.dims, scores.data_type) == ("prompt_log_probs", (-1,), "TYPE_FP32")
