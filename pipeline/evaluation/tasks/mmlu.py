"""MMLU's layout (Hendrycks et al. 2021), with the prompt that lm-eval makes of it.

The prompt is that of ``lm_eval/tasks/mmlu/default`` in lm-eval 0.4.13: a sentence with the subject,
examples of the subject with their letters, the question with its choices, and "Answer:". The
letters are what is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.evaluation.tasks.question import Question
from pipeline.evaluation.tasks.rows import (
    LETTERS,
    checked_text,
    csv_rows,
    index_of,
    json_rows,
    text_of,
    texts_of,
    wrong,
)

JSON_FORM = (
    'Write one object a line: {"question": "1 + 1 =", "choices": ["1", "2", "3", "4"], '
    '"answer": 1, "subject": "sums"}'
)
CSV_FORM = "Write the question, four choices and the right one's letter, as hendrycks' files do"
COLUMNS = 6
SPLITS = ("_dev", "_val", "_test")


@dataclass(frozen=True)
class _Row:
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    place: str

    @property
    def prompt(self) -> str:
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices)]  # noqa: B905
        return "\n".join([self.question.strip(), *lines, "Answer:"])


def read_mmlu(
    path: Path, shots: int = 0, shots_path: Path | None = None, most: int | None = None
) -> list[Question]:
    """Reads questions of one subject or many.

    Args:
        path: A ``.jsonl`` file, a ``.csv`` file or a folder of those.
        shots: How many examples stand in front of each question.
        shots_path: Where the examples are from, of the same kinds.
        most: Bytes that are read of each larger file of questions; None reads all.

    Returns:
        The questions; of a folder, one of each file in turn.

    Raises:
        UsageError: Something cannot be read, or is not in the layout; with file and line. There
            are too few examples of a subject.
    """
    examples: dict[str, list[_Row]] = {}
    if shots and shots_path is not None:
        for row in _rows(shots_path):
            examples.setdefault(row.subject, []).append(row)
    return [
        Question(
            context=_described(row, _first(examples, row, shots, shots_path)),
            choices=tuple(LETTERS[: len(row.choices)]),
            answer=row.answer,
            place=row.place,
        )
        for row in _rows(path, most)
    ]


def files_of(path: Path) -> list[Path]:
    """Lists the files that a task's path stands for: itself, or a folder's CSV files by name.

    Raises:
        UsageError: The folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.csv"))
    if not files:
        raise UsageError(
            "the folder has no .csv file",
            where=str(path),
            fix="Name the folder with hendrycks' files of one split, such as anatomy_val.csv",
        )
    return files


def _described(row: _Row, examples: Sequence[_Row]) -> str:
    head = (
        "The following are multiple choice questions (with answers) about "
        f"{row.subject.replace('_', ' ')}.\n\n"
    )
    shown = (f"{example.prompt} {LETTERS[example.answer]}\n\n" for example in examples)
    return "".join([head, *shown, row.prompt])


def _first(
    examples: dict[str, list[_Row]], row: _Row, shots: int, path: Path | None
) -> Sequence[_Row]:
    found = examples.get(row.subject, [])
    if len(found) < shots:
        raise UsageError(
            f"there are {len(found)} examples of the subject {row.subject}, not {shots}",
            where=str(path),
            why=f"{row.place} asks a question of it",
            fix="Give it more examples, or ask for fewer (shots)",
        )
    return found[:shots]


def _rows(path: Path, most: int | None = None) -> Iterator[_Row]:
    in_turn = zip_longest(*(_file_rows(file, most) for file in files_of(path)))
    return (row for row in chain.from_iterable(in_turn) if row is not None)


def _file_rows(path: Path, most: int | None) -> Iterator[_Row]:
    return (_csv if path.suffix.lower() == ".csv" else _json)(path, most)


def _json(path: Path, most: int | None) -> Iterator[_Row]:
    for place, row in json_rows(path, JSON_FORM, most):
        choices = texts_of(row, "choices", place, JSON_FORM)
        yield _Row(
            question=text_of(row, "question", place, JSON_FORM),
            choices=choices,
            answer=index_of(row.get("answer"), "answer", len(choices), place, JSON_FORM),
            subject=text_of(row, "subject", place, JSON_FORM),
            place=place,
        )


def _csv(path: Path, most: int | None) -> Iterator[_Row]:
    subject = path.stem
    for split in SPLITS:
        subject = subject.removesuffix(split)
    for place, columns in csv_rows(path, most):
        if len(columns) != COLUMNS:
            raise UsageError(
                f"the row has {len(columns)} columns, not {COLUMNS}",
                where=place,
                fix=CSV_FORM,
            )
        question, *choices, letter = columns
        if letter.strip() not in tuple(LETTERS[: len(choices)]):
            raise wrong(place, f"the last column is {letter!r}, not A, B, C or D", CSV_FORM)
        for text in (question, *choices):
            checked_text(text, "a column", place, CSV_FORM)
        yield _Row(question, tuple(choices), LETTERS.index(letter.strip()), subject, place)
