from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.preprocessing.prompt import word_list as write_word_list
from model_repo.tensorrt_llm.answer import Answer
from model_repo.tensorrt_llm.request import Guide, RequestError
from model_repo.tensorrt_llm.settings import EngineSettings
from model_repo.tensorrt_llm.tensors import (
    Inputs,
    check_outputs,
    check_policy,
    is_stop,
    read_answer,
    read_request,
    word_list,
)
from pipeline.triton.contract import MODELS

SETTINGS = EngineSettings(
    engine_dir=Path("engine"),
    vocab_size=100,
    max_batch_size=2,
    max_input_len=64,
    max_seq_len=96,
    num_kv_blocks=6,
    max_num_batched_tokens=64,
)


def ints(*values: int) -> np.ndarray:
    return np.array([values], np.int32)


def inputs(**more: np.ndarray) -> Inputs:
    return Inputs(
        {
            "input_ids": ints(5, 6, 8),
            "input_lengths": ints(3),
            "request_output_len": np.array([4], np.int32),  # a scalar has only the batch dimension
            **more,
        }
    )


def test_the_prompt_is_all_of_its_ids() -> None:
    request = read_request(inputs(), "client", SETTINGS)
    assert request.prompt.tolist() == [5, 6, 8]
    assert request.prompt.dtype == np.int64
    assert (request.max_new_tokens, request.client_id, request.log_probs) == (4, "client", False)


@pytest.mark.parametrize(
    ("tensors", "end_id", "stop_words"),
    [
        # llmRequest.h: no end id is -1, which no token is.
        ({}, None, ()),
        ({"end_id": ints(-1)}, None, ()),
        ({"end_id": ints(2)}, 2, ()),
        ({"end_id": ints(2), "stop_words_list": np.array([[[7], [1]]])}, 2, ((7,),)),
        (
            {"end_id": ints(-1), "stop_words_list": np.array([[[7, 5, 6], [1, 3, -1]]])},
            None,
            ((7,), (5, 6)),
        ),
    ],
)
def test_what_ends_a_text(
    tensors: dict[str, np.ndarray], end_id: int | None, stop_words: tuple[tuple[int, ...], ...]
) -> None:
    request = read_request(inputs(**tensors), "", SETTINGS)
    assert request.end_id == end_id
    assert request.stop_words == stop_words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ()),
        ([[5]], ((5,),)),
        ([[5, 6], [], [7]], ((5, 6), (7,))),
        ([[1, 2, 3], [4], [5, 6]], ((1, 2, 3), (4,), (5, 6))),
    ],
)
def test_word_lists_read_back_as_they_were_written(
    words: list[list[int]], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert word_list(write_word_list([words]), "stop_words_list") == expected


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 2)),
        np.array([[[5, 6], [2, 1]]]),
        np.array([[[5, 6], [3, -1]]]),
        # utils.cc, convertWordList: "Sparse list must not have additional -1s".
        np.array([[[5, 6], [-1, 2]]]),
    ],
)
def test_a_damaged_word_list_is_refused(array: np.ndarray) -> None:
    with pytest.raises(RequestError, match="stop_words_list"):
        word_list(array.astype(np.int32), "stop_words_list")


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("beam_width", ints(2), "beam_width 2: the CPU engine has no beam search"),
        ("beam_width", ints(0), "beam_width 0: the CPU engine has no beam search"),
        ("num_return_sequences", ints(-3), "num_return_sequences -3: .* no several sequences"),
        ("num_return_sequences", ints(1), "takes the number for no_repeat_ngram_size"),
        ("presence_penalty", np.array([0.5], np.float32), "presence_penalty 0.5: .*the prompt's"),
        ("frequency_penalty", np.array([-2.0], np.float32), "use repetition_penalty"),
        ("decoder_input_lengths", ints(2), "no decoder inputs"),
        ("bad_words_list", np.array([[[5], [1]]], np.int32), "no bad words"),
        ("embedding_bias", np.ones((1, 100), np.float32), "no embedding bias"),
        ("return_context_logits", np.array([True]), "no context logits"),
        ("return_generation_logits", np.array([True]), "no generation logits"),
        ("prompt_embedding_table", np.ones((1, 2, 8), np.float16), "no prompt tuning"),
        ("lora_task_id", np.array([1], np.uint64), "no LoRA: .* one set of adapters for all"),
        ("lora_weights", np.ones((1, 1, 8), np.float16), "no LoRA"),
        ("guided_decoding_guide_type", np.array([[b"json"]], object), "is not set up in this rep"),
        ("draft_input_ids", ints(5), "no draft tokens: .* takes none from a client"),
        ("draft_acceptance_threshold", np.array([0.5], np.float32), "no draft tokens"),
        ("early_stopping", np.array([True]), "reads four bytes of this input, which has one"),
        ("runtime_top_p_decay", np.array([0.5], np.float32), "no decaying top_p"),
        ("lookahead_window_size", ints(4), "no lookahead decoding: .* not change the text"),
        ("lookahead_ngram_size", ints(4), "no lookahead decoding"),
        ("lookahead_verification_set_size", ints(4), "no lookahead decoding"),
        ("retention_token_range_starts", ints(0), "no KV cache retention"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    name: str, array: np.ndarray, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        read_request(inputs(**{name: array}), "", SETTINGS)
    assert caught.value.code == "UNSUPPORTED"
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enable_prefix_caching": True}, "KV blocks it finds in its cache.*kv_cache_reuse: false"),
        ({"guaranteed_no_evict": False}, "evicted halfway.*guaranteed_no_evict"),
        # A step of 8192 tokens: 8192 * 32000 * 4 bytes.
        (
            {"max_num_batched_tokens": 8192, "vocab_size": 32000},
            "one step may take 1,000 MiB, more than the 512 .*enable_chunked_context: true",
        ),
    ],
)
def test_a_prompt_is_scored_only_where_nothing_spoils_it(
    changes: dict[str, Any], reason: str
) -> None:
    asked = inputs(return_prompt_log_probs=np.array([True]))
    able = replace(SETTINGS, enable_prefix_caching=False)
    assert read_request(asked, "", able).prompt_log_probs
    unable = replace(able, **changes)
    with pytest.raises(RequestError, match=reason) as caught:
        read_request(asked, "", unable)
    assert caught.value.code == "UNSUPPORTED"
    unasked = inputs(return_prompt_log_probs=np.array([False]))
    assert not read_request(unasked, "", unable).prompt_log_probs
    assert not read_request(inputs(), "", able).prompt_log_probs


def test_a_guided_text_is_no_prompt_to_score() -> None:
    able = replace(SETTINGS, enable_prefix_caching=False, guided_decoding=True, end_ids=(2,))
    guide = {"guided_decoding_guide_type": np.array([[b"json"]], object)}
    asked = inputs(return_prompt_log_probs=np.array([True]), **guide)
    with pytest.raises(RequestError, match="does not go with guided_decoding_guide: send two req"):
        read_request(asked, "", able)
    assert read_request(inputs(**guide), "", able).guide is not None


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("beam_width", ints(1)),
        ("decoder_input_lengths", ints(1)),
        ("bad_words_list", np.empty((1, 2, 0), np.int32)),
        ("bad_words_list", np.array([[[0], [-1]]], np.int32)),
        ("embedding_bias", np.empty((1, 0), np.float32)),
        ("return_context_logits", np.array([False])),
        ("presence_penalty", np.array([0.0], np.float32)),
        ("frequency_penalty", np.array([0.0], np.float32)),
        ("len_penalty", np.array([2.0], np.float32)),  # means nothing with one beam, as upstream
    ],
)
def test_the_empty_form_of_what_it_cannot_do_is_accepted(name: str, array: np.ndarray) -> None:
    plain = read_request(inputs(), "", SETTINGS)
    request = read_request(inputs(**{name: array}), "", SETTINGS)
    assert request.prompt.tolist() == plain.prompt.tolist()
    assert request.max_new_tokens == plain.max_new_tokens


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        # utils.cc: of a single prompt every id is taken, whatever its length is said to be.
        ({"input_lengths": ints(2)}, "input_lengths is 2, but input_ids has 3 tokens, all of wh"),
        ({"input_lengths": ints(5)}, "input_lengths is 5, but input_ids has 3"),
        ({"input_lengths": ints(-1)}, "input_lengths is -1"),
        ({"end_id": ints(100)}, "end_id is 100; this model's ids are 0 to 99"),
        ({"temperature": np.array([0.5, 0.5], np.float32)}, "temperature must hold one value"),
    ],
)
def test_malformed_tensors_are_refused(tensors: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        read_request(inputs(**tensors), "", SETTINGS)


def test_a_batch_is_one_request_per_row() -> None:
    batch = Inputs(
        {
            "input_ids": np.array([[5, 6, 8, 0], [9, 10, 11, 12]], np.int32),
            "input_lengths": np.array([3, 4], np.int32),
            "request_output_len": np.array([4, 6], np.int32),
            "seed": np.array([1, 2], np.uint64),
            "runtime_top_k": np.array([5, 1], np.int32),
            "end_id": np.array([50, -1], np.int32),
            "stop_words_list": np.array([[[20], [1]], [[21], [1]]], np.int32),
        }
    )
    first, second = (read_request(row, "client", SETTINGS) for row in batch.rows())
    assert [first.prompt.tolist(), second.prompt.tolist()] == [[5, 6, 8], [9, 10, 11, 12]]
    assert (first.max_new_tokens, second.max_new_tokens) == (4, 6)
    assert (first.sampling.seed, second.sampling.seed) == (1, 2)
    assert (first.sampling.greedy, second.sampling.greedy) == (False, True)
    assert (first.end_id, second.end_id) == (50, None)
    assert (first.stop_words, second.stop_words) == (((20,),), ((21,),))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"input_ids": np.ones(3, np.int32)}, r"prompts \[batch, n\], got the shape \[3\]"),
        ({"input_ids": np.ones((2, 3), np.int32)}, "the input input_lengths is missing"),
        (
            {
                "input_ids": np.ones((2, 3), np.int32),
                "input_lengths": np.array([3, 4], np.int32),
            },
            "input_lengths is 4, but input_ids has 3 tokens",
        ),
        (
            {
                "input_ids": np.ones((2, 3), np.int32),
                "input_lengths": np.array([3, 3], np.int32),
                "seed": np.array([1], np.uint64),
            },
            r"seed must have one row for each of the 2 prompts, got the shape \[1\]",
        ),
    ],
)
def test_a_malformed_batch_is_refused(tensors: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        Inputs(tensors).rows()


@pytest.mark.parametrize(
    ("tensors", "rows", "reason"),
    [
        ({"streaming": np.array([True])}, 1, "streaming: .* or send streaming false"),
        ({}, 2, "a batch of 2 prompts: .* or send them one by one"),
    ],
)
def test_a_model_that_answers_once_says_what_it_cannot_do(
    tensors: dict[str, np.ndarray], rows: int, reason: str
) -> None:
    check_policy(inputs(**tensors), rows, SETTINGS)
    once = replace(SETTINGS, decoupled=False)
    check_policy(inputs(streaming=np.array([False])), 1, once)
    with pytest.raises(RequestError, match=f"{reason}"):
        check_policy(inputs(**tensors), rows, once)


@pytest.mark.parametrize("name", ["output_ids", "sequence_length"])
def test_a_request_without_tokens_and_their_number_fails_as_upstream(name: str) -> None:
    """model_instance_state.cc, fillTritonResponse; the text is upstream's."""
    check_outputs(ALL)
    with pytest.raises(RequestError) as caught:
        check_outputs(ALL - {name})
    assert str(caught.value) == (
        f"Error encountered while populating response: {name} tensor must be present in list of "
        "output tensors"
    )
    assert caught.value.code == "INTERNAL"


def test_a_missing_input_is_named() -> None:
    with pytest.raises(RequestError, match="the input request_output_len is missing"):
        read_request(Inputs({"input_ids": ints(5)}), "", SETTINGS)


def test_stop_requests_are_told_apart() -> None:
    assert is_stop(inputs(stop=np.array([True])))
    assert not is_stop(inputs(stop=np.array([False])))
    # Whatever else it is: upstream's backend looks at the first element and at nothing else.
    assert is_stop(Inputs({"stop": np.array([[True], [False]])}))
    assert not is_stop(inputs())


PERF_METRICS = {
    tensor.name
    for tensor in MODELS["tensorrt_llm"].outputs
    if tensor.name.startswith("kv_cache_") or tensor.name.endswith(("_time_ns", "_rate"))
} | {"total_accepted_draft_tokens", "total_draft_tokens"}

ALL = frozenset(
    (
        "output_ids",
        "sequence_length",
        "cum_log_probs",
        "output_log_probs",
        "num_input_tokens",
        "num_output_tokens",
        *PERF_METRICS,
    )
)


def answer(
    wanted: frozenset[str] = ALL, settings: EngineSettings = SETTINGS, **tensors: np.ndarray
) -> Answer:
    read = inputs(**tensors)
    return read_answer(read, wanted, read_request(read, "", settings), settings)


def shapes(outputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in outputs.items()}


def test_the_prompt_is_part_of_the_output_unless_excluded() -> None:
    assert answer().outputs([11], [])["output_ids"].tolist() == [[[5, 6, 8, 11]]]
    without = answer(exclude_input_in_output=np.array([True])).outputs([11], [])
    assert without["output_ids"].tolist() == [[[11]]]
    assert without["sequence_length"].tolist() == [[1]]


def test_a_stream_never_repeats_the_prompt_and_may_end_empty() -> None:
    stream = answer(streaming=np.array([True]))
    assert stream.outputs([11], [])["output_ids"].tolist() == [[[11]]]
    last = stream.outputs([], [])
    assert shapes(last) == {"output_ids": (1, 1, 0), "sequence_length": (1, 1)}


def test_log_probs_come_when_asked_for_and_add_up() -> None:
    stream = answer(streaming=np.array([True]), return_log_probs=np.array([True]))
    first = stream.outputs([11, 12], [-0.5, -1.0])
    assert first["output_log_probs"].tolist() == [[[-0.5, -1.0]]]
    assert first["cum_log_probs"].tolist() == [[-1.5]]
    # LlmRequest::createResult puts getLogProbs(), all of them so far, into every response.
    second = stream.outputs([13], [-0.25])
    assert second["output_log_probs"].tolist() == [[[-0.5, -1.0, -0.25]]]
    assert second["cum_log_probs"].tolist() == [[-1.75]]
    last = stream.outputs([], [])
    assert last["output_log_probs"].tolist() == [[[-0.5, -1.0, -0.25]]]


def test_only_wanted_outputs_are_made() -> None:
    both = frozenset({"output_ids", "sequence_length"})
    asked = answer(both, return_log_probs=np.array([True]))
    assert set(asked.outputs([11], [-1.0])) == both


def test_counts() -> None:
    yes = np.array([True])
    counted = answer(return_num_input_tokens=yes, return_num_output_tokens=yes)
    outputs = counted.outputs([11, 12], [])
    assert outputs["num_input_tokens"].item() == 3
    # fillTritonResponse adds up the sizes of what it sends, the prompt's included.
    assert outputs["num_output_tokens"].item() == 3 + 2
    alone = answer(return_num_output_tokens=yes, exclude_input_in_output=yes).outputs([11, 12], [])
    assert alone["num_output_tokens"].item() == 2
    assert not PERF_METRICS & set(outputs)


def test_every_response_has_every_performance_metric() -> None:
    # NVIDIA's client reads element [0][0] of all ten from every response.
    asked = answer(return_perf_metrics=np.array([True]), streaming=np.array([True]))
    contract = {tensor.name: tensor.data_type for tensor in MODELS["tensorrt_llm"].outputs}
    names = {"TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_FP32": np.float32}
    assert len(PERF_METRICS) == 10
    asked.times.scheduled(1)
    for ids, total in (([11], 1), (list(range(40)), 2)):  # 3 + 1 and 3 + 41 tokens, 32 a block
        outputs = asked.outputs(ids, [])
        for name in PERF_METRICS:
            assert outputs[name].dtype == names[contract[name]]
            assert outputs[name].shape == (1, 1)
        assert outputs["kv_cache_alloc_total_blocks"][0][0] == total
        assert outputs["kv_cache_reused_blocks"][0][0] == 1
        assert outputs["kv_cache_alloc_new_blocks"][0][0] == total - 1


def test_times_are_those_of_the_engine_and_not_of_sending() -> None:
    times = answer().times
    times.scheduled(0)
    first_scheduled = times.first_scheduled
    times.generated()
    first_token = times.first_token
    assert times.last_token == first_token
    times.scheduled(5)  # anew, after an eviction
    times.generated()
    assert (times.first_scheduled, times.first_token) == (first_scheduled, first_token)
    assert times.reused_blocks == 0
    assert 0 < times.arrival <= first_scheduled <= first_token < times.last_token


GUIDED = replace(SETTINGS, guided_decoding=True, end_ids=(1, 2))


def guide_inputs(**more: np.ndarray) -> Inputs:
    return inputs(
        guided_decoding_guide_type=np.array([[b"regex"]], object),
        guided_decoding_guide=np.array([[b"a+"]], object),
        **more,
    )


def test_a_guide_ends_with_the_models_end_ids_whatever_ends_the_text() -> None:
    """-1 is for no end id: a complete text has one all the same, since nothing else may follow."""
    both = ((1,), (2,))
    cases = ((None, None, both), (-1, None, both), (50, 50, both), (2, 2, ((1,),)))
    for end_id, own, words in cases:
        given = {} if end_id is None else {"end_id": ints(end_id)}
        request = read_request(guide_inputs(**given), "", GUIDED)
        assert request.guide == Guide("regex", "a+", frozenset((1, 2)))
        assert request.end_id == own
        # Any but the request's own stays in the output, as with the C++ backend.
        assert request.stop_words == words


def test_min_tokens_and_a_guide_exclude_each_other() -> None:
    assert read_request(guide_inputs(min_tokens=ints(0)), "", GUIDED).guide
    with pytest.raises(RequestError, match="min_tokens cannot be combined with a guide"):
        read_request(guide_inputs(min_tokens=ints(3)), "", GUIDED)


def test_a_guide_that_says_nothing_is_the_clients_fault() -> None:
    wrong = inputs(guided_decoding_guide=np.array([[b"a+"]], object))
    with pytest.raises(RequestError, match="needs guided_decoding_guide_type") as caught:
        read_request(wrong, "", GUIDED)
    assert caught.value.code == "INVALID_ARG"
