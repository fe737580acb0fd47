"""What may be asked for from the middle of a text, and what has to begin anew."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.gateway.engine import Generation
from pipeline.gateway.fleet.going_on import Story, is_greedy, next_attempt

GIVEN = list(range(100, 130))


def attempt(inputs: dict[str, Any], **options: Any) -> Any:
    story = Story(Generation((1, 2, 3), 64, inputs, "id"), list(GIVEN))
    return next_attempt(story, 1, **{"may_continue": True, "overlap": 8, **options})


def words(*lists: list[int]) -> list[int]:
    """The wire's word list, flat: all ids padded with 0, then the end of each word, then -1."""
    ids = [token for word in lists for token in word]
    ends: list[int] = []
    for word in lists:
        ends.append((ends[-1] if ends else 0) + len(word))
    return [*ids, *ends, *[-1] * (len(ids) - len(ends))]


@pytest.mark.parametrize(
    ("inputs", "how"),
    [
        ({}, "continued"),
        ({"runtime_top_k": 1, "temperature": 0.7, "seed": 3}, "continued"),
        ({"temperature": 0.0, "runtime_top_k": 5}, "continued"),
        ({"end_id": 2, "return_log_probs": True, "lora_task_id": 4}, "continued"),
        ({"repetition_penalty": 1.2, "presence_penalty": 0.5}, "continued"),
        ({"stop_words_list": words([7]), "bad_words_list": words([8, 9])}, "continued"),
        # Up to 8 tokens of the word may lie before the border, and those are made again.
        ({"stop_words_list": words([7], list(range(9)))}, "continued"),
        ({"stop_words_list": words([7], list(range(10)))}, "replayed"),
        ({"stop_words_list": [[7], [1]]}, "replayed"),
        ({"temperature": 0.7, "runtime_top_p": 0.9, "seed": 3}, "replayed"),
        ({"runtime_top_k": 40}, "replayed"),
        # One target draws any token then, at temperature 1; the other refuses it.
        ({"temperature": 0.0, "runtime_top_p": 0.9}, "replayed"),
        ({"guided_decoding_guide_type": "json"}, "replayed"),
        ({"len_penalty": 2.0, "presence_penalty": 0.5}, "replayed"),
        ({"an_input_of_tomorrow": 1}, "replayed"),
    ],
)
def test_only_what_means_the_same_for_the_rest_is_continued(inputs: Any, how: str) -> None:
    made = attempt(inputs)
    assert made.how == how
    if how == "continued":
        assert made.asked.prompt == (1, 2, 3, *GIVEN[:22])
        assert made.asked.max_tokens == 64 - 22
        assert made.expected == tuple(GIVEN[22:])
    else:
        assert made.asked.prompt == (1, 2, 3)
        assert made.asked.max_tokens == 64
        assert made.expected == tuple(GIVEN)
    assert made.asked.inputs == inputs
    assert made.asked.request_id != "id"


@pytest.mark.parametrize(("least", "rest"), [(50, 28), (22, 0), (5, 0)])
def test_what_is_there_counts_towards_the_least(least: int, rest: int) -> None:
    assert attempt({"min_tokens": least}).asked.inputs == {"min_tokens": rest}


def test_a_short_text_is_made_again() -> None:
    assert attempt({}, overlap=30).how == "replayed"
    assert attempt({}, overlap=29).how == "continued"
    assert attempt({}, may_continue=False).how == "replayed"


@pytest.mark.parametrize(
    ("inputs", "greedy"),
    [
        ({}, True),
        ({"temperature": 0.8}, True),
        ({"runtime_top_k": 0, "runtime_top_p": 0.0}, True),
        ({"runtime_top_k": 1, "runtime_top_p": 0.5}, True),
        ({"runtime_top_k": 2}, False),
        ({"runtime_top_p": 0.5}, False),
        ({"runtime_top_p": 1.0}, False),
    ],
)
def test_what_is_greedy_on_both_targets(inputs: Any, greedy: bool) -> None:
    """The rows of docs/sampling.md about ``runtime_top_k``, ``runtime_top_p`` and neither."""
    assert is_greedy(inputs) is greedy


def test_a_seed_of_nobodys_wish_may_be_another() -> None:
    """What is drawn next depends on the tokens before it, not on how they were drawn."""
    inputs = {"temperature": 0.7, "runtime_top_p": 0.9, "seed": 3, "min_tokens": 40}
    asked = Generation((1, 2, 3), 64, inputs, "id", seed_is_free=True)
    made = [
        next_attempt(Story(asked, list(GIVEN)), 1, may_continue=True, overlap=8) for _ in range(4)
    ]
    assert {each.how for each in made} == {"continued"}
    assert {each.asked.prompt for each in made} == {(1, 2, 3, *GIVEN)}
    assert {each.asked.max_tokens for each in made} == {34}
    assert {each.asked.inputs["min_tokens"] for each in made} == {10}
    assert all(each.expected == () for each in made)
    seeds = {each.asked.inputs["seed"] for each in made}
    assert len(seeds) == 4
    assert 3 not in seeds
    # Where it has to begin anew, with what it began with.
    again = next_attempt(Story(asked, list(GIVEN)), 2, may_continue=False, overlap=8)
    assert (again.how, again.asked.inputs, again.expected) == ("replayed", inputs, tuple(GIVEN))


def test_words_across_the_border_are_not_missed_where_nothing_is_made_again() -> None:
    inputs = {"temperature": 0.7, "runtime_top_p": 0.9, "seed": 3}
    for listed, how in ((words([7], [8]), "continued"), (words([7, 8]), "replayed")):
        asked = Generation((1,), 64, {**inputs, "stop_words_list": listed}, seed_is_free=True)
        made = next_attempt(Story(asked, list(GIVEN)), 1, may_continue=True, overlap=8)
        assert made.how == how
