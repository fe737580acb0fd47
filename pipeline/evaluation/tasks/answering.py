"""The share of a task's questions that a model answers right, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.evaluation.bootstrap import change_estimate, share_estimate
from pipeline.evaluation.scoring import Model
from pipeline.evaluation.tasks.encoding import Pair, encode_pair
from pipeline.evaluation.tasks.likelihood import Likelihood, log_likelihoods
from pipeline.evaluation.tasks.question import Question
from pipeline.evaluation.tasks.reading import read_questions
from pipeline.progress import Progress
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.schema import Recipe
from pipeline.source.tokens import PairTokenizer
from pipeline.verdict.estimate import Estimate

# Layouts whose choices are texts of their own, which a long one must not lose by its length.
BY_CHARACTER = frozenset({"hellaswag"})


@dataclass(frozen=True)
class TaskScore:
    """What two models made of one task.

    Attributes:
        name: The task's name.
        layout: Its layout.
        chance: The accuracy of guessing.
        source: Whether the source answered each question right.
        other: The same of the other model.
    """

    name: str
    layout: str
    chance: float
    source: NDArray[np.bool_]
    other: NDArray[np.bool_]

    @property
    def accuracy(self) -> Estimate:
        """Estimates the other model's accuracy."""
        return share_estimate(self.other, np.ones(len(self.other)))

    @property
    def accuracy_change(self) -> Estimate:
        """Estimates the other model's accuracy less the source's, on the same questions."""
        return change_estimate(self.source, self.other)

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers as JSON values."""
        return {
            "name": self.name,
            "layout": self.layout,
            "rows": len(self.other),
            "chance": self.chance,
            "source_accuracy": float(self.source.mean()),
            "accuracy": self.accuracy.as_dict(),
            "accuracy_change": self.accuracy_change.as_dict(),
        }


@dataclass(frozen=True)
class _Models:
    tokenizer: PairTokenizer
    source: Model
    other: Model
    longest: int
    vocabulary: int


def score_tasks(
    recipe: Recipe,
    tokenizer: PairTokenizer,
    source: Model,
    other: Model,
    *,
    longest: int,
    vocabulary: int,
    progress: Progress,
) -> list[TaskScore]:
    """Lets two models answer every task of the recipe.

    Args:
        recipe: The recipe.
        tokenizer: The source's.
        source: The source model.
        other: The checkpoint or the engine.
        longest: The most tokens that both models take at once; longer contexts lose their
            beginning.
        vocabulary: The source's.
        progress: Where it reports.

    Raises:
        UsageError: A file is not in its layout, or a choice cannot be scored; with the line.
    """
    models = _Models(tokenizer, source, other, longest, vocabulary)
    tasks = recipe.evaluate.tasks if recipe.evaluate else []
    return [_score(task, models, progress) for task in tasks]


def choices(questions: Sequence[Question], nats: Sequence[float], layout: str) -> list[int | None]:
    """Tells which choice of each question is the most likely one.

    Args:
        questions: The questions.
        nats: The log-likelihood of every choice of every question, in order.
        layout: ``hellaswag`` divides it by the choice's characters (lm-eval's ``acc_norm``),
            ``mmlu`` takes it as it is (``acc``).

    Returns:
        Its index, the first of equals; None where a likelihood is not a number, as a broken model
        has them.
    """
    ends = accumulate((len(question.choices) for question in questions), initial=0)
    found: list[int | None] = []
    for question, (start, end) in zip(questions, pairwise(ends), strict=True):
        values = np.array(nats[start:end])
        if layout in BY_CHARACTER:
            values /= [len(choice) for choice in question.choices]
        found.append(None if np.isnan(values).any() else int(values.argmax()))
    return found


def _score(task: TaskSection, models: _Models, progress: Progress) -> TaskScore:
    questions = read_questions(task)
    pairs = [pair for question in questions for pair in _pairs(question, models)]
    scorers = (models.source, models.other)
    with progress.task(f"scoring {len(pairs)} choices of {task.name}", len(pairs)) as bar:
        found = log_likelihoods(scorers, pairs, models.vocabulary, bar.advance)
    right = (_right(questions, likelihoods, task.layout) for likelihoods in found)
    chance = math.fsum(1.0 / len(question.choices) for question in questions) / len(questions)
    return TaskScore(task.name, task.layout, chance, *right)


def _right(
    questions: Sequence[Question], likelihoods: Sequence[Likelihood], layout: str
) -> NDArray[np.bool_]:
    chosen = choices(questions, [likelihood.nats for likelihood in likelihoods], layout)
    return np.array([c == q.answer for c, q in zip(chosen, questions, strict=True)])


def _pairs(question: Question, models: _Models) -> list[Pair]:
    try:
        # A space stands between a context and each choice (lm-eval's target_delimiter).
        return [
            encode_pair(models.tokenizer, question.context, f" {choice}", models.longest)
            for choice in question.choices
        ]
    except UsageError as error:
        raise UsageError(
            error.what,
            where=question.place,
            why="So this model cannot tell how likely the choice is",
            fix="Take the question out of the file",
        ) from error
