"""Every conformance check passes on a model that keeps its promises and fails on a broken one."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest

from pipeline.source.probes import Probe, Probes
from pipeline.triton.contract import (
    BLS,
    CPP_BACKEND,
    ENSEMBLE,
    MODELS,
    POSTPROCESSING,
    PREPROCESSING,
)
from pipeline.triton.tensors import ragged
from pipeline.verify import CHECKS, Plan, run_conformance
from pipeline.verify.check import CheckFailed, CheckSkipped
from pipeline.verify.check_load import _all_go_on, _most_open, _Running, _Stream
from pipeline.verify.tokens import token_ids
from tests.unit.client.fake_model import BREAKS, VOCABULARY, FakeModel, answer_once
from trtllm_client import Chunk, InvalidRequest, PerfMetrics

PLAN = Plan(streams=12, max_tokens=24, long_tokens=480, patience=10.0)

# What each defect must be caught by, and a part of what must be said about it.
CAUGHT = {
    "accepts_bad_input": ("bad_inputs", "max_tokens: answered with"),
    "accumulates_undeclared": ("accumulate_tokens", "says accumulate_tokens false, but each"),
    "batch_dependent": ("greedy_determinism", "differs with neighbours"),
    "batch_mixes_texts": ("batch_of_two", "prompt 0 of a batch whole has another text than alone"),
    "begins_twice": (
        "begins_once",
        r"add_special_tokens is auto, but '<begin>.*' becomes \[24, 24, .*\]... of \d+ tokens, not",
    ),
    "broken_characters": ("utf8_across_tokens", "every character of several tokens is broken"),
    "cancel_keeps_slot": ("cancel_frees_slot", "kept its slot"),
    "crashes_on_bad_input": ("bad_inputs", "ServerFailed: .*the process died"),
    "cuts_in_silence": (
        "bad_inputs",
        "beyond the engine: answered with 512 tokens, and the finish reason is stop, not length",
    ),
    "ends_after_end_token": ("end_token", "ended it where it comes first"),
    "ensemble_differs": ("ensemble_equals_bls", "differs on the ensemble"),
    "ignores_add_special_tokens": ("begins_once", "tensorrt_llm_bls counts .* at all and in any"),
    "ignores_end_token": ("end_token", "ended it where it comes first"),
    "ignores_misspelt_inputs": (
        "request_parameters",
        "temprature, which is not an input, was",
    ),
    "ignores_stop_requests": ("stop_request", "ran on to all its 480 tokens"),
    "ignores_stop_words": ("stop_words", "unstreamed, stop word"),
    "keeps_stop_word": ("stop_word_kept", "is in the text, but .*output says false"),
    "loses_first_space": ("border", "does not continue it, at character"),
    "loses_spaces": ("stream_equals_whole", "differs streamed"),
    "max_tokens_plus_one": ("max_tokens", "max_tokens 1 gave 2 tokens"),
    "metrics_out_of_order": ("perf_metrics", "first_token_time_ns .* is not before last_token"),
    "metrics_with_the_last_response_only": ("perf_metrics", "streamed: response 1 of .* lacks kv_"),
    "mixes_streams": ("interleaved_streams", "has another text than alone"),
    "nested_texts": ("output_shapes", r"text_output arrived in the shape \[1, 1\], not \[1\]"),
    "never_streams": ("stream_equals_whole", "no answer came in more than one piece"),
    "no_batch_index": ("batch_of_two", "has no batch_index"),
    "no_end_without_end_token": ("end_token", "still ends by itself"),
    "no_log_probs": ("log_probs", "gave no output_log_probs"),
    "no_token_counts": ("max_tokens", "does not count tokens"),
    "not_ready": ("readiness", "is not ready"),
    "one_at_a_time": ("interleaved_streams", "one after the other"),
    "other_text": ("own_tokenizer", r"' the dog' gives another text: 'the dog', not ' the dog'; 3"),
    "other_tokens": (
        "own_tokenizer",
        r"gives other tokens: \[0, 9\], not \[24, 0, 9\]; 6",
    ),
    "parts_at_near_ties": ("greedy_determinism", "differs twice alone"),
    "parts_far_off": ("greedy_determinism", "differs with neighbours"),
    "parts_where_certain": ("greedy_determinism", "differs with neighbours"),
    "positive_log_probs": ("log_probs", "above 0"),
    "random": ("greedy_determinism", "differs twice alone"),
    "refuses_an_empty_prompt": ("empty_prompt", "but an empty prompt is refused"),
    "refuses_its_own_end_id": ("end_ids", "own end id 23 is refused"),
    "refuses_nvidias_parameters": ("request_parameters", "refuses the parameter Streaming"),
    "refuses_stop_requests": ("stop_request", "the stop request was refused"),
    "repeats_log_probs": ("log_probs", r"streamed, \d\d+ log probabilities for 24 tokens"),
    "restarts_at_length": ("max_tokens", "is not the beginning of the text"),
    "stop_words_within_tokens": ("stop_words", "unstreamed, stop word"),
    "takes_a_number_for_a_flag": ("begins_once", "of another type was taken: 1 answers"),
    "tensor_missing": ("wire_contract", "tensorrt_llm_bls: input text_input is missing"),
    "tensor_type": ("wire_contract", "input text_input is INT8, not BYTES"),
    "unary_differs": ("unary_call", "answered 'something else' to a unary call"),
    "unnoticed_end": ("end_ids", "generated the special token 25 and went on"),
    "vague_about_old_names": ("old_names", "refusal of random_seed does not say seed"),
    "vague_refusals": ("bad_inputs", "ServerFailed: .*something went wrong"),
    "wrong_log_prob_count": ("log_probs", r"\d+ log probabilities for \d+ tokens"),
    "wrong_log_prob_sum": ("log_probs", "the sum is"),
}


# The fake model's own tokenizer, by hand.
PROBES = Probes(
    (
        Probe(" the dog", (24, 0, 9), (0, 9), " the dog"),
        Probe(" went \U0001f600", (24, 3, 19, 20), (3, 19, 20), " went\U0001f600"),
        Probe("\u00e9", (24, 21, 22), (21, 22), "\u00e9"),
        Probe("<other>", (24, 25), (25,), ""),
        Probe("<begin> the dog", (24, 24, 0, 9), (24, 0, 9), " the dog"),
    ),
    cleans_up=False,
    without_chat=None,
    in_front=(24,),
    chat="<begin> the dog",
)


def verify(model, *checks, name=BLS, plan=PLAN, probes=PROBES, backend="python"):
    """Results by check name."""
    with model.serve() as server:
        server.backend = backend
        report = run_conformance(server.url, model=name, plan=plan, only=checks, probes=probes)
    return {result.name: result for result in report.results}


def test_every_defect_has_a_check_and_every_check_a_defect():
    assert set(CAUGHT) == set(BREAKS)
    usual = {name for name, check in CHECKS.items() if not check.thorough}
    assert {check for check, _ in CAUGHT.values()} == usual


def test_a_model_that_keeps_its_promises_passes_everything():
    results = verify(FakeModel())
    assert {name: result.reason for name, result in results.items() if result.reason} == {
        "unary_call": "every text model here is decoupled, so Triton refuses unary calls"
    }
    assert list(results) == [name for name, check in CHECKS.items() if not check.thorough]


def test_a_run_leaves_no_connection_behind():
    def sockets():
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return {link for link in links if "socket:" in link}

    run = ("bad_inputs", "interleaved_streams", "cancel_frees_slot")
    verify(FakeModel(), *run)  # gRPC's own, which stay
    before = sockets()
    verify(FakeModel(), *run)
    deadline = time.monotonic() + 60
    while (left := sockets() - before) and time.monotonic() < deadline:
        time.sleep(0.05)  # connections are closed by gRPC's threads
    assert left == set()


def test_a_model_that_answers_once_passes_everything_that_is_not_about_streams():
    with FakeModel().serve() as server:
        answer_once(server)
        report = run_conformance(server.url, plan=PLAN, probes=PROBES)
    skipped = {result.name for result in report.results if result.status == "skipped"}
    assert skipped == {
        "accumulate_tokens",
        "batch_of_two",
        "cancel_frees_slot",
        "interleaved_streams",
        "stream_equals_whole",
        "utf8_across_tokens",
    }
    assert {r.reason for r in report.results if r.status == "failed"} == set()


def test_a_model_that_declares_what_it_does_may_do_it():
    for defect, parameter, check in (
        ("accumulates_undeclared", "accumulate_tokens", "accumulate_tokens"),
        ("keeps_stop_word", "include_stop_str_in_output", "stop_word_kept"),
    ):
        with FakeModel(defect).serve() as server:
            server.parameters[parameter] = "true"
            names = [check, "stop_words", "stream_equals_whole", "interleaved_streams"]
            report = run_conformance(server.url, plan=PLAN, only=names)
        assert {r.reason for r in report.results} == {None}


def test_upstream_keeps_a_stop_word_where_nothing_is_declared():
    with FakeModel().serve() as server:
        del server.parameters["include_stop_str_in_output"]
        report = run_conformance(server.url, plan=PLAN, only=["stop_word_kept"])
    (result,) = report.results
    assert (result.status, "upstream keeps it" in result.reason) == ("failed", True)


def test_wiring_of_our_own_need_not_be_on_another_server(monkeypatch):
    post = MODELS[POSTPROCESSING]
    wired = replace(post, inputs=(*post.inputs, ragged("PROMPT_IDS", "TYPE_INT32", -1)))
    with FakeModel().serve() as server:
        without = run_conformance(server.url, plan=PLAN, only=["wire_contract"])
        server.models[POSTPROCESSING] = wired
        more = run_conformance(server.url, plan=PLAN, only=["wire_contract"])
        server.models[POSTPROCESSING] = post
        monkeypatch.setitem(MODELS, POSTPROCESSING, wired)
        asked_for = run_conformance(server.url, plan=PLAN, only=["wire_contract"])
    for report in (without, more, asked_for):
        assert report.results[0].reason is None


@pytest.mark.parametrize("defect", BREAKS)
def test_each_defect_is_caught(defect):
    name, reason = CAUGHT[defect]
    result = verify(FakeModel(defect), name)[name]
    assert result.status == "failed"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


@pytest.mark.parametrize("defect", sorted({*BREAKS} - {"parts_at_near_ties"}))
def test_each_defect_is_caught_where_near_ties_are_allowed(defect):
    name, reason = CAUGHT[defect]
    result = verify(FakeModel(defect), name, backend=CPP_BACKEND)[name]
    assert result.status == "failed"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


@pytest.mark.parametrize("name", [BLS, ENSEMBLE])
def test_a_right_server_of_the_cpp_backend_passes_although_it_parts_at_near_ties(name):
    results = verify(FakeModel("parts_at_near_ties"), name=name, backend=CPP_BACKEND)
    reasons = {r.name: r.reason for r in results.values() if r.status == "failed"}
    # See test_on_the_ensemble.
    assert reasons.keys() == ({"stop_word_kept"} if name == ENSEMBLE else set())
    parted = {r.name for r in results.values() if "near_ties" in r.details}
    assert {"greedy_determinism", "ensemble_equals_bls"} <= parted


def test_no_request_is_sent_that_would_end_everybodys(monkeypatch):
    """As NVIDIA's own preprocessing is, which lets any beam_width through to the executor."""
    row, inputs = "beam_width above the engine's", MODELS[PREPROCESSING].inputs
    seen = [verify(FakeModel(), "bad_inputs", backend=CPP_BACKEND)["bad_inputs"]]
    bare = replace(
        MODELS[PREPROCESSING], inputs=tuple(one for one in inputs if one.name != "BEAM_WIDTH")
    )
    monkeypatch.setitem(MODELS, PREPROCESSING, bare)
    seen += [
        verify(FakeModel(), "bad_inputs", backend=backend)["bad_inputs"]
        for backend in (CPP_BACKEND, "python")
    ]
    assert [result.status for result in seen] == ["passed"] * 3
    assert [row in result.details["answers"] for result in seen] == [True, False, True]


def test_why_a_wrong_text_is_no_near_tie():
    for defect, reason in (
        ("parts_far_off", r"are -0\.75 and -3, 2\.25 apart, and 0\.25 is allowed"),
        ("parts_where_certain", "two tokens cannot both be that likely"),
        ("loses_spaces", "the tokens are the same and the text is not"),
    ):
        name, _ = CAUGHT[defect]
        result = verify(FakeModel(defect), name, backend=CPP_BACKEND)[name]
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(result.reason)


def test_how_texts_are_compared_can_be_chosen():
    model = FakeModel("parts_at_near_ties")
    with model.serve() as server:
        only = ["greedy_determinism"]
        loose = run_conformance(server.url, plan=PLAN, only=only, tolerance=0.1)
        close = run_conformance(server.url, plan=PLAN, only=only, tolerance=0.01)
        server.backend = CPP_BACKEND
        strict = run_conformance(server.url, plan=PLAN, only=only, strict=True)
    assert [r.tolerance for r in (loose, close, strict)] == [0.1, 0.01, None]
    assert [r.results[0].status for r in (loose, close, strict)] == ["passed", "failed", "failed"]


def test_checks_after_a_server_that_is_not_ready_are_skipped():
    results = verify(FakeModel("not_ready"))
    assert results.pop("readiness").status == "failed"
    assert {result.status for result in results.values()} == {"skipped"}


def test_what_was_not_put_to_the_test_is_not_called_passed():
    results = verify(FakeModel(ascii_only=True), "utf8_across_tokens")
    assert results["utf8_across_tokens"].status == "skipped"
    assert "not exercised" in results["utf8_across_tokens"].reason


def test_more_slots_than_the_server_says_leave_cancellation_unproven():
    result = verify(FakeModel(slots=9), "cancel_frees_slot")["cancel_frees_slot"]
    assert result.status == "skipped"
    assert "do not fill the server" in result.reason


def test_a_cancellation_has_to_be_noticed_before_others_end():
    reasons = []
    # On a busy machine a run may come to nothing for another reason; none is a failure.
    while not reasons or ("too soon to tell" not in reasons[-1] and len(reasons) < 10):
        with FakeModel("cancel_keeps_slot").serve() as server:
            server.parameters["cancellation_check_period_ms"] = "5000"
            report = run_conformance(server.url, plan=PLAN, only=["cancel_frees_slot"])
        (result,) = report.results
        assert result.status == "skipped"
        reasons.append(result.reason)
    assert "too soon to tell" in reasons[-1], reasons


@pytest.mark.parametrize(
    ("ends_at", "goes_on"), [(900, False), (1000, False), (1040, False), (1200, True)]
)
def test_who_went_on_beside_the_waiting_request_is_told_by_the_servers_clock(ends_at, goes_on):
    """Two requests began at 500 ns, and the waiting one at 1000; their pieces are read late."""

    def told(first, *latest):
        pieces = [
            Chunk("a", n, is_final=at == latest[-1], perf_metrics=PerfMetrics(**times(first, at)))
            for n, at in enumerate(latest)
        ]
        return _Running(_Pieces(pieces))

    async def all_go_on():
        waiting, others = told(1000, 1000), [told(500, *range(600, 640), ends_at) for _ in "ab"]
        for one in (waiting, *others):
            one.task = asyncio.get_running_loop().create_task(one.read())
        await waiting.first.wait()
        return await _all_go_on(others, waiting)

    assert asyncio.run(all_go_on()) is goes_on


class _Pieces:
    """A stream of pieces that are long there."""

    def __init__(self, pieces):
        self._pieces = pieces

    async def __aiter__(self):
        for piece in self._pieces:
            yield piece
            await asyncio.sleep(0)


def times(first, last):
    return {"first_token_time_ns": first, "last_token_time_ns": last}


def test_no_more_requests_are_open_than_the_model_takes():
    few = ("batch_of_two", "interleaved_streams", "cancel_frees_slot")
    results = verify(FakeModel(most_requests=6), *few)
    assert {r.name: r.reason for r in results.values()} == dict.fromkeys(few)
    assert results["interleaved_streams"].details["streams"] == 6
    results = verify(FakeModel(most_requests=1), *few)
    assert {result.status for result in results.values()} == {"skipped"}


def test_streams_that_are_read_late_are_told_apart_by_the_servers_clock():
    late = [Chunk("a", 0, is_final=False), Chunk("b", 1, is_final=True)]

    def streams(*spans):
        return [
            _Stream(
                [*late[:1], replace(late[1], perf_metrics=PerfMetrics(**times(*span)))], [n, 9 + n]
            )
            for n, span in enumerate(spans)
        ]

    assert _most_open(streams((1, 5), (5, 9), (9, 12))) == 1
    assert _most_open(streams((1, 5), (4, 9), (4, 12))) == 3
    assert _most_open([_Stream(late, [0, 3]), _Stream(late, [1, 2]), _Stream(late, [4, 5])]) == 2


def test_a_slot_that_was_kept_stays_a_failure_when_later_attempts_prove_nothing(monkeypatch):
    outcomes = iter([CheckSkipped("too fast"), CheckFailed("kept its slot"), CheckSkipped("busy")])

    async def attempt(*_: object) -> dict[str, object]:
        raise next(outcomes)

    monkeypatch.setattr("pipeline.verify.check_load._cancel_one", attempt)
    result = verify(FakeModel(), "cancel_frees_slot")["cancel_frees_slot"]
    assert (result.status, result.reason) == ("failed", "kept its slot")


def test_without_the_tokenizer_its_answers_are_not_called_right():
    result = verify(FakeModel("other_tokens"), "own_tokenizer", probes=None)["own_tokenizer"]
    assert (result.status, "--tokenizer" in result.reason) == ("skipped", True)


@pytest.mark.parametrize(
    ("most", "status", "reason"),
    [(3, "passed", None), (1, "skipped", "every text is refused"), (-3, "failed", "of 2 tokens")],
)
def test_an_engine_without_room_refuses_the_longest_texts_only(most, status, reason, monkeypatch):
    """A negative limit refuses texts of fewer tokens."""

    def limited(context, text, **more):
        ids = token_ids(context, text, **more)
        if len(ids) > most if most > 0 else len(ids) < -most:
            raise InvalidRequest("too long")
        return ids

    monkeypatch.setattr("pipeline.verify.check_tokenizer.token_ids", limited)
    found = verify(FakeModel(), "own_tokenizer")["own_tokenizer"]
    assert found.status == status
    assert (reason or "") in (found.reason or "")


@pytest.mark.parametrize(
    ("cleans_up", "text", "status"),
    [(True, "x!= y.", "passed"), (False, "x!= y.", "failed"), (True, "x!=y.", "failed")],
)
def test_a_server_that_takes_spaces_out_as_transformers_4_does_is_no_failure(
    cleans_up, text, status, monkeypatch
):
    """NVIDIA's postprocessing does so for Llama 3; the texts are what transformers gives."""
    monkeypatch.setattr("tests.unit.client.fake_model.text_of", lambda _ids: text)
    probes = Probes((Probe(" the dog", (24, 0, 9), (0, 9), "x != y ."),), cleans_up, None)
    found = verify(FakeModel(), "own_tokenizer", probes=probes)["own_tokenizer"]
    assert found.status == status
    if status == "passed":
        assert found.details["with_spaces_taken_out"] == 1


def test_a_model_that_says_one_word_over_and_over_does_not_repeat_its_text(monkeypatch):
    monkeypatch.setattr("tests.unit.client.fake_model.continuation", lambda *_: repeat(7))
    results = verify(FakeModel(), "accumulate_tokens", "stream_equals_whole")
    assert {result.reason for result in results.values()} == {None}


def test_a_part_of_a_character_is_no_special_token(monkeypatch):
    """The first two bytes of one, in tokens of their own; both together are one broken character,
    and so is the first alone."""
    fake = "tests.unit.client.fake_model"
    first, second = len(VOCABULARY) - 4, len(VOCABULARY) - 3
    monkeypatch.setattr(
        f"{fake}.VOCABULARY", [*VOCABULARY[:first], b"\xf0", b"\x9f", b"\xc3", b"\xa9"]
    )
    monkeypatch.setattr(f"{fake}.continuation", lambda *_: chain((first, second), repeat(7)))
    assert verify(FakeModel(), "end_ids")["end_ids"].reason is None


def test_on_the_ensemble():
    results = verify(FakeModel(), name=ENSEMBLE)
    for name in (
        "accumulate_tokens",
        "stop_words",
        "stream_equals_whole",
        "unary_call",
        "utf8_across_tokens",
    ):
        assert results.pop(name).status == "skipped"
    # The fake's ensemble strips the word as its tensorrt_llm_bls does; upstream's keeps it.
    assert results.pop("stop_word_kept").status == "failed"
    assert {result.reason for result in results.values()} == {None}


def test_a_server_without_the_other_models():
    model = FakeModel()
    with model.serve() as server:
        for name in (ENSEMBLE, PREPROCESSING):
            del server.models[name]
        report = run_conformance(server.url, plan=PLAN, only=["end_token", "ensemble_equals_bls"])
    same, end = report.results
    assert end.status == "passed"
    assert end.details["ended_by_itself"]
    assert same.status == "skipped"
    assert "no model ensemble" in same.reason
