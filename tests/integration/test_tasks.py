"""Multiple-choice questions: every answer is the one that lm-eval itself gave.

tests/data/lm-eval/expected.json was written by lm-eval (record.py there) with its own tasks, text
preprocessing, tokenization and Hugging Face model; the questions are in ../shared/data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from pipeline.errors import UsageError
from pipeline.evaluation.scoring import scorer_of
from pipeline.evaluation.tasks.answering import choices, score_tasks
from pipeline.evaluation.tasks.encoding import encode_pair
from pipeline.evaluation.tasks.likelihood import log_likelihoods
from pipeline.evaluation.tasks.reading import read_questions
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe, TaskSection
from pipeline.reference.source import load_source
from pipeline.source.texts import load_tokenizer
from tests.conftest import DEMO_MODEL, PROJECT

SHARED_DATA = PROJECT.parent / "shared" / "data"
LM_EVAL = PROJECT / "tests" / "data" / "lm-eval"
VOCABULARY, LONGEST = 1024, 1024
SUBJECTS = ("anatomy", "formal_logic", "high_school_world_history")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is not here")
    found: dict[str, Any] = json.loads((LM_EVAL / "expected.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def scorer() -> Any:
    return scorer_of(load_source(DEMO_MODEL), torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(DEMO_MODEL)


def compare(task: TaskSection, expected: dict[str, Any], scorer: Any, tokenizer: Any) -> None:
    questions = read_questions(task)
    pairs = [
        encode_pair(tokenizer, question.context, f" {choice}", LONGEST)
        for question in questions
        for choice in question.choices
    ]
    (found,) = log_likelihoods([scorer], pairs, VOCABULARY)
    nats = [likelihood.nats for likelihood in found]
    assert len(questions) == len(expected["rows"])
    theirs = [value for row in expected["rows"] for value in row["log_likelihoods"]]
    assert choices(questions, nats, task.layout) == [row["choice"] for row in expected["rows"]]
    np.testing.assert_allclose(nats, theirs, rtol=1e-5, atol=2e-4)
    right = [
        choice == question.answer
        for choice, question in zip(choices(questions, nats, task.layout), questions, strict=True)
    ]
    assert np.mean(right) == pytest.approx(expected["accuracy"], abs=1e-12)


@pytest.mark.slow
def test_hellaswag_is_answered_as_lm_eval_does(
    recorded: dict[str, Any], scorer: Any, tokenizer: Any
) -> None:
    file = SHARED_DATA / "hellaswag_val_1000.jsonl"
    expected = recorded["hellaswag"]
    rows = [json.loads(line)["ind"] for line in file.read_text("utf-8").splitlines()[:200]]
    assert [row["ind"] for row in expected["rows"]] == rows
    task = TaskSection(name="h", file=str(file), layout="hellaswag", rows=200)
    compare(task, expected, scorer, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu_is_answered_as_lm_eval_does(
    recorded: dict[str, Any], scorer: Any, tokenizer: Any, subject: str, shots: int
) -> None:
    """With five examples the prompts are up to three times as long as the model takes."""
    (expected,) = (record for record in recorded[subject] if record["shots"] == shots)
    mmlu = SHARED_DATA / "mmlu"
    task = TaskSection(
        name="m",
        file=str(mmlu / "val" / f"{subject}_val.csv"),
        layout="mmlu",
        shots=shots,
        shots_file=str(mmlu / "dev" / f"{subject}_dev.csv") if shots else None,
    )
    compare(task, expected, scorer, tokenizer)
