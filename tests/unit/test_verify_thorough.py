"""The thorough checks pass on a model that keeps its promises and fail on a broken one."""

from __future__ import annotations

import pytest

from pipeline.triton.contract import BLS, CPP_BACKEND, ENGINE, ENSEMBLE, MODELS, scoring_prompts
from pipeline.verify import CHECKS, Plan, run_conformance
from pipeline.verify.cases import ENGINE_ALONE, ENGINE_CASES, ON_ENGINE, TEXT_CASES
from pipeline.verify.check_parameters import parameter_checks
from tests.unit.client.fake_model import MAX_SEQ_LEN, THOROUGH_BREAKS, FakeModel
from tests.unit.fake_http import HttpSide

PLAN = Plan(streams=12, max_tokens=24, long_tokens=480, patience=10.0)
PARAMETERS = [check.name for check in parameter_checks()]

# What each defect must be caught by, and a part of what must be said about it.
CAUGHT = {
    "answers_a_megabyte": ("large_prompt", "the refusal repeats the prompt"),
    "fails_at_zero": ("max_tokens_zero", "max_tokens 0 is answered with a fault of the server"),
    "forgets_the_other_type": ("input_seed", "seed as INT32 was answered with"),
    "ignores_min_tokens": ("input_min_tokens", "must be so that so many tokens come before an end"),
    "one_seed": ("seeds", "6 seeds give one text"),
    "other_log_probs": ("log_probs_alone", "token 0 has the log probability .* alone"),
    "refuses_what_is_offered": ("input_pad_id", "pad_id was refused: .*something is not supported"),
    "runs_on": ("client_cancels", "the slot was free after|the request ran on"),
    "slow_reuse": ("kv_reuse", "the first token took .* times as long"),
    "streams_other_ids": ("every_model_streams", "tensorrt_llm: streamed"),
    "takes_a_token_more": ("prompt_limit", "ensemble: one more than .* was answered"),
    "takes_any_bytes": ("odd_prompts", "a prompt of the bytes .* was answered"),
    "vague_when_full": ("queue_full", "failed otherwise than as refused for a full queue"),
}


def verify(model, *checks, backend="python", plan=PLAN):
    """Results by check name."""
    with model.serve() as server, HttpSide(model, server) as side:
        server.backend = backend
        report = run_conformance(
            server.url, plan=plan, only=checks, http=side.url, metrics=f"{side.url}/metrics"
        )
    return {result.name: result for result in report.results}


def test_every_input_of_the_wire_contract_has_a_case_and_every_case_a_check():
    text = {tensor.name for model in (BLS, ENSEMBLE) for tensor in MODELS[model].inputs}
    engine = {tensor.name for tensor in scoring_prompts(MODELS[ENGINE]).inputs}
    assert set(TEXT_CASES) == text
    assert set(ENGINE_CASES) == engine
    checked = [t for name in TEXT_CASES for t in ON_ENGINE.get(name, (name,))]
    checked += [t for tensors in ENGINE_ALONE.values() for t in tensors]
    assert set(checked) - {"add_special_tokens"} == engine
    assert {name for name in PARAMETERS if name.startswith("input_")} == {
        f"input_{name}" for name in text
    }


@pytest.fixture(scope="module")
def right():
    """What all thorough checks say of a right model."""
    slow = ("client_dies", "client_deadline", "http_disconnects")
    thorough = [name for name, check in CHECKS.items() if check.thorough and name not in slow]
    return verify(FakeModel(most_requests=40), *thorough)


def test_a_right_model_fails_none(right):
    assert {r.name: r.reason for r in right.values() if r.status == "failed"} == {}


def test_what_it_cannot_do_is_skipped_with_its_words(right):
    skipped = {name: result.reason for name, result in right.items() if result.status == "skipped"}
    assert "bad_words is not supported" in skipped["input_bad_words"]
    assert "lora_task_id is not supported" in skipped["input_lora_task_id"]
    assert "has no input return_prompt_log_probs" in skipped["engine_prompt_scores"]


def test_each_input_is_asked_rightly_and_wrongly_on_each_model(right):
    seen = right["input_temperature"].details["models"]
    assert set(seen) == {BLS, ENSEMBLE, ENGINE}
    for said in seen.values():
        assert said["temperature"]["right"].startswith("answered")
        assert set(said["temperature"]["wrong"]) == {"as INT32", "-1.0"}
        assert all("temperature" in words for words in said["temperature"]["wrong"].values())
    asked = {name for name in PARAMETERS if right[name].status == "passed"}
    assert len(asked) > 25


def test_every_defect_has_a_check():
    assert set(CAUGHT) == set(THOROUGH_BREAKS)


@pytest.mark.parametrize("defect", [d for d in THOROUGH_BREAKS if d != "runs_on"])
def test_each_defect_is_caught(defect):
    name, reason = CAUGHT[defect]
    result = verify(FakeModel(defect, most_requests=40), name)[name]
    assert result.status == "failed", result.reason
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


def test_a_type_that_is_not_looked_at_is_found_for_every_input():
    results = verify(FakeModel("forgets_the_other_type"), *PARAMETERS)
    unnoticed = {name for name, result in results.items() if result.status != "failed"}
    # The model here does not take these in another way than by their bytes.
    assert unnoticed <= {"input_text_input", "engine_prompt_scores"} | {
        name for name in PARAMETERS if results[name].status == "skipped"
    }
    assert len(results) - len(unnoticed) > 30


def test_a_client_that_leaves_has_to_make_room(monkeypatch):
    monkeypatch.setattr("pipeline.verify.check_leaving._ATTEMPTS", 1)
    monkeypatch.setattr("pipeline.verify.check_leaving._STALL_S", 60.0)
    # A request lasts longer than the check waits to see it run, together with what it allows.
    monkeypatch.setattr("tests.unit.client.fake_model.STEP_S", 2.0 / MAX_SEQ_LEN)
    for name in ("client_cancels", "http_disconnects"):
        result = verify(FakeModel("runs_on"), name)[name]
        assert result.status == "failed", (name, result.reason)
        with pytest.raises(AssertionError, match=CAUGHT["runs_on"][1]):
            raise AssertionError(result.reason)


def test_without_its_addresses_http_and_metrics_are_not_called_right():
    names = ("http_generate", "metrics_move", "client_cancels", "http_disconnects")
    with FakeModel().serve() as server:
        report = run_conformance(server.url, plan=PLAN, only=names)
    said = {result.name: (result.status, result.reason) for result in report.results}
    assert {status for status, _ in said.values()} == {"skipped"}
    assert "--http URL" in said["http_generate"][1]
    assert "--metrics URL" in said["metrics_move"][1]


@pytest.mark.parametrize(
    ("broken", "name", "reason"),
    [
        ("other_text", "http_generate", "over HTTP, .* over gRPC"),
        ("as_500", "http_generate", "a negative temperature is answered with .*500"),
        ("no_family", "metrics_move", "there is no nv_inference_count"),
        ("stands_still", "metrics_move", "did not grow by 3"),
        ("never_active", "metrics_move", "active.* did not move"),
    ],
)
def test_defects_of_http_and_metrics_are_caught(broken, name, reason, monkeypatch):
    monkeypatch.setattr("pipeline.verify.check_front._PATIENCE_S", 0.3)
    model = FakeModel()
    with model.serve() as server, HttpSide(model, server, broken) as side:
        report = run_conformance(
            server.url, plan=PLAN, only=[name], http=side.url, metrics=f"{side.url}/metrics"
        )
    (result,) = report.results
    assert result.status == "failed", result.reason
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_an_answer_that_was_whole_before_the_metrics_were_read_is_asked_for_again(
    late, monkeypatch
):
    looks = []

    def seen(context):
        looks.append(None)
        return len(looks) > late

    monkeypatch.setattr("pipeline.verify.check_front._seen_active", seen)
    result = verify(FakeModel(), "metrics_move")["metrics_move"]
    assert result.status == ("passed" if late < 3 else "failed"), result.reason
    assert len(looks) == min(late + 1, 3)


def test_what_may_end_everybodys_requests_is_not_sent_to_a_bare_executor(monkeypatch):
    """NVIDIA's own preprocessing looks at none of it."""
    pre = MODELS["preprocessing"]
    bare = [tensor for tensor in pre.inputs if tensor.name != "BEAM_WIDTH"]
    monkeypatch.setitem(MODELS, "preprocessing", type(pre)(pre.name, tuple(bare), pre.outputs))
    result = verify(FakeModel(), "input_embedding_bias_words", backend=CPP_BACKEND)
    (found,) = result.values()
    assert (found.status, "may end everybody's requests" in found.reason) == ("skipped", True)
