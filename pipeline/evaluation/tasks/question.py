"""One multiple-choice question, as a model gets it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A text and what may go on with it.

    Attributes:
        context: What stands before each choice, without the space between them.
        choices: Two or more texts.
        answer: Index of the right one.
        place: Where it is from: ``file:line``.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    place: str
