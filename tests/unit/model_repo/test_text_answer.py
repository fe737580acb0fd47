from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm_bls.text_answer import TextAnswer
from tests.unit.model_repo.test_detokenizer import TOKENIZERS
from tests.unit.model_repo.upstream import text_of

TOKENIZER = TOKENIZERS["byte_level"]


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def engine(tokens: list[int], **details: np.ndarray) -> dict[str, np.ndarray]:
    return {"output_ids": np.array([[tokens]], np.int32).reshape(1, 1, -1), **details}


def text(outputs: dict[str, Any] | None) -> str | None:
    return None if outputs is None else text_of(outputs)


def answer(**changes: Any) -> TextAnswer:
    return TextAnswer(TOKENIZER, **{"streaming": True, "max_tokens": 100, **changes})


def test_each_piece_of_text_is_sent_once() -> None:
    made = answer()
    assert text(made.take(engine(ids("Hello")))) == "Hello"
    assert text(made.take(engine(ids(" there")))) == " there"
    assert not made.complete
    assert text(made.finish()) == ""


def test_half_a_character_is_nothing_to_send_yet() -> None:
    made, parts = answer(), ids("é")
    assert made.take(engine(parts[:1])) is None
    assert text(made.take(engine(parts[1:]))) == "é"


def test_the_last_allowed_token_is_left_for_the_final_response() -> None:
    made = answer(max_tokens=3)
    assert text(made.take(engine(ids("ab")))) == "ab"
    assert made.take(engine(ids("c"))) is None
    assert made.complete
    assert not made.stopped
    assert text(made.finish()) == "c"


def test_an_incomplete_character_at_the_end_is_not_swallowed() -> None:
    made = answer(max_tokens=2)
    made.take(engine([*ids("a"), ids("é")[0]]))
    assert text(made.finish()) == "a\ufffd"


def test_a_stop_word_over_several_responses_ends_the_text_before_it() -> None:
    made = answer(stop_words=["END"])
    assert text(made.take(engine(ids("fine E")))) == "fine "
    assert made.take(engine(ids("N"))) is None
    assert made.take(engine(ids("D and more"))) is None
    assert made.stopped
    assert made.complete
    assert text(made.finish()) == ""


def test_a_stop_word_can_be_part_of_the_text() -> None:
    made = answer(stop_words=["END"], include_stop_word=True)
    made.take(engine(ids("fine END and more")))
    assert text(made.finish()) == "fine END"


def test_a_beginning_of_a_stop_word_at_the_end_is_text() -> None:
    made = answer(stop_words=["END"])
    made.take(engine(ids("the E")))
    assert text(made.finish()) == "E"


def test_without_streaming_everything_comes_at_the_end() -> None:
    made = answer(streaming=False, prompt=ids("Say: "), echo=True)
    assert made.take(engine(ids("Hel"))) is None
    assert made.take(engine(ids("lo"))) is None
    assert text(made.finish()) == "Say: Hello"


def test_a_stop_word_in_the_prompt_does_not_count() -> None:
    made = answer(streaming=False, prompt=ids("END "), echo=True, stop_words=["END"])
    made.take(engine(ids("Hello")))
    assert text(made.finish()) == "END Hello"


def test_details_of_held_back_text_are_not_lost() -> None:
    made, parts = answer(), ids("é!")

    def details(value: float) -> dict[str, np.ndarray]:
        return {
            # As the engine sends them: those of all tokens so far.
            "output_log_probs": np.arange(-1, value - 1, -1, np.float32).reshape(1, 1, -1),
            "cum_log_probs": np.array([[value * 10]], np.float32),
            "sequence_length": np.array([[1]], np.int32),
        }

    assert made.take(engine(parts[:1], **details(-1))) is None
    sent = made.take(engine(parts[1:2], **details(-2)))
    assert sent is not None
    assert sent["output_log_probs"].tolist() == [[[-1, -2]]]
    assert sent["cum_log_probs"].tolist() == [[-20]]
    assert "sequence_length" not in sent
    made.take(engine(parts[2:], **details(-3)))
    # What describes the whole answer is in the last response too, and nothing is in two.
    last = made.finish()
    assert set(last) == {"text_output", "cum_log_probs", "output_log_probs"}
    assert last["cum_log_probs"].tolist() == [[-30]]
    assert last["output_log_probs"].shape == (1, 1, 0)


def scored(tokens: list[int], so_far: list[float]) -> dict[str, np.ndarray]:
    """A response of the C++ backend (LlmRequest::createResult)."""
    return engine(
        tokens,
        output_log_probs=np.array([[so_far]], np.float32),
        cum_log_probs=np.array([[sum(so_far)]], np.float32),
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_an_end_id_that_the_engine_left_in_is_no_part_of_the_answer(streaming: bool) -> None:
    """As if the engine had known it as its end id, which it neither sends nor scores."""
    one, two, end = *ids("ab"), *ids("!")
    made = answer(streaming=streaming, max_tokens=3, count_tokens=True, end_ids=(end,))
    sent = [made.take(scored([one], [-0.5])), made.take(scored([two, end], [-0.5, -1.0, -4.0]))]
    assert made.complete
    assert not made.stopped
    sent.append(made.finish())
    responses = [outputs for outputs in sent if outputs is not None]
    assert "".join(text_of(outputs) for outputs in responses) == "ab"
    scores = [outputs["output_log_probs"].reshape(-1).tolist() for outputs in responses]
    assert list(chain.from_iterable(scores)) == [-0.5, -1.0]
    assert responses[-1]["cum_log_probs"].tolist() == [[-1.5]]
    assert sum(outputs["num_output_tokens"].item() for outputs in responses) == 2


def test_an_answer_that_is_nothing_but_an_end_id_is_empty() -> None:
    (end,) = ids("!")
    made = answer(max_tokens=1, count_tokens=True, end_ids=(end,))
    assert made.take(scored([end], [-4.0])) is None
    last = made.finish()
    assert text_of(last) == ""
    assert last["num_output_tokens"].item() == 0
    assert last["output_log_probs"].shape == (1, 1, 0)
    assert last["cum_log_probs"].item() == 0


def test_a_token_that_ends_other_requests_is_text_in_one_that_names_its_own_end() -> None:
    made = answer()
    assert text(made.take(engine(ids("a!")))) == "a!"
    assert not made.complete


def test_answers_count_the_tokens_they_are_made_of() -> None:
    parts = ids("é!")
    facts = {"num_input_tokens": np.array([[7]], np.int32)}
    made = answer(facts=facts, count_tokens=True, max_tokens=len(parts))
    assert made.take(engine(parts[:1])) is None
    sent = made.take(engine(parts[1:2]))
    assert sent is not None
    assert sent["num_output_tokens"].tolist() == [[2]]
    assert made.take(engine(parts[2:])) is None  # the last one waits for the end
    last = made.finish()
    assert (last["num_input_tokens"].tolist(), last["num_output_tokens"].tolist()) == ([[7]], [[1]])


def streamed(made: TextAnswer, *texts: str) -> list[str]:
    """The texts of the responses, the last one included."""
    sent = [made.take(engine(ids(part))) for part in texts]
    return [text_of(outputs) for outputs in [*sent, made.finish()] if outputs is not None]


def test_an_accumulated_stream_has_the_whole_text_so_far_in_each_response() -> None:
    """What end_to_end_grpc_client.py --overwrite-output-text has at the end is the last one."""
    texts = streamed(answer(accumulate=True), "Once", " upon", " a time")
    assert texts == ["Once", "Once upon", "Once upon a time", "Once upon a time"]


def test_an_accumulated_stream_ends_before_the_stop_word() -> None:
    made = answer(accumulate=True, stop_words=["END"])
    assert streamed(made, "one ", "two E", "ND three") == ["one ", "one two ", "one two "]


def test_accumulation_leaves_an_answer_in_one_response_alone() -> None:
    made = answer(accumulate=True, streaming=False, prompt=ids("Say: "), echo=True)
    assert streamed(made, "Hel", "lo") == ["Say: Hello"]


def test_counts_and_log_probabilities_do_not_accumulate() -> None:
    """In upstream's decode.py only the tokens to decode are joined."""
    made = answer(accumulate=True, count_tokens=True)
    scores = [np.full((1, 1, count), -1, np.float32) for count in (1, 2)]
    sent = [
        made.take(engine(ids(letter), output_log_probs=so_far))
        for letter, so_far in zip("ab", scores, strict=True)
    ]
    assert [outputs["num_output_tokens"].tolist() for outputs in sent if outputs] == [[[1]], [[1]]]
    assert [outputs["output_log_probs"].tolist() for outputs in sent if outputs] == [[[[-1]]]] * 2


def test_every_response_has_the_newest_performance_metrics() -> None:
    """As upstream's engine sends them with each token; a client reads them from each response."""

    def metrics(value: int) -> dict[str, np.ndarray]:
        return {
            name: np.array([[value]], np.int64)
            for name in ("kv_cache_alloc_new_blocks", "last_token_time_ns", "acceptance_rate")
        }

    made = answer()
    parts = ids("aé")
    sent = [made.take(engine(parts[:1], **metrics(1)))]
    assert made.take(engine(parts[1:2], **metrics(2))) is None
    sent += [made.take(engine(parts[2:], **metrics(3))), made.finish()]
    for name in metrics(0):
        values = [outputs[name][0][0] for outputs in sent if outputs is not None]
        assert values == [1, 3, 3]


def test_a_stop_word_in_the_middle_still_leaves_the_metrics_in_the_last_response() -> None:
    made = answer(stop_words=["END"])
    made.take(engine(ids("one END"), kv_cache_alloc_new_blocks=np.array([[4]], np.int32)))
    assert made.stopped
    assert made.finish()["kv_cache_alloc_new_blocks"].tolist() == [[4]]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("include", [False, True])
def test_what_follows_a_stop_word_is_not_counted_however_many_tokens_come(
    size: int, include: bool
) -> None:
    tokens = ids("fine END and more")
    scores = [-0.5 * number for number in range(len(tokens))]
    made = answer(stop_words=["END"], include_stop_word=include, count_tokens=True)
    whole = len(ids("fine END"))
    responses = []
    for end in range(size, len(tokens) + size, size):
        so_far = np.array(scores[:end], np.float32)
        response = made.take(
            engine(
                tokens[end - size : end],
                output_log_probs=so_far.reshape(1, 1, -1),
                cum_log_probs=np.array([[so_far.sum()]], np.float32),
            )
        )
        if made.complete:
            break
        responses += [response] if response else []
    responses.append(made.finish())
    assert made.stopped
    assert "".join(map(text_of, responses)) == ("fine END" if include else "fine ")
    assert sum(one["num_output_tokens"].item() for one in responses) == whole
    sent = [score for one in responses for score in one["output_log_probs"].reshape(-1).tolist()]
    assert sent == scores[:whole]
    assert responses[-1]["cum_log_probs"].item() == pytest.approx(sum(scores[:whole]))
