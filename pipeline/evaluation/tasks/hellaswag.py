"""HellaSwag's layout (Zellers et al. 2019), with the text that lm-eval makes of it.

What is done to the text, and in which order, is that of ``lm_eval/tasks/hellaswag/utils.py`` in
lm-eval 0.4.13: brackets are what is left of WikiHow's own markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.tasks.question import Question
from pipeline.evaluation.tasks.rows import index_of, json_rows, text_of, texts_of, wrong

FORM = (
    'Write one object a line: {"activity_label": "Cooking", "ctx_a": "A man cooks.", '
    '"ctx_b": "he", "endings": ["eats.", "sleeps."], "label": 0}'
)
_BRACKETS = re.compile(r"\[.*?\]")


def read_hellaswag(path: Path, most: int | None = None) -> list[Question]:
    """Reads a file of questions.

    Args:
        path: The file.
        most: Bytes that are read of a larger one; None reads all.

    Raises:
        UsageError: It cannot be read, or a line is not in the layout; with the line.
    """
    return list(_questions(path, most))


def _questions(path: Path, most: int | None) -> Iterator[Question]:
    for place, row in json_rows(path, FORM, most):
        label, first, second = (
            text_of(row, key, place, FORM) for key in ("activity_label", "ctx_a", "ctx_b")
        )
        endings = tuple(map(_plain, texts_of(row, "endings", place, FORM)))
        if "" in endings:
            raise wrong(place, "an ending has no text beside what is in brackets", FORM)
        yield Question(
            context=_plain(f"{label}: {first} {second.capitalize()}"),
            choices=endings,
            answer=index_of(row.get("label"), "label", len(endings), place, FORM),
            place=place,
        )


def _plain(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")
