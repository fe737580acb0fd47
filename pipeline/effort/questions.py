"""How much there is to compute of multiple-choice tasks, as far as their files are read for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.effort.work import MOST_TEXT_BYTES, Texts, at_least, rows_together, tokens_of
from pipeline.errors import UsageError
from pipeline.evaluation.tasks.mmlu import files_of
from pipeline.evaluation.tasks.question import Question
from pipeline.evaluation.tasks.reading import read_questions
from pipeline.models.facts import ModelFacts
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.schema import Recipe

# Of a task's questions. Some thousands of them tell what the rest is like, and plan is to be quick:
# five thousand short ones of MMLU take a tenth of a second.
MOST_BYTES = 512 << 10


@dataclass(frozen=True)
class Seen:
    """What a model sees of a task.

    Attributes:
        lengths: Tokens of each text that is unlike the others, of one or more.
        times: How many times as many there are, where not all were read.
        whole: Whether all files were read, so that each of the texts is among what is asked.
    """

    lengths: tuple[int, ...]
    times: float = 1.0
    whole: bool = True


Asking = Callable[[TaskSection], Seen | None]
"""What a model sees of a task; None of one of which nothing is known."""


def asked(recipe: Recipe, facts: ModelFacts, asking: Asking) -> tuple[Texts, ...]:
    """Returns what is computed of each task of which something is known.

    Args:
        recipe: With a section ``evaluate``.
        facts: The model's facts.
        asking: Of :class:`TaskTexts`.
    """
    tasks = recipe.evaluate.tasks if recipe.evaluate else []
    return tuple(_texts(seen, facts) for task in tasks if (seen := asking(task)))


def _texts(seen: Seen, facts: ModelFacts) -> Texts:
    """A task in batches; what is longer than the model takes loses its beginning."""
    most = facts.max_position_embeddings
    lengths = sorted((min(length, most) for length in seen.lengths), reverse=True)
    widths = list(_batches(lengths, facts.vocab_size))
    sure = min(at_least(max(seen.lengths)), most) if seen.whole else 0
    return Texts(
        rows=round(len(lengths) * seen.times),
        tokens=round(sum(widths) * seen.times),
        longest=lengths[0],
        batch=rows_together(lengths[0], facts.vocab_size),
        sure_batch=sure,
        widest=max(widths),
    )


def _batches(lengths: Sequence[int], vocabulary: int) -> Iterator[int]:
    """The tokens of each batch, whose rows are filled up to its longest; the longest rows first."""
    start = 0
    while start < len(lengths):
        rows = min(rows_together(lengths[start], vocabulary), len(lengths) - start)
        yield rows * lengths[start]
        start += rows


class TaskTexts:
    """Estimates the tokens of what a model sees of tasks from its bytes; a file is read once.

    Of questions of more than :data:`MOST_BYTES` the beginnings of the files stand for the rest.
    """

    def __init__(self) -> None:
        self._known: dict[str, Seen | None] = {}

    def __call__(self, task: TaskSection) -> Seen | None:
        """Returns what is seen.

        Args:
            task: The task. Nothing is known of one whose files are not there or not in its layout,
                or whose examples are of more than :data:`.work.MOST_TEXT_BYTES`.
        """
        key = task.model_dump_json(exclude={"name"})
        if key not in self._known:
            self._known[key] = _read(task)
        return self._known[key]


def _read(task: TaskSection) -> Seen | None:
    try:
        if task.shots_file and sum(_sizes(task.shots_file)) > MOST_TEXT_BYTES:
            return None
        sizes = _sizes(task.file)
        most = MOST_BYTES // len(sizes) if sum(sizes) > MOST_BYTES else None
        questions = read_questions(task, most)
    except (OSError, UsageError):
        return None
    read = sum(sizes if most is None else (min(size, most) for size in sizes))
    there = len(questions) * sum(sizes) / read
    times = min(there, task.rows or there) / len(questions)
    return Seen(tuple(map(tokens_of, _seen(questions))), times, most is None)


def _sizes(path: str) -> list[int]:
    return [file.stat().st_size for file in files_of(Path(path))]


def _seen(questions: Sequence[Question]) -> set[str]:
    """The texts without a choice's last token, which no model sees: of a letter, all of it."""
    return {
        question.context if len(choice) == 1 else f"{question.context} {choice}"
        for question in questions
        for choice in question.choices
    }
