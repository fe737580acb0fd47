"""Multiple-choice questions: every answer is the one that lm-eval itself gave.

The files of tests/data/lm-eval were written by lm-eval (record.py there) with its own tasks, text
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
from pipeline.evaluation.scoring import Scorer, scorer_of
from pipeline.evaluation.tasks.answering import TaskScore, choices, score_tasks
from pipeline.evaluation.tasks.encoding import encode_pair
from pipeline.evaluation.tasks.likelihood import log_likelihoods
from pipeline.evaluation.tasks.reading import read_questions
from pipeline.models.facts import ModelFacts
from pipeline.progress import Silent
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.schema import Recipe
from pipeline.reference.source import load_source
from pipeline.source.tokens import load_tokenizer
from pipeline.stages.base import StageContext
from pipeline.stages.evaluate import RESULT_NAME, STAGE
from pipeline.store.artifact import Artifact
from tests.conftest import DEMO_MODEL, PROJECT, SHARED_MODELS
from tests.integration.quantize_support import run_stage

SHARED_DATA = PROJECT.parent / "shared" / "data"
HELLASWAG = SHARED_DATA / "hellaswag_val_1000.jsonl"
LM_EVAL = PROJECT / "tests" / "data" / "lm-eval"
MODELS = {"tiny_llama": DEMO_MODEL, "stories260K-h128": SHARED_MODELS / "stories260K-h128"}
MMLU = [("anatomy", 0), ("formal_logic", 5), ("high_school_world_history", 0)]

pytestmark = pytest.mark.skipif(not HELLASWAG.is_file(), reason="../shared/data is not here")


class Model:
    """A model, its tokenizer, and what lm-eval recorded of it."""

    def __init__(self, name: str) -> None:
        path = MODELS[name]
        if not path.is_dir():
            pytest.skip(f"../shared/models/{name} is not here")
        self.tokenizer = load_tokenizer(path)
        self.scorer: Scorer = scorer_of(load_source(path), torch.device("cpu"))
        facts = ModelFacts.from_directory(path)
        self.vocabulary, self.longest = facts.vocab_size, facts.max_position_embeddings
        self.recorded = json.loads((LM_EVAL / f"{name}.json").read_text("utf-8"))

    def answers(self, task: TaskSection) -> tuple[list[float], list[int | None], float]:
        """The log-likelihood of each choice, what is chosen, and the accuracy."""
        questions = read_questions(task)
        pairs = [
            encode_pair(self.tokenizer, question.context, f" {choice}", self.longest)
            for question in questions
            for choice in question.choices
        ]
        (found,) = log_likelihoods([self.scorer], pairs, self.vocabulary)
        nats = [likelihood.nats for likelihood in found]
        chosen = choices(questions, nats, task.layout)
        right = [a == question.answer for a, question in zip(chosen, questions, strict=True)]
        return nats, chosen, float(np.mean(right))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def hellaswag(rows: int) -> TaskSection:
    return TaskSection(name="swag", file=str(HELLASWAG), layout="hellaswag", rows=rows)


def mmlu(subject: str, shots: int) -> TaskSection:
    val, dev = (SHARED_DATA / "mmlu" / split / f"{subject}_{split}.csv" for split in ("val", "dev"))
    return TaskSection(
        name=subject,
        file=str(val),
        layout="mmlu",
        shots=shots,
        shots_file=str(dev) if shots else None,
    )


def compare(model: Model, task: TaskSection, expected: dict[str, Any]) -> None:
    nats, chosen, accuracy = model.answers(task)
    theirs = [value for row in expected["rows"] for value in row["log_likelihoods"]]
    assert chosen == [row["choice"] for row in expected["rows"]]
    np.testing.assert_allclose(nats, theirs, rtol=1e-5, atol=2e-4)
    assert accuracy == pytest.approx(expected["accuracy"], abs=1e-12)


@pytest.mark.slow
def test_hellaswag_is_answered_as_lm_eval_does(model: Model) -> None:
    expected = model.recorded["hellaswag"]
    rows = [json.loads(line)["ind"] for line in HELLASWAG.read_text("utf-8").splitlines()[:200]]
    assert [row["ind"] for row in expected["rows"]] == rows
    compare(model, hellaswag(200), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "shots"), MMLU)
def test_mmlu_is_answered_as_lm_eval_does(model: Model, subject: str, shots: int) -> None:
    """Five examples, and the texts of history, are longer than the models take."""
    (expected,) = (record for record in model.recorded[subject] if record["shots"] == shots)
    compare(model, mmlu(subject, shots), expected)


def scored(model: Model, source: Scorer, other: Scorer, rows: int) -> TaskScore:
    evaluate = {"text": "unused.txt", "tasks": [hellaswag(rows).model_dump()]}
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "model": {"source": "m"},
            "quantize": {"format": "float16"},
            "evaluate": evaluate,
        }
    )
    (score,) = score_tasks(
        recipe,
        model.tokenizer,
        source,
        other,
        longest=model.longest,
        vocabulary=model.vocabulary,
        progress=Silent(),
    )
    return score


def test_a_model_that_knows_nothing_and_one_that_is_broken() -> None:
    """Equal logits make every token 1 / vocabulary likely: the choice is known without a model."""
    model = Model("tiny_llama")
    rows = [json.loads(line) for line in HELLASWAG.read_text("utf-8").splitlines()[:60]]

    def equal(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, model.vocabulary)

    def broken(ids: torch.Tensor) -> torch.Tensor:
        return torch.full((*ids.shape, model.vocabulary), torch.nan)

    score = scored(model, equal, broken, len(rows))
    questions = read_questions(hellaswag(len(rows)))
    # The fewest tokens a character win, and the first of equals.
    lengths = [
        [
            len(encode_pair(model.tokenizer, q.context, f" {c}", 1024).continuation) / len(c)
            for c in q.choices
        ]
        for q in questions
    ]
    right = [int(np.argmin(each)) == row["label"] for each, row in zip(lengths, rows, strict=True)]
    assert score.source.tolist() == right
    found = score.as_dict()
    assert found["source_accuracy"] == pytest.approx(np.mean(right))
    assert found["chance"] == pytest.approx(0.25)
    assert found["rows"] == 60
    # No number is no answer, also where the first choice is the right one.
    assert {row["label"] for row in rows} == {0, 1, 2, 3}
    assert (found["accuracy"]["value"], found["accuracy"]["low"]) == (0.0, 0.0)
    # The chance of no right answer among 60 is 0.025 where 6 % are right.
    assert (1 - found["accuracy"]["high"]) ** 60 == pytest.approx(0.025)
    change = found["accuracy_change"]
    assert change["value"] == pytest.approx(-np.mean(right))
    assert change["low"] < change["value"] < change["high"] < 0


def test_the_interval_is_that_of_paired_rows() -> None:
    """A McNemar-like hand calculation: only the questions that one model alone got right count."""
    generator = np.random.default_rng(5)
    source = generator.random(400) < 0.6
    flipped = generator.random(400) < 0.05
    score = TaskScore("t", "mmlu", 0.25, source, source ^ flipped)
    change = score.accuracy_change
    lost, won = int((flipped & source).sum()), int((flipped & ~source).sum())
    mean = (won - lost) / 400
    error = np.sqrt(((won + lost) / 400 - mean**2) / 400)
    assert change.value == pytest.approx(mean)
    assert change.low is not None
    assert change.high is not None
    assert change.low == pytest.approx(mean - 1.96 * error, abs=0.006)
    assert change.high == pytest.approx(mean + 1.96 * error, abs=0.006)
    # Unpaired it would be far wider.
    width = score.accuracy.high - score.accuracy.low  # type: ignore[operator]
    assert change.high - change.low < 0.6 * width


def test_a_choice_that_cannot_be_scored_is_named_with_its_line(tmp_path: Path) -> None:
    model = Model("tiny_llama")
    model.longest = 3
    with pytest.raises(UsageError, match=r"a continuation has \d+ tokens, where .* takes 3") as e:
        scored(model, model.scorer, model.scorer, 1)
    assert e.value.where == f"{HELLASWAG}:1"


def test_the_stage_measures_the_recipes_tasks(tmp_path: Path) -> None:
    """The source's accuracy is the one that lm-eval's recorded choices have."""
    text = tmp_path / "heldout.txt"
    text.write_text("Once upon a time there was a boy.\n\nHe lived by the sea.\n")
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "model": {"source": str(DEMO_MODEL)},
            "quantize": {"format": "float16"},
            "evaluate": {"text": str(text), "tokens": 30, "tasks": [hellaswag(24).model_dump()]},
        }
    )
    run_stage(recipe, DEMO_MODEL, tmp_path / "checkpoint")
    inputs = {
        "source": Artifact("source", "key", "digest", DEMO_MODEL, {}),
        "quantize": Artifact("quantize", "key", "digest", tmp_path / "checkpoint", {}),
    }
    output = tmp_path / "evaluation"
    output.mkdir()
    facts = STAGE.run(StageContext(recipe, inputs, output, Silent()))
    recorded = json.loads((LM_EVAL / "tiny_llama.json").read_text("utf-8"))["hellaswag"]["rows"]
    labels = [json.loads(line)["label"] for line in HELLASWAG.read_text("utf-8").splitlines()[:24]]
    theirs = np.mean([row["choice"] == label for row, label in zip(recorded, labels, strict=False)])
    (found,) = json.loads((output / RESULT_NAME).read_text("utf-8"))["tasks"]
    assert [found] == facts["tasks"]
    assert (found["name"], found["layout"], found["rows"]) == ("swag", "hellaswag", 24)
    assert found["source_accuracy"] == pytest.approx(float(theirs), abs=1e-12)
    # The demo model's own files are float16, so nothing was rounded.
    assert found["accuracy"]["value"] == found["source_accuracy"]
    change = found["accuracy_change"]
    assert change["value"] == 0.0
    # None of 24 answers changed; the chance of that is 0.025 where 14 % change.
    assert (1 - change["high"]) ** 24 == pytest.approx(0.025)
    assert change["low"] == -change["high"]
