"""Text that a model falls into, as models wrote it.

The texts are greedy completions of the demo model and of stories260K-h128: whole, and after damage
to their weights (MLPs or attention zeroed, one projection scaled, noise, a random final norm).
"""

from __future__ import annotations

import pytest

from pipeline.verdict.collapse import repeats_itself

FALLEN_INTO = {
    "one word": "rerere A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A A",
    "few words": " did frost did frost frost are frost are are are frost are are are are are are "
    "are laughed frost are are are are are are are laughedre laughedrere frost frostre laughedrere",
    "a word after a while": " hill. On theara His favourite drawing was the him aunt Her "
    "favouritend rain day mitten mitten mitten mitten mitten mitten mitten mitten mitten "
    "mitten mitten mitten mitten mitten mitten mitten mitten mitten mitten mitten",
    "a clause": " harta was a gift from the tall grass they saw the tall grass they saw the tall "
    "grass they saw the tall grass they saw the tall grass they saw the tall grass they saw",
    "two loops": "re to her to her her to her her to her her to her her to her her to her her to "
    "her her time time time time time time time time time time time time time time time time time",
    "one letter": "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii",
    "two letters": "nderitelplplplplplplplplplplplplplplplplplplplplp",
    "letters and marks": "w w w w w w w w????????????????????????????????????????",
    "no spaces": "ale jurangale jurangale jurangale jurangale jurangale jurang",
    "three letters": "T lo Heimeallimeallimeallimeallallallallallallallallallallallallallallallall",
    "quotes": ' " " " " " " " " " " " " " " " " "',
    "replacement characters": "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd",
    "exclamation marks": "!!!!!!!!!!!!!!!!",
}
WRITTEN = {
    "demo": "uki. Her favourite drawing was the 🌵 on the roof. She always carried a green "
    "whistle, a gift from her aunt. She had a pet wolf called Hazel. One rainy day, Yuki and Hazel",
    "stories": "pastas and put it in the park. They see a big, red ball. They have a big ball. "
    'They have a big ball.\n"Look',
    "stories again": "loved to play with her toys. One day, she went to the park to play with "
    "her friends. They saw a big box with a big box. The box was very",
    "nonsense that is no loop": "wa bisidedanzb? She up happk O ff imeetendendendittleowtzererer? "
    "She up happkvtzV naming0m heou butb",
    "a refrain": "Row, row, row your boat, gently down the stream. Merrily, merrily, "
    "merrily, merrily, life is but a dream.",
    "a table's rule": "| name | bits |\n|------|------|\n| int8 | 8 |\n| int4 | 4 |",
    "digits": "The first digits are 3.14159265358979323846264338327950288",
    "laughter": "Ha ha ha ha! said the miller, and everybody at the table laughed with him.",
    "short": "no no",
    "empty": "",
}


@pytest.mark.parametrize("text", FALLEN_INTO.values(), ids=list(FALLEN_INTO))
def test_texts_that_models_fell_into(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize("text", WRITTEN.values(), ids=list(WRITTEN))
def test_texts_that_say_something(text: str) -> None:
    assert not repeats_itself(text)
