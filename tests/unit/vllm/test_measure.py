"""How a folder is measured with another environment's vLLM, and whether it is at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import MissingDependencyError, StageError
from pipeline.progress import Silent
from pipeline.recipe.evaluate import EvaluateSection
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.running.planner import key_material, stages_for
from pipeline.store.artifact import Artifact
from pipeline.targets import get_target
from pipeline.targets.base import NotMeasured
from pipeline.targets.vllm.measure import MeasuredElsewhere
from tests.unit.vllm.environment import Environment
from tests.unit.vllm.support import export, recipe, write_model


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def measured(wanted: Recipe) -> MeasuredElsewhere:
    found = get_target("vllm").evaluation(wanted)
    assert isinstance(found, MeasuredElsewhere)
    return found


def test_without_an_environment_only_the_checkpoint_is_measured(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    found = get_target("vllm").evaluation(recipe(source))
    assert isinstance(found, NotMeasured)
    assert "compile.vllm.python" in found.fix


def test_an_environment_without_vllm_is_refused_before_any_work(
    environment: Environment, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "model")
    wanted = recipe(source, vllm={"python": str(environment.python)})
    text = EvaluateSection(text=str(source / "text.txt"))
    with pytest.raises(MissingDependencyError, match="vLLM is not installed"):
        stages_for(wanted.model_copy(update={"evaluate": text}))


def test_what_measures_the_folder_is_no_part_of_it(
    environment: Environment, tmp_path: Path
) -> None:
    """The folder stays cached, its numbers are measured again."""
    source = write_model(tmp_path / "model")
    text = {"evaluate": EvaluateSection(text=str(source / "text.txt"))}
    plain = recipe(source).model_copy(update=text)
    python = environment.install()
    with_python = recipe(source, vllm={"python": python}).model_copy(update=text)
    one, two = ({s.name: s for s in stages_for(wanted)} for wanted in (plain, with_python))
    assert "fidelity" not in one
    assert two["fidelity"].inputs == ("source", "quantize", "compile")
    inputs: dict[str, Artifact] = {}
    assert key_material(one["compile"], plain, inputs) == key_material(
        two["compile"], with_python, inputs
    )
    assert two["fidelity"].material(with_python)["engine"]["vllm"] == "of no known version"


def test_windows_are_scored_and_greedy_tokens_compared(
    environment: Environment, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "model")
    python = environment.install()
    output, progress = export(source, tmp_path), Notes()
    found = measured(recipe(source, vllm={"python": python}))
    assert found.longest_window == 63
    windows = [[1, 2, 3, 4], [5, 6]]
    with found.logits(output) as scorer:
        assert scorer is None
    losses = found.losses(output, tmp_path / "checkpoint", windows, tmp_path, progress)
    # The stub's likelihoods, of every token but the first.
    np.testing.assert_array_equal(losses[0], np.float32([0.25, 0.375, 0.5]))
    np.testing.assert_array_equal(losses[1], np.float32([0.75]))
    seen = environment.seen()
    assert seen["model"] == str((output / "model").resolve())
    assert seen["arguments"]["max_model_len"] == 64
    # The stub goes on with the numbers behind the prompt's last; what the checkpoint says of them
    # is computed here once more.
    reference, equal, furthest = load_reference(tmp_path / "checkpoint"), 0, 0.0
    for window in windows:
        new = [window[-1] + 1 + index for index in range(16)]
        with torch.inference_mode():
            logits = reference(input_ids=torch.tensor([window + new])).logits[0]
        for index, token in enumerate(new):
            told = torch.log_softmax(logits[len(window) - 1 + index], -1)
            equal += int(told.argmax()) == token
            furthest = max(furthest, abs(float(told[token]) + token / 8))
    (note,) = progress.notes
    assert f": {equal} of 32 greedy tokens are those" in note
    assert f"log probabilities differ by {furthest:.4f} at most" in note


def test_likelihoods_that_are_no_numbers_are_an_error(
    environment: Environment, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "model")
    python = environment.install("LLM.generate = lambda self, prompts, *_, **__: []")
    output = export(source, tmp_path)
    found = measured(recipe(source, vllm={"python": python}))
    with pytest.raises(StageError, match=r"ended with exit code 1.*zip"):
        found.losses(output, tmp_path / "checkpoint", [[1, 2]], tmp_path, Silent())
    environment.install()
    module = environment.site / "vllm.py"
    module.write_text(module.read_text().replace("logprob=-token / 8", "logprob=1e999"))
    with pytest.raises(StageError, match="no likelihood to some tokens"):
        found.losses(output, tmp_path / "checkpoint", [[1, 2]], tmp_path, Silent())
