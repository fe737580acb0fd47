from __future__ import annotations

import random

import pytest

from model_repo.tensorrt_llm_bls.stop_words import StopWordFilter


def first_end(text: str, words: list[str], *, include: bool) -> str:
    """Reads the text letter by letter and ends it at the first word that is complete."""
    for end in range(1, len(text) + 1):
        complete = [word for word in words if word and text[:end].endswith(word)]
        if complete:
            return text[:end] if include else text[: end - max(map(len, complete))]
    return text


@pytest.mark.parametrize("seed", range(300))
def test_any_split_gives_what_reading_letter_by_letter_gives(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("ab ") for _ in range(draw.randint(0, 40)))
    words = ["".join(draw.choice("ab ") for _ in range(draw.randint(0, 5))) for _ in range(3)]
    include = draw.random() < 0.5
    stop = StopWordFilter(words, include_word=include)
    passed, start = "", 0
    while start < len(text):
        size = draw.randint(1, 6)
        passed += stop.push(text[start : start + size])
        assert first_end(text, words, include=include).startswith(passed)
        start += size
    assert passed + stop.finish() == first_end(text, words, include=include)


def test_only_what_may_become_a_word_is_held_back() -> None:
    stop = StopWordFilter(["\n\nUser:"])
    assert stop.push("Hello\n") == "Hello"
    assert stop.push("there") == "\nthere"
    assert stop.push("\n\nUse") == ""
    assert stop.push("ful") == "\n\nUseful"
    assert stop.push("\n\nUser") == ""
    assert not stop.stopped
    assert stop.push(": hi") == ""
    assert stop.stopped
    assert stop.push("more") == ""
    assert stop.finish() == ""


def test_without_words_everything_passes() -> None:
    stop = StopWordFilter(["", ""])
    assert stop.push("text") == "text"
    assert not stop.stopped
