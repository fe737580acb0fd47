"""``tensorrt_llm``'s model.py over the real engine, called as Triton would call it."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import Stubborn, write_engine
from tests.unit.model_repo.fake_triton import MetricFamily, Request, install, model_args

install()

import model_repo.tensorrt_llm.model as front  # noqa: E402 - needs install()
from model_repo.tensorrt_llm.ending import EXIT_STATUS, end_process  # noqa: E402
from model_repo.tensorrt_llm.model import TritonPythonModel  # noqa: E402
from model_repo.tensorrt_llm.statuses import ASKED  # noqa: E402
from pipeline.triton.contract import MODELS  # noqa: E402

front.end_with_parent = lambda: None  # it would end the tests' own process

OUTPUTS = [tensor.name for tensor in MODELS["tensorrt_llm"].outputs]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    engine = root / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    write_engine(DEMO_MODEL, engine)
    return root


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[TritonPythonModel]:
    interval = sys.getswitchinterval()
    made = TritonPythonModel()
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "5",
        "stats_check_period_ms": "5",
    }
    made.initialize(model_args(repository, parameters))
    yield made
    made.finalize()
    sys.setswitchinterval(interval)


def request(
    tokens: int = 8, *, request_id: str = "", wanted: list[str] | None = None, **inputs: Any
) -> Request:
    ids = np.arange(10, 30, dtype=np.int32)[None]
    tensors = {
        "input_ids": ids,
        "input_lengths": np.array([ids.size], np.int32),
        "request_output_len": np.array([tokens], np.int32),
        **{name: np.array([value]) for name, value in inputs.items()},
    }
    return Request(tensors, wanted or OUTPUTS, request_id)


def ids(outputs: list[dict[str, np.ndarray]]) -> list[int]:
    return [token for one in outputs for token in one["output_ids"].reshape(-1).tolist()]


def test_a_stream_gives_the_tokens_of_the_unstreamed_answer(model: TritonPythonModel) -> None:
    whole, stream = request(40), request(40, streaming=True)
    model.execute([whole])
    model.execute([stream])
    expected = ids(whole.sender.outputs())
    assert len(expected) == 40
    assert ids(stream.sender.outputs()) == expected
    assert len(whole.sender.sent) == 1
    assert len(stream.sender.sent) > 10
    finals = [final for _, final in stream.sender.sent]
    assert finals == [False] * (len(finals) - 1) + [True]


def test_streams_that_share_the_processor_get_the_same_in_fewer_responses(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one processor's share, 12 streams of a small model wait for several steps each."""
    monkeypatch.setattr(front.os, "sched_getaffinity", lambda _: {0})
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "exclude_input_in_output": "true",
        "max_token_hold_ms": "400",
    }
    interval = sys.getswitchinterval()
    made = TritonPythonModel()
    # By another name, since metrics of one name are one.
    made.initialize({**model_args(repository, parameters), "model_name": "shared"})
    try:
        lengths = range(40, 64, 2)
        alone = request(64)
        made.execute([alone])
        expected = ids(alone.sender.outputs())
        streams = [request(n, streaming=True, return_log_probs=True) for n in lengths]
        made.execute(list(streams))
        outputs = [stream.sender.outputs() for stream in streams]
        lone = request(20, streaming=True)
        made.execute([lone])
        assert ids(lone.sender.outputs()) == expected[:20]
        assert len(lone.sender.outputs()) > 10
    finally:
        made.finalize()
        sys.setswitchinterval(interval)
    assert [ids(one) for one in outputs] == [expected[:length] for length in lengths]
    # The first token leaves alone, but where a busy machine has made the next one meanwhile.
    assert sorted(one[0]["output_ids"].size for one in outputs)[len(outputs) // 2] == 1
    assert sum(map(len, outputs)) < sum(lengths) / 2
    for one, length in zip(outputs, lengths, strict=True):
        assert one[-1]["output_log_probs"].size == length


def test_a_stream_that_ends_at_an_end_id_says_so_on_a_response(model: TritonPythonModel) -> None:
    whole = request(40)
    model.execute([whole])
    generated = ids(whole.sender.outputs())
    end = next(token for token in generated[3:] if generated.count(token) == 1)
    stream = request(40, streaming=True, end_id=end)
    model.execute([stream])
    outputs = stream.sender.outputs()
    assert ids(outputs) == generated[: generated.index(end)]
    assert outputs[-1]["sequence_length"].item() == outputs[-1]["output_ids"].size


def test_only_what_was_asked_for_is_sent(model: TritonPythonModel) -> None:
    plain, scored = request(4), request(4, return_log_probs=True)
    needed = ["output_ids", "sequence_length"]
    one = request(4, return_log_probs=True, wanted=needed)
    model.execute([plain, scored, one])
    assert set(plain.sender.outputs()[0]) == {"output_ids", "sequence_length"}
    outputs = scored.sender.outputs()[0]
    assert outputs["output_log_probs"].shape == (1, 1, 4)
    assert outputs["cum_log_probs"].item() == pytest.approx(outputs["output_log_probs"].sum())
    assert set(one.sender.outputs()[0]) == set(needed)


@pytest.mark.parametrize("missing", ["output_ids", "sequence_length"])
def test_tokens_and_their_number_must_be_asked_for(model: TritonPythonModel, missing: str) -> None:
    """As of the C++ backend, whose text it is (model_instance_state.cc, fillTritonResponse)."""
    sent = request(4, wanted=[name for name in OUTPUTS if name != missing])
    model.execute([sent])
    assert sent.sender.failure() == (
        f"Error encountered while populating response: {missing} tensor must be present in list "
        "of output tensors"
    )
    # A stop request has nothing to answer with.
    stop = request(1, request_id="nobody", stop=True, wanted=["output_ids"])
    model.execute([stop])
    assert stop.sender.outputs() == [{}]


def test_every_response_of_a_stream_scores_all_tokens_so_far(model: TritonPythonModel) -> None:
    """LlmRequest::createResult; the scores are transformers' log probabilities."""
    stream = request(6, streaming=True, return_log_probs=True)
    model.execute([stream])
    outputs = stream.sender.outputs()
    tokens = ids(outputs)
    prompt = list(range(10, 30))
    reference = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    scores = torch.log_softmax(logits, -1)[range(6), tokens].tolist()
    sent = 0
    for one in outputs:
        sent += one["output_ids"].size
        found = one["output_log_probs"].reshape(-1).tolist()
        assert found == pytest.approx(scores[:sent], abs=1e-3)
        assert one["cum_log_probs"].item() == pytest.approx(sum(scores[:sent]), abs=1e-3)
    assert sent == 6
    assert len(outputs) > 1


def test_a_stop_word_that_is_an_end_id_stays_in_the_output(model: TritonPythonModel) -> None:
    """To the backend it is a stop word like any other (stopCriteriaKernels.cu)."""
    whole = request(40)
    model.execute([whole])
    generated = ids(whole.sender.outputs())
    end = next(token for token in generated[3:] if generated.count(token) == 1)
    stopped = request(40, stop_words_list=[[end], [1]])
    model.execute([stopped])
    assert ids(stopped.sender.outputs()) == generated[: generated.index(end) + 1]


def test_a_stop_request_ends_the_request_with_its_id(model: TritonPythonModel) -> None:
    long = request(400, request_id="x", streaming=True)
    model.execute([long])
    while not long.sender.sent:
        time.sleep(0.001)
    stop = request(1, request_id="x", stop=True)
    model.execute([stop])
    assert stop.sender.outputs() == [{}]
    assert len(ids(long.sender.outputs())) < 400


def test_nvidias_stop_request_is_taken_as_it_is_sent(model: TritonPythonModel) -> None:
    # inflight_batcher_llm_client.py: these tensors, and a request parameter of its own.
    long = request(400, request_id="y", streaming=True)
    model.execute([long])
    while not long.sender.sent:
        time.sleep(0.001)
    tensors = {
        "input_ids": np.empty([1, 1], np.int32),
        "input_lengths": np.zeros([1], np.int32),
        "request_output_len": np.array([0], np.int32),
        "stop": np.array([True]),
    }
    stop = Request(tensors, OUTPUTS, "y", {"Streaming": True, "a_stray_one": 1})
    model.execute([stop])
    assert stop.sender.outputs() == [{}]
    assert len(ids(long.sender.outputs())) < 400


def batch(tokens: list[int], **inputs: Any) -> Request:
    rows = [np.arange(10, 30), np.arange(40, 52)]
    padded = np.zeros((2, 20), np.int32)
    for row, prompt in enumerate(rows):
        padded[row, : prompt.size] = prompt
    tensors = {
        "input_ids": padded,
        "input_lengths": np.array([20, 12], np.int32),
        "request_output_len": np.array(tokens, np.int32),
        **{name: np.array([value] * 2) for name, value in inputs.items()},
    }
    return Request(tensors, OUTPUTS, "rows")


@pytest.mark.parametrize("streaming", [True, False])
def test_every_row_of_a_batch_is_answered_with_its_number(
    model: TritonPythonModel, streaming: bool
) -> None:
    singles = [request(9), request(30)]
    singles[1]._inputs["input_ids"] = np.arange(40, 52, dtype=np.int32)[None]
    singles[1]._inputs["input_lengths"] = np.array([12], np.int32)
    model.execute(singles)
    expected = [ids(one.sender.outputs()) for one in singles]
    both = batch([9, 30], streaming=streaming)
    model.execute([both])
    outputs = both.sender.outputs()
    found: list[list[int]] = [[], []]
    for one in outputs:
        assert one["batch_index"].shape == (1, 1)
        found[one["batch_index"][0][0]] += one["output_ids"].reshape(-1).tolist()
    assert found == expected
    assert [final for _, final in both.sender.sent].count(True) == 1
    assert "batch_index" not in singles[0].sender.outputs()[0]


def test_a_stop_request_and_a_client_that_leaves_end_every_row(model: TritonPythonModel) -> None:
    stopped = batch([400, 400], streaming=True)
    model.execute([stopped])
    while not stopped.sender.sent:
        time.sleep(0.001)
    model.execute([request(1, request_id="rows", stop=True)])
    assert len(ids(stopped.sender.outputs())) < 800
    left = batch([400, 400], streaming=True)
    model.execute([left])
    left.sender.cancelled = True
    assert len(ids(left.sender.outputs())) < 800


def test_a_batch_with_one_bad_row_is_refused_whole(model: TritonPythonModel) -> None:
    bad = batch([4, 100_000])
    model.execute([bad])
    assert "request_output_len (max_tokens)" in bad.sender.failure()
    assert len(bad.sender.sent) == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_away_ends_its_request(
    model: TritonPythonModel, streaming: bool
) -> None:
    long = request(400, streaming=streaming)
    model.execute([long])
    long.sender.cancelled = True
    assert len(ids(long.sender.outputs())) < 400


def test_a_model_that_called_this_one_sees_itself_whether_its_client_is_there(
    model: TritonPythonModel,
) -> None:
    """Its own sender would always say yes, at the price of a message to the server and back."""
    inner = request(200, streaming=True)
    inner._parameters = json.dumps({ASKED: True})
    inner.sender.cancelled = True
    model.execute([inner])
    assert len(ids(inner.sender.outputs())) == 200


def test_bad_requests_get_an_error_each_and_spare_the_others(model: TritonPythonModel) -> None:
    good, nameless = request(4), request(1, stop=True)
    bad = request(4, beam_width=2)
    broken = request(4, temperature=np.array(["hot"], object))
    model.execute([bad, nameless, broken, good])
    assert len(ids(good.sender.outputs())) == 4
    assert bad.sender.failure() == "beam_width 2: the CPU engine has no beam search"
    assert "must have the request id" in nameless.sender.failure()
    told = broken.sender.failure()
    assert re.search(r"failed inside the server, .* \(failure [0-9a-f]{12}\)$", told)
    assert "Error" not in told


def published(name: str, **labels: str) -> float:
    key = tuple(sorted({"model": "model", "version": "1", **labels}.items()))
    return MetricFamily.metrics[name, key].value


def test_metrics_have_upstreams_names(model: TritonPythonModel) -> None:
    value = published
    before = value("nv_llm_generated_tokens_total")
    done = request(8)
    model.execute([done])
    done.sender.outputs()
    deadline = time.monotonic() + 60
    while (
        value("nv_llm_generated_tokens_total") < before + 8
        or value("nv_trt_llm_request_metrics", request_type="active") > 0
        or value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used") > 0
    ):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert value("nv_trt_llm_request_metrics", request_type="max") == 32
    assert value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="tokens_per") == 32
    key = ("nv_llm_time_to_first_token_ms", (("model", "model"), ("version", "1")))
    assert min(MetricFamily.metrics[key].observed) > 0


def test_unloading_ends_unfinished_requests(repository: Path) -> None:
    made = TritonPythonModel()
    interval = sys.getswitchinterval()
    made.initialize(model_args(repository, {"gpt_model_path": "tensorrt_llm/1/engine"}))
    long = request(400, streaming=True)
    made.execute([long])
    made.finalize()
    sys.setswitchinterval(interval)
    assert long.sender.done.is_set()


def test_a_broken_engine_ends_the_process_after_every_request_has_its_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [request(400, streaming=stream) for stream in (True, False, True)]
    left = threading.Event()
    unanswered: list[bool] = []

    def leave(status: int) -> None:
        assert status == EXIT_STATUS
        unanswered.extend(not one.sender.done.is_set() for one in sent)
        left.set()

    monkeypatch.setattr(front, "end_process", partial(end_process, grace_s=0.0, leave=leave))
    made = TritonPythonModel()
    interval = sys.getswitchinterval()
    made.initialize(model_args(repository, {"gpt_model_path": "tensorrt_llm/1/engine"}))
    sys.setswitchinterval(interval)
    made._loop._pipeline = Stubborn(made._loop._pipeline, steps=20)
    made.execute(sent)
    assert left.wait(60)
    assert unanswered == [False] * 3
    assert all("the engine stopped working" in one.sender.failure() for one in sent)
    late = request(4)
    made.execute([late])
    assert "the engine stopped working" in late.sender.failure()
    made.finalize()


def test_a_cache_larger_than_the_machine_is_explained(repository: Path) -> None:
    tokens = 32 * 10**9
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "max_tokens_in_paged_kv_cache": str(tokens),
    }
    interval = sys.getswitchinterval()
    with pytest.raises(MemoryError, match=r"KV cache of 1000000000 blocks of 32 tokens") as caught:
        TritonPythonModel().initialize(model_args(repository, parameters))
    sys.setswitchinterval(interval)
    # 4 layers with 2 heads of 64 features, keys and values in float32.
    assert f"takes {tokens * 4 * 2 * 64 * 2 * 4:,} bytes" in str(caught.value)
    assert "lower serve.max_tokens_in_paged_kv_cache" in str(caught.value)


def test_performance_metrics_are_in_the_order_of_events(model: TritonPythonModel) -> None:
    whole = request(8, return_perf_metrics=True)
    model.execute([whole])
    (outputs,) = whole.sender.outputs()
    stream = request(8, return_perf_metrics=True, streaming=True)
    model.execute([stream])
    for piece in stream.sender.outputs():
        assert piece["kv_cache_reused_blocks"].shape == (1, 1)
    names = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [outputs[f"{name}_time_ns"].item() for name in names]
    assert 0 < times[0] < times[1] < times[2] < times[3]
    assert outputs["kv_cache_alloc_total_blocks"].item() == 1


def test_a_repeated_prompt_reuses_its_whole_blocks(model: TritonPythonModel) -> None:
    prompt = np.arange(100, 180, dtype=np.int32)[None]
    found = []
    for _ in range(2):
        asked = request(4, return_perf_metrics=True)
        asked._inputs.update(input_ids=prompt, input_lengths=np.array([80], np.int32))
        model.execute([asked])
        (outputs,) = asked.sender.outputs()
        kinds = ("reused", "alloc_new", "alloc_total")
        found.append([outputs[f"kv_cache_{kind}_blocks"].item() for kind in kinds])
    assert found == [[0, 3, 3], [2, 1, 3]]  # 84 tokens, 32 a block


def test_a_model_that_is_not_decoupled_answers_once(repository: Path) -> None:
    interval = sys.getswitchinterval()
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "5",
    }
    made = TritonPythonModel()
    made.initialize(model_args(repository, parameters, model_transaction_policy={}))
    sys.setswitchinterval(interval)
    whole, stream, left = request(40), request(4, streaming=True), request(400)
    made.execute([whole, stream, left])
    left.sender.cancelled = True
    assert len(ids(whole.sender.outputs())) == 40
    assert [final for _, final in whole.sender.sent] == [True]
    assert "send streaming false" in stream.sender.failure()
    assert len(ids(left.sender.outputs())) < 400
    made.finalize()


@pytest.mark.parametrize(("policy", "forced"), [("guaranteed_no_evict", 0), ("max_utilization", 1)])
def test_a_request_that_stops_for_want_of_kv_blocks_is_counted(
    repository: Path, policy: str, forced: int
) -> None:
    """Two prompts fit into a cache that their texts outgrow: 2 x 6 blocks of 16, then 2 x 11."""
    parameters = {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "batch_scheduler_policy": policy,
        "max_tokens_in_paged_kv_cache": "512",
        "enable_kv_cache_reuse": "false",
        "exclude_input_in_output": "true",
        "stats_check_period_ms": "5",
    }
    interval = sys.getswitchinterval()
    made = TritonPythonModel()
    made.initialize(model_args(repository, parameters))
    try:
        asked = [
            request(200, input_ids=np.arange(10 + n, 160 + n, dtype=np.int32), input_lengths=150)
            for n in range(2)
        ]
        made.execute(asked)
        assert [len(ids(one.sender.outputs())) for one in asked] == [200, 200]
        deadline = time.monotonic() + 30
        while published("nv_llm_requests_total", outcome="finished") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        made.finalize()
        sys.setswitchinterval(interval)
    preempted = published("nv_llm_preemptions_total")
    assert preempted >= 1 if forced else preempted == 0
