"""Every conformance check passes on a model that keeps its promises and fails on a broken one."""

from __future__ import annotations

import pytest

from pipeline.probes import Probe, Probes
from pipeline.triton.contract import BLS, ENSEMBLE, PREPROCESSING
from pipeline.verify import CHECKS, Plan, run_conformance
from pipeline.verify.check import CheckFailed, CheckSkipped
from tests.unit.client.fake_model import BREAKS, FakeModel

PLAN = Plan(streams=12, max_tokens=24, long_tokens=480, patience=10.0)

# What each defect must be caught by, and a part of what must be said about it.
CAUGHT = {
    "accepts_bad_input": ("bad_inputs", "max_tokens zero: answered with"),
    "batch_dependent": ("greedy_determinism", "differs with neighbours"),
    "broken_characters": ("utf8_across_tokens", "every character of several tokens is broken"),
    "cancel_keeps_slot": ("cancel_frees_slot", "kept its slot"),
    "crashes_on_bad_input": ("bad_inputs", "empty prompt: ServerFailed: .*the process died"),
    "ends_after_end_token": ("end_token", "ended it where it comes first"),
    "ensemble_differs": ("ensemble_equals_bls", "differs on the ensemble"),
    "ignores_end_token": ("end_token", "ended it where it comes first"),
    "ignores_stop_words": ("stop_words", "unstreamed, stop word"),
    "keeps_stop_word": ("stop_words", "unstreamed, stop word"),
    "loses_spaces": ("stream_equals_whole", "differs streamed"),
    "max_tokens_plus_one": ("max_tokens", "max_tokens 1 gave 2 tokens"),
    "mixes_streams": ("interleaved_streams", "has another text than alone"),
    "never_streams": ("stream_equals_whole", "no answer came in more than one piece"),
    "no_end_without_end_token": ("end_token", "still ends by itself"),
    "no_log_probs": ("log_probs", "gave no output_log_probs"),
    "no_token_counts": ("max_tokens", "does not count tokens"),
    "not_ready": ("readiness", "is not ready"),
    "one_at_a_time": ("interleaved_streams", "one after the other"),
    "other_text": ("own_tokenizer", r"' the dog' gives another text: 'the dog', not ' the dog'; 2"),
    "other_tokens": ("own_tokenizer", r"' the dog' gives other tokens: \[9\], not \[0, 9\]; 3"),
    "positive_log_probs": ("log_probs", "above 0"),
    "random": ("greedy_determinism", "differs twice alone"),
    "restarts_at_length": ("max_tokens", "is not the beginning of the text"),
    "stop_words_within_tokens": ("stop_words", "unstreamed, stop word"),
    "tensor_missing": ("wire_contract", "tensorrt_llm_bls: input text_input is missing"),
    "tensor_type": ("wire_contract", "input text_input is INT8, not BYTES"),
    "vague_refusals": ("bad_inputs", "ServerFailed: .*something went wrong"),
    "wrong_log_prob_count": ("log_probs", r"\d+ log probabilities for \d+ tokens"),
    "wrong_log_prob_sum": ("log_probs", "the sum is"),
}


# The fake model's own tokenizer, by hand.
PROBES = Probes(
    (
        Probe(" the dog", (0, 9), " the dog"),
        Probe(" went \U0001f600", (3, 19, 20), " went\U0001f600"),
        Probe("\u00e9", (21, 22), "\u00e9"),
    ),
    cleans_up=False,
    without_chat="it has none",
)


def verify(model, *checks, name=BLS, plan=PLAN, probes=PROBES):
    """Results by check name."""
    with model.serve() as server:
        report = run_conformance(server.url, model=name, plan=plan, only=checks, probes=probes)
    return {result.name: result for result in report.results}


def test_every_defect_has_a_check_and_every_check_a_defect():
    assert set(CAUGHT) == set(BREAKS)
    assert {check for check, _ in CAUGHT.values()} == set(CHECKS)


def test_a_model_that_keeps_its_promises_passes_everything():
    results = verify(FakeModel())
    assert {name: result.reason for name, result in results.items() if result.reason} == {}
    assert list(results) == list(CHECKS)


@pytest.mark.parametrize("defect", BREAKS)
def test_each_defect_is_caught(defect):
    name, reason = CAUGHT[defect]
    result = verify(FakeModel(defect), name)[name]
    assert result.status == "failed"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


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
    ("cleans_up", "text", "status"),
    [(True, "x!= y.", "passed"), (False, "x!= y.", "failed"), (True, "x!=y.", "failed")],
)
def test_a_server_that_takes_spaces_out_as_transformers_4_does_is_no_failure(
    cleans_up, text, status, monkeypatch
):
    """NVIDIA's postprocessing does so for Llama 3; the texts are what transformers gives."""
    monkeypatch.setattr("tests.unit.client.fake_model.text_of", lambda _ids: text)
    probes = Probes((Probe(" the dog", (0, 9), "x != y ."),), cleans_up, None)
    found = verify(FakeModel(), "own_tokenizer", probes=probes)["own_tokenizer"]
    assert found.status == status
    if status == "passed":
        assert found.details["with_spaces_taken_out"] == 1


def test_on_the_ensemble():
    results = verify(FakeModel(), name=ENSEMBLE)
    for name in ("stop_words", "stream_equals_whole", "utf8_across_tokens"):
        assert results.pop(name).status == "skipped"
    assert {result.status for result in results.values()} == {"passed"}


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
