"""The evaluate stage on a model whose quality can be computed another way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.reference.comparison import WindowScore, compare, summarize, token_windows

from pipeline.errors import QualityGateError, RecipeError, SourceError, UsageError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.source.texts import load_tokenizer, token_rows
from pipeline.stages.base import StageContext
from pipeline.stages.evaluate import RESULT_NAME, STAGE
from pipeline.store.artifact import Artifact
from tests.integration.quantize_support import calibration_words, run_stage, write_source
from tests.integration.quantize_support import recipe as quantize_recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_source("Qwen2", tmp_path_factory.mktemp("source") / "Qwen2")
    (path / "heldout.txt").write_text(calibration_words())
    return path


def evaluated(source: Path, folder: Path, **quantize: Any) -> tuple[Recipe, Artifact]:
    settings = quantize_recipe(source, samples=8, **quantize)
    run_stage(settings, source, folder / "checkpoint")
    evaluate = {"text": str(source / "heldout.txt"), "tokens": 500, "sequence_length": 20}
    data = settings.model_dump(by_alias=True)
    settings = Recipe.model_validate({**data, "evaluate": evaluate})
    inputs = {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", folder / "checkpoint", {}),
    }
    output = folder / "evaluation"
    output.mkdir()
    facts = STAGE.run(StageContext(settings, inputs, output, Silent()))
    return settings, Artifact("evaluate", "key", "digest", output, facts)


def test_numbers_of_the_written_files(source: Path, tmp_path: Path) -> None:
    settings, artifact = evaluated(source, tmp_path, format="int8_sq")
    facts = artifact.facts
    assert facts["tokens"] == 500
    # 30 words make a window of 20 and one of 10; the next text starts a new one.
    assert facts["windows"] == math.ceil(500 / (19 + 9) * 2)
    assert facts["source_perplexity"] == pytest.approx(perplexity_by_transformers(source), rel=1e-5)
    assert 0 < facts["kl_divergence"] < 0.1
    assert 0.5 < facts["top1_agreement"] < 1.0
    assert facts["kl_divergence_standard_error"] > 0
    written = json.loads((artifact.path / RESULT_NAME).read_text())
    assert len(written.pop("by_window")) == facts["windows"]
    assert written == facts
    STAGE.check(gated(settings, top1_agreement=0.5, perplexity_increase=1.0), artifact)


@torch.inference_mode()
def perplexity_by_transformers(source: Path) -> float:
    """The loss of transformers' own model over the same windows."""
    model: Any = load_source(source)
    total = count = 0.0
    for paragraph in calibration_words().split("\n\n"):
        words = [int(word[1:]) for word in paragraph.split()]
        for part in (words[:20], words[20:]):
            window = part[: int(500 - count) + 1]
            if len(window) > 1:
                ids = torch.tensor([window])
                total += float(model(ids, labels=ids).loss) * (len(window) - 1)
                count += len(window) - 1
    assert count == 500
    return math.exp(total / count)


def gated(settings: Recipe, **gates: float) -> Recipe:
    data = settings.model_dump(by_alias=True)
    data["evaluate"]["gates"] = gates
    return Recipe.model_validate(data)


def test_broken_gates_are_named_with_both_numbers(source: Path, tmp_path: Path) -> None:
    settings, artifact = evaluated(source, tmp_path, format="int4_awq")
    strict = gated(settings, top1_agreement=1.0, kl_divergence=0.0, perplexity_increase=10.0)
    with pytest.raises(QualityGateError, match=r"required is at least 1\.0000") as caught:
        STAGE.check(strict, artifact)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert "evaluate.gates.top1_agreement" in message
    assert "KL divergence is" in message
    assert "perplexity rose" not in message
    assert str(artifact.path) in message
    assert (artifact.path / RESULT_NAME).is_file()


@pytest.mark.parametrize(("number", "shown"), [(None, "no finite number"), (math.nan, "nan%")])
def test_a_perplexity_that_is_not_a_number_breaks_the_gate(
    source: Path, number: float | None, shown: str
) -> None:
    facts = {"perplexity_increase": number, "source_perplexity": 3.0, "perplexity": number}
    artifact = Artifact("evaluate", "k", "d", source, {**facts, "top1_agreement": 1.0} | NO_KL)
    settings = gated(with_text(source), perplexity_increase=0.02)
    with pytest.raises(QualityGateError, match=f"perplexity rose by {shown}"):
        STAGE.check(settings, artifact)


NO_KL = {"kl_divergence": 0.0}


def with_text(source: Path, name: str = "heldout.txt") -> Recipe:
    data = quantize_recipe(source, format="float16").model_dump(by_alias=True)
    return Recipe.model_validate({**data, "evaluate": {"text": str(source / name)}})


def test_gates_do_not_decide_the_cache_key_but_the_texts_bytes_do(
    source: Path, tmp_path: Path
) -> None:
    settings = with_text(source)
    assert STAGE.section(settings) == STAGE.section(gated(settings, top1_agreement=0.1))
    before = STAGE.material(settings)
    copy = tmp_path / "moved.txt"
    copy.write_bytes((source / "heldout.txt").read_bytes())
    moved = with_text(source, str(copy))
    assert STAGE.material(moved) == before
    copy.write_text("other words")
    assert STAGE.material(moved) != before


def test_a_missing_text_names_the_key(source: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.text: the text .* cannot be read"):
        STAGE.material(with_text(source, "absent.txt"))


class Words:
    """One token per character."""

    def encode(self, text: str, /) -> list[int]:
        return [ord(letter) for letter in text]


def test_windows_do_not_cross_texts_and_stop_at_the_number_of_tokens() -> None:
    windows = token_windows(["abcdefgh", "xy", "z", "0123456789"], Words(), 4, 12)
    found = ["".join(map(chr, window)) for window in windows]
    # 3 + 3 + 1 + 3 + 2 predictions; "z" has none.
    assert found == ["abcd", "efgh", "xy", "0123", "456"]


def test_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no evaluation text has two tokens"):
        token_windows(["a", "b"], Words(), 4, 12)


def test_scores_do_not_depend_on_padding(source: Path) -> None:
    model = load_source(source)
    windows = [[5, 9, 14], list(range(1, 60)), [7, 3], list(range(100, 130))]
    cpu = torch.device("cpu")
    together = compare(model, model, windows, cpu)
    alone = [compare(model, model, [window], cpu)[0] for window in windows]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.nll == pytest.approx(other.nll, rel=1e-5)
        assert one.kl == pytest.approx(0.0, abs=1e-6)
        assert one.agreements == one.tokens


def test_windows_of_text_may_be_longer_than_the_models_sliding_window(tmp_path: Path) -> None:
    # Mistral's 64 tokens, of which both the source and the written files must make the same.
    source = write_source("Mistral", tmp_path / "source")
    run_stage(quantize_recipe(source, format="float16"), source, tmp_path / "checkpoint")
    original, written = load_source(source), load_reference(tmp_path / "checkpoint")
    ids = [number * 7 % 501 for number in range(200)]
    cpu = torch.device("cpu")
    (score,) = compare(original, written, [ids], cpu)
    assert score.kl / score.tokens < 1e-5
    assert score.nll == pytest.approx(score.source_nll, rel=1e-4)
    # The window does count: without it the source itself is another model.
    whole = json.loads((source / "config.json").read_text()) | {"sliding_window": None}
    (source / "config.json").write_text(json.dumps(whole))
    (other,) = compare(original, load_source(source), [ids], cpu)
    assert other.kl / other.tokens > 100 * score.kl / score.tokens


def test_tokens_that_the_model_has_no_row_for(source: Path, tmp_path: Path) -> None:
    words = calibration_words().split("\n\n")
    copy = tmp_path / "small"
    copy.mkdir()
    for path in source.glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    settings = json.loads((source / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"vocab_size": 300}))
    tokenizer = load_tokenizer(copy)
    assert tokenizer.encode("w299 w1") == [299, 1]
    for use in (lambda: token_rows(words, tokenizer, 30), lambda: tokenizer.encode("w1 w300")):
        with pytest.raises(SourceError, match=r"token \d+, which the model has no row for.* 300"):
            use()
    with pytest.raises(SourceError, match="has no row for"):
        token_windows(words, tokenizer, 30, 500)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 5}'])
def test_a_tokenizer_that_cannot_be_read(source: Path, tmp_path: Path, content: str) -> None:
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_model_beyond_repair_fails_the_gate(source: Path) -> None:
    found = summarize([WindowScore(10, 20.0, 8000.0, 7980.0, 0), WindowScore(9, 1.0, 9e3, 9e3, 0)])
    assert found["perplexity"] is None
    assert found["perplexity_increase"] is None
    assert found["source_perplexity"] == pytest.approx(math.exp(21 / 19))
    settings = gated(with_text(source), perplexity_increase=0.02)
    with pytest.raises(QualityGateError, match="perplexity rose by no finite number"):
        STAGE.check(settings, Artifact("evaluate", "k", "d", source, found))


def test_scores_that_are_not_finite_do_not_end_the_summary() -> None:
    found = summarize(
        [WindowScore(5, math.inf, 5.0, 1.0, 1), WindowScore(5, 5.0, math.inf, math.nan, 1)]
    )
    json.dumps(found, allow_nan=False)
    assert found["perplexity"] is found["source_perplexity"] is None
    assert found["perplexity_increase"] is found["kl_divergence"] is None
    assert found["top1_agreement"] == pytest.approx(0.2)


def test_the_summary_by_hand() -> None:
    scores = [WindowScore(10, 20.0, 21.0, 0.5, 9), WindowScore(30, 60.0, 60.0, 1.5, 27)]
    found = summarize(scores)
    assert found["tokens"] == 40
    assert found["source_perplexity"] == pytest.approx(math.exp(2.0))
    assert found["perplexity"] == pytest.approx(math.exp(81 / 40))
    assert found["perplexity_increase"] == pytest.approx(math.exp(1 / 40) - 1)
    assert found["kl_divergence"] == pytest.approx(0.05)
    assert found["top1_agreement"] == pytest.approx(0.9)
    # Every window has the same rate, so the rate is known exactly.
    assert found["kl_divergence_standard_error"] == pytest.approx(0.0)
    # Deviations 1 - 10/40 and 0 - 30/40 from the mean difference.
    expected = math.exp(1 / 40) * math.sqrt(2 * (0.75**2 + 0.75**2)) / 40
    assert found["perplexity_increase_standard_error"] == pytest.approx(expected)
