"""The evaluate stage on a model whose quality can be computed another way."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import QualityGateError, RecipeError, SourceError
from pipeline.evaluation.scoring import TokenScores, compare, scorer_of
from pipeline.evaluation.windows import Window, read_documents
from pipeline.progress import Lines, Progress, Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.source.tokens import load_tokenizer, token_rows
from pipeline.stages.base import StageContext
from pipeline.stages.evaluate import RESULT_NAME, STAGE
from pipeline.store.artifact import Artifact
from tests.integration.quantize_support import VOCAB, calibration_words, run_stage, write_source
from tests.integration.quantize_support import recipe as quantize_recipe


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_source("Qwen2", tmp_path_factory.mktemp("source") / "Qwen2")
    (path / "heldout.txt").write_text(calibration_words())
    return path


def evaluated(
    source: Path,
    folder: Path,
    *,
    text: Path | None = None,
    progress: Progress | None = None,
    **quantize: Any,
) -> tuple[Recipe, Artifact]:
    settings = quantize_recipe(source, samples=8, **quantize)
    run_stage(settings, source, folder / "checkpoint")
    evaluate: dict[str, Any] = {"tokens": 500, "sequence_length": 20}
    evaluate |= {"text": str(text or source / "heldout.txt")}
    data = settings.model_dump(by_alias=True)
    settings = Recipe.model_validate({**data, "evaluate": evaluate})
    inputs = {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", folder / "checkpoint", {}),
    }
    output = folder / "evaluation"
    output.mkdir()
    facts = STAGE.run(StageContext(settings, inputs, output, progress or Silent()))
    return settings, Artifact("evaluate", "key", "digest", output, facts)


def test_numbers_of_the_written_files(source: Path, tmp_path: Path) -> None:
    settings, artifact = evaluated(source, tmp_path, format="int8_sq")
    facts = artifact.facts
    assert facts["tokens"] == 500
    # Each text has 30 words: 19 predictions in a window of 20, and 10 more in a second one.
    assert facts["documents"] == math.ceil(500 / 29) == 18
    assert facts["windows"] == 2 * 17 + 1
    nll, nats, size = by_hand(source, tmp_path / "checkpoint")
    assert facts["source_perplexity"] == pytest.approx(math.exp(nll / 500), rel=1e-5)
    assert facts["bytes"] == size
    assert facts["source_bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    assert facts["kl_divergence"]["value"] == pytest.approx(nats / 500, rel=1e-3)
    assert 0.5 < facts["top1_agreement"]["value"] < 1.0
    for name in ("perplexity", "bits_per_byte", "kl_divergence", "top1_agreement"):
        assert facts[name]["low"] < facts[name]["value"] < facts[name]["high"]
    written = json.loads((artifact.path / RESULT_NAME).read_text())
    documents = written.pop("by_document")
    assert written == facts
    assert [document["tokens"] for document in documents] == [29] * 17 + [7]
    assert sum(document["bytes"] for document in documents) == size
    assert sum(document["source_nll"] for document in documents) == pytest.approx(nll, rel=1e-5)
    assert documents[0]["begins"] == calibration_words()[:80]
    STAGE.check(gated(settings, top1_agreement=0.5, perplexity_increase=1.0), artifact)


@torch.inference_mode()
def by_hand(source: Path, checkpoint: Path) -> tuple[float, float, int]:
    """Sums of plain forwards with the context that the stride leaves: NLL, KL and bytes."""
    model: Any = load_source(source)
    written: Any = load_reference(checkpoint)
    nll = nats = 0.0
    count = size = 0
    for paragraph in calibration_words().split("\n\n"):
        words = paragraph.split()
        for begin, first, end in ((0, 1, 20), (10, 20, 30)):
            scored = range(first, min(end, first + 500 - count))
            ids = torch.tensor([[int(word[1:]) for word in words[begin:end]]])
            p, q = (torch.log_softmax(m(ids).logits[0].double(), dim=-1) for m in (model, written))
            for place in scored:
                row = place - begin - 1
                nll -= float(p[row, ids[0, row + 1]])
                nats += float(
                    torch.nn.functional.kl_div(q[row], p[row], log_target=True, reduction="sum")
                )
                # The tokenizer has no token for the space in front of a word.
                size += len(f" {words[place]}")
            count += len(scored)
    assert count == 500
    return nll, nats, size


def test_a_file_that_is_one_text_is_told(source: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text((source / "heldout.txt").read_text().replace("\n\n", " "))
    told = io.StringIO()
    _, artifact = evaluated(source, tmp_path, text=one, progress=Lines(told), format="float16")
    assert artifact.facts["documents"] == 1
    assert f"{one}: 1 text scored (blank lines part the texts of a .txt file)" in told.getvalue()
    many = io.StringIO()
    evaluated(source, tmp_path / "many", progress=Lines(many), format="float16")
    assert "blank lines" not in many.getvalue()


def test_every_linear_has_its_signal_to_noise_and_completions_are_of_the_texts(
    source: Path, tmp_path: Path
) -> None:
    _, artifact = evaluated(source, tmp_path, format="int4_awq")
    linears = artifact.facts["signal_to_noise"]
    model = load_source(source)
    names = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    # Queries, keys and values are one linear in the checkpoint, and three here.
    assert {linear["linear"] for linear in linears} == names
    finite = [linear["db"] for linear in linears if linear["db"] is not None]
    assert finite == sorted(finite)
    # Four bits keep about 20 dB; the head is written in float16.
    assert all(5 < db < 40 for db in finite[:-1])
    assert linears[-1]["linear"] == "lm_head"
    others = {one["part"]: one["exact"] for one in artifact.facts["signal_to_noise_of_others"]}
    kinds = (torch.nn.Embedding, type(model.model.norm))
    assert set(others) == {name for name, m in model.named_modules() if isinstance(m, kinds)}
    assert artifact.facts["vocabulary"] == VOCAB
    words = calibration_words().split("\n\n")
    completions = artifact.facts["completions"]
    assert [words[n].startswith(text["prompt"]) for n, text in enumerate(completions)] == [True] * 3
    for text in completions:
        assert 0 <= text["same_tokens"] <= text["tokens"] <= 32
        assert (text["source"] == text["written"]) == (text["same_tokens"] == text["tokens"])


def test_an_unquantized_checkpoint_is_the_source(source: Path, tmp_path: Path) -> None:
    _, artifact = evaluated(source, tmp_path, format="float16")
    facts = artifact.facts
    # float16's rounding of random weights, 11 bits.
    assert abs(facts["perplexity_increase"]["value"]) < 1e-3
    assert facts["kl_divergence_p99"]["value"] < 1e-4
    assert facts["top1_agreement"]["value"] > 0.98
    assert all(linear["exact"] or linear["db"] > 60 for linear in facts["signal_to_noise"])


def gated(settings: Recipe, **gates: float | None) -> Recipe:
    data = settings.model_dump(by_alias=True)
    data["evaluate"]["gates"] = gates
    return Recipe.model_validate(data)


def test_broken_gates_are_named_with_both_numbers(source: Path, tmp_path: Path) -> None:
    settings, artifact = evaluated(source, tmp_path, format="int4_awq")
    strict = gated(settings, top1_agreement=1.0, kl_divergence=0.0, perplexity_increase=10.0)
    with pytest.raises(QualityGateError, match=r"of at least 100 %") as caught:
        STAGE.check(strict, artifact)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert "evaluate.gates.top1_agreement" in message
    share = artifact.facts["top1_agreement"]["value"]
    assert f"agreement {share * 100:.2f} % [" in message
    assert "KL divergence 0." in message
    assert "perplexity +" not in message
    assert str(artifact.path) in message
    assert (artifact.path / RESULT_NAME).is_file()
    found = {gate["name"]: gate for gate in caught.value.found["gates"]}
    assert found["top1_agreement"]["verdict"] == "REGRESSION"
    assert found["perplexity_increase"]["verdict"] == "ACCEPT"
    # What is asked for is what was measured, and no text could tell on which side of it one is.
    near = gated(settings, top1_agreement=share, kl_divergence=None)
    with pytest.raises(QualityGateError, match="cannot be told yet") as unsure:
        STAGE.check(near, artifact)
    assert unsure.value.found["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize("number", [None, math.nan])
def test_a_perplexity_that_is_not_a_number_breaks_the_gate(
    source: Path, tmp_path: Path, number: float | None
) -> None:
    settings, artifact = evaluated(source, tmp_path, format="float16")
    loose = gated(settings, top1_agreement=0.5)
    STAGE.check(loose, artifact)
    nothing = {"value": number, "low": None, "high": None}
    broken = replace(artifact, facts={**artifact.facts, "perplexity_increase": nothing})
    with pytest.raises(QualityGateError, match="perplexity is no finite number") as caught:
        STAGE.check(loose, broken)
    assert caught.value.found["verdict"] == "ANOMALOUS"


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


def test_windows_of_text_may_be_longer_than_the_models_sliding_window(tmp_path: Path) -> None:
    # Mistral's 64 tokens, of which both the source and the written files must make the same.
    source = write_source("Mistral", tmp_path / "source")
    run_stage(quantize_recipe(source, format="float16"), source, tmp_path / "checkpoint")
    original, written = load_source(source), load_reference(tmp_path / "checkpoint")
    window = Window(0, [number * 7 % 501 for number in range(200)], 1)
    score = scores(original, written, window)
    assert score.kl.mean() < 1e-5
    assert score.nll.sum() == pytest.approx(score.source_nll.sum(), rel=1e-4)
    # The window does count: without it the source itself is another model.
    whole = json.loads((source / "config.json").read_text()) | {"sliding_window": None}
    (source / "config.json").write_text(json.dumps(whole))
    other = scores(original, load_source(source), window)
    assert other.kl.mean() > 100 * score.kl.mean()


def scores(source: torch.nn.Module, other: torch.nn.Module, window: Window) -> TokenScores:
    """Of one window."""
    cpu = torch.device("cpu")
    (found,) = compare(scorer_of(source, cpu), scorer_of(other, cpu), [window], VOCAB)
    return found


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
        read_documents(words, tokenizer, 500)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 5}'])
def test_a_tokenizer_that_cannot_be_read(source: Path, tmp_path: Path, content: str) -> None:
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
