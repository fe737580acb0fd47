from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm.generation import Generation
from model_repo.tensorrt_llm.request import GenerationRequest, Guide, RequestError


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[float], bool]] = []

    def scheduled(self, reused_blocks: int) -> None: ...

    def prompt_scored(self, log_probs: list[float]) -> None:
        self.prompt_log_probs = log_probs

    def tokens(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        self.calls.append((ids, log_probs, last))

    def fail(self, error: RequestError) -> None:
        raise error


def generation(**changes: Any) -> tuple[Generation, Heard]:
    heard = Heard()
    request = GenerationRequest(
        **{"prompt": np.array([9, 8]), "max_new_tokens": 5, "end_id": 2, **changes}
    )
    return Generation(request, heard), heard


def test_an_end_id_ends_the_text_and_is_not_part_of_it() -> None:
    made, heard = generation(log_probs=True)
    assert not made.accept([5], [-1.0])
    assert made.accept([2], [-0.5])
    assert heard.calls == [([5], [-1.0], False), ([], [], True)]


def test_what_follows_the_end_is_dropped() -> None:
    made, heard = generation(log_probs=True)
    assert made.accept([5, 2, 6], [-1.0, -2.0, -3.0])
    assert heard.calls == [([5], [-1.0], True)]


def test_the_last_token_allowed_ends_the_text() -> None:
    made, heard = generation(max_new_tokens=2)
    assert not made.accept([5], [])
    assert made.accept([6], [])
    assert heard.calls[-1] == ([6], [], True)


@pytest.mark.parametrize(
    ("stop_words", "kept"),
    [
        (((6, 7),), [5, 6, 7]),
        (((5,),), [5]),
        (((7, 3), (6, 7)), [5, 6, 7]),
        (((5, 7),), [5, 6, 7, 3, 4]),
        (((5, 6, 7, 3), (7, 3), (6, 3)), [5, 6, 7, 3]),
        (((9, 8, 5),), [5, 6, 7, 3, 4]),  # the prompt is not looked at
    ],
)
def test_stop_words_match_across_steps_and_stay(
    stop_words: tuple[tuple[int, ...], ...], kept: list[int]
) -> None:
    made, _ = generation(stop_words=stop_words)
    for token in (5, 6, 7, 3, 4):
        if made.accept([token], []):
            break
    assert made.generated == kept


def test_scores_are_only_passed_on_when_asked_for() -> None:
    made, heard = generation()
    made.accept([5], [-1.0])
    assert heard.calls == [([5], [], False)]


def test_what_was_generated_becomes_the_prompt_of_a_restart() -> None:
    made, _ = generation()
    assert made.prompt().tolist() == [[9, 8]]
    made.accept([5, 6], [])
    prompt = made.prompt()
    assert (prompt.tolist(), prompt.dtype) == ([[9, 8, 5, 6]], np.int64)
    assert made.remaining == 3


REGEX = Guide("regex", "a+", frozenset((2,)))


def test_under_a_guide_what_it_had_is_made_again_and_sent_once() -> None:
    """The engine follows a guide from its first token on, so none of them is part of a prompt."""
    made, heard = generation(guide=REGEX, log_probs=True)
    assert not made.accept([5, 6], [-1.0, -2.0])
    made.evicted()
    assert made.prompt().tolist() == [[9, 8]]
    assert made.kept == 0
    assert not made.accept([5], [-1.0])
    assert made.computes_prompt, "it has no more than before"
    assert not made.accept([6, 7], [-2.0, -3.0])
    assert not made.computes_prompt
    assert made.accept([2], [-4.0])
    assert heard.calls == [
        ([5, 6], [-1.0, -2.0], False),
        ([7], [-3.0], False),
        ([], [], True),
    ]


def test_without_a_guide_what_it_had_is_part_of_the_prompt() -> None:
    made, heard = generation()
    made.accept([5, 6], [])
    made.evicted()
    assert made.prompt().tolist() == [[9, 8, 5, 6]]
    assert made.kept == 2
    made.accept([7], [])
    assert [ids for ids, _, _ in heard.calls] == [[5, 6], [7]]


def test_other_tokens_the_second_time_are_an_error() -> None:
    made, _ = generation(guide=REGEX)
    made.accept([5, 6], [])
    made.evicted()
    with pytest.raises(RequestError, match="made other tokens of it the second time"):
        made.accept([5, 7], [])


def test_a_token_that_no_guide_allows_is_an_error() -> None:
    made, heard = generation(guide=REGEX)
    made.textless = frozenset((0, 2))
    made.accept([5], [])
    with pytest.raises(RequestError, match="no token of this model can follow it"):
        made.accept([0], [])
    assert len(heard.calls) == 1


def test_the_prompt_that_comes_back_is_no_part_of_the_text() -> None:
    made, heard = generation(prompt=np.array([9, 8, 7]), prompt_log_probs=True, log_probs=True)
    assert made.echoes
    assert not made.accept([9, 8], [1.0, -0.25])
    assert heard.calls == []
    assert not made.accept([7, 5], [-0.5, -2.0])
    assert heard.prompt_log_probs == [-0.25, -0.5]
    assert heard.calls == [([5], [-2.0], False)]
    assert not made.echoes
    assert not made.accept([6], [-3.0])
    assert heard.calls[-1] == ([6], [-3.0], False)


def test_what_is_generated_has_scores_only_when_asked_for() -> None:
    made, heard = generation(prompt_log_probs=True, max_new_tokens=1)
    assert made.accept([9, 8, 5], [1.0, -0.25, -2.0])
    assert heard.prompt_log_probs == [-0.25]
    assert heard.calls == [([5], [], True)]


def test_a_prompt_dropped_halfway_is_scored_anew() -> None:
    made, heard = generation(prompt_log_probs=True)
    assert not made.accept([9], [1.0])
    made.evicted()
    assert made.echoes
    assert not made.accept([9, 8, 5], [1.0, -0.25, -2.0])
    assert heard.prompt_log_probs == [-0.25]
    # Later its prompt has what was generated, and its own scores are out already.
    made.evicted()
    assert not made.echoes
    assert not made.accept([6], [-3.0])
    assert [ids for ids, _, _ in heard.calls] == [[5], [6]]


@pytest.mark.parametrize(
    ("ids", "log_probs"),
    [
        ([9, 8, 5], [-0.25, -2.0]),  # what was in the cache has none
        ([9, 8, 5], [-2.0]),
        ([9, 9, 5], [1.0, -0.25, -2.0]),
    ],
)
def test_another_prompt_or_too_few_scores_are_an_error(
    ids: list[int], log_probs: list[float]
) -> None:
    made, _ = generation(prompt_log_probs=True)
    with pytest.raises(RequestError, match=r"gave \d log-probabilities for 3 tokens") as caught:
        made.accept(ids, log_probs)
    assert caught.value.code == "INTERNAL"
