"""The rows that calibration texts are expected to make, against those that they make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from pipeline.effort.fitting import warnings
from pipeline.effort.stages import Machine, StageEffort
from pipeline.effort.work import TextLengths, at_least, calibrated, tried
from pipeline.recipe.schema import Recipe
from pipeline.source.lines import read_texts, to_json_line
from pipeline.source.tokens import Rows, TextTokenizer, batches, load_tokenizer, token_rows

from ..conftest import DEMO_MODEL, PROJECT
from .test_effort import estimated, facts_of, recipe_of

STORIES = PROJECT / "examples" / "tiny_llama" / "data" / "calibration.jsonl"
EIGHT = facts_of("llama-3.1-8b")


def on(length: int, batch: int, samples: int = 512, file: str = "x", **quantize: object) -> Recipe:
    calibration = {"text": file, "samples": samples, "sequence_length": length, "batch_size": batch}
    return recipe_of(quantize={"format": "int8_sq", "calibration": calibration, **quantize})


@cache
def tokenizer() -> TextTokenizer:
    pytest.importorskip("transformers")
    return load_tokenizer(DEMO_MODEL)


def sizes(found: Sequence[Rows]) -> list[int]:
    return [sum(map(len, batch)) for batch in found]


def stories(kind: str) -> list[str]:
    texts = [text for text in read_texts(STORIES) if isinstance(text, str)]
    cut = {"short": 200, "whole": None, "long": None}[kind]
    if kind == "long":
        return ["\n".join(texts[start : start + 20]) for start in range(0, len(texts), 20)]
    return [text[:cut] for text in texts]


@pytest.mark.parametrize("kind", ["short", "whole", "long"])
@pytest.mark.parametrize("length", [64, 256, 2048])
@pytest.mark.parametrize("batch", [1, 4, 16, 500])
def test_batches_are_as_large_as_those_that_are_made(
    kind: str, length: int, batch: int, tmp_path: Path
) -> None:
    texts, file = stories(kind), tmp_path / "texts.jsonl"
    file.write_text("".join(f"{to_json_line(text)}\n" for text in texts))
    made = batches(token_rows(texts, tokenizer(), length), batch)
    found = calibrated(on(length, batch, len(texts)), EIGHT, TextLengths()(str(file)))
    assert found.tokens == pytest.approx(sum(sizes(made)), rel=0.25)
    assert found.batch_tokens == pytest.approx(max(sizes(made)), rel=0.25)
    assert found.batches == pytest.approx(len(made), rel=0.25, abs=1)
    assert found.longest == pytest.approx(len(made[0][0]), rel=0.25)
    assert found.sure <= sum(sizes(made))
    assert found.sure_batch <= max(sizes(made))


class Counted:
    """A tokenizer for texts that are numbers: of their tokens."""

    def encode(self, text: str, /, *, add_special_tokens: object = "auto") -> list[int]:  # noqa: ARG002
        return [7] * int(text)


def test_what_is_sure_is_there_whatever_a_tokenizer_makes_of_the_texts() -> None:
    chance = random.Random(3)
    for _ in range(2000):
        length, batch, count = (chance.randint(1, most) for most in (40, 9, 40))
        lengths = [chance.randint(2, 3 * length + 2) for _ in range(count)]
        samples = chance.randint(1, count)
        found = calibrated(on(length, batch, samples), EIGHT, lengths)
        drawn = chance.sample(lengths, samples)
        tokens = [max(1, at_least(one)) + chance.choice((0, 0, 1, 9)) for one in drawn]
        made = sizes(batches(token_rows([str(n) for n in tokens], Counted(), length), batch))
        assert found.sure <= sum(made), (lengths, tokens, length, batch)
        assert found.sure_batch <= max(made), (lengths, tokens, length, batch)


def test_short_texts_fill_rows_together() -> None:
    # 512 texts of 200 bytes at 3.5, and a token that begins each: 59 x 512 are 30,208 tokens, in 15
    # rows of 2,013 and one batch.
    found = calibrated(on(2048, 16), EIGHT, [59] * 512)
    assert (found.tokens, found.longest, found.batches) == (30_195, 2013, 1)
    assert found.batch_tokens == pytest.approx(30_195, rel=0.001)
    # 20 rows are two batches of ten, not one of 16 and one of four.
    assert calibrated(on(2048, 16, 20), EIGHT, None).batch_tokens == 10 * 2048
    # A machine that this does not fit is told how short rows have to be.
    recipe = on(2048, 1)

    def estimate(other: Recipe) -> Sequence[StageEffort]:
        return [estimated(other, EIGHT, lengths=lambda _path: [59] * 512)["quantize"]]

    (stage,) = estimate(recipe)
    assert stage.memory is not None
    (said,) = warnings(recipe, [stage], Machine(stage.memory.likely - 1, None, None), estimate)
    assert "Set quantize.calibration.sequence_length to 1024" in said.remedy


def test_candidates_are_scored_on_texts_that_are_not_joined() -> None:
    recipe = on(2048, 16, search={"tokens": 1000})
    # 2^26 logits are 523 tokens of 128256: eight texts of 59.
    found = tried(recipe, EIGHT, [59] * 512)
    assert (found.longest, found.batch_tokens) == (59, 8 * 59)
    # A text goes on no further than what is left to predict.
    assert tried(recipe, EIGHT, [59, 5000]).batch_tokens == 1001
    assert tried(on(512, 16, search={"tokens": 1000}), EIGHT, None).batch_tokens == 512
