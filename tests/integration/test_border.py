"""The border between prompt and completion, against transformers.

transformers decodes all ids at once; ``tensorrt_llm_bls`` decodes the completion as it comes.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_repo.tensorrt_llm_bls.detokenizer import IncrementalDetokenizer
from tests.conftest import PROJECT
from tests.unit.model_repo.test_detokenizer import KINDS, TEXTS

STORIES = PROJECT / "examples" / "tiny_llama" / "data" / "heldout.jsonl"
CASES = 300


@cache
def texts() -> list[str]:
    stories = [json.loads(line)["text"] for line in STORIES.read_text().splitlines()[:60]]
    return [*stories, *(text for text in TEXTS if len(text) > 3)]


def check(auto: Any, seed: int) -> None:
    """Splits texts anywhere; prompt and completion together must be the text of all ids."""
    tokenizer, draw = auto.backend_tokenizer, random.Random(seed)
    checked = 0
    while checked < CASES:
        ids = auto(draw.choice(texts())).input_ids
        if len(ids) < 2:
            continue
        border = draw.randint(1, len(ids) - 1)
        prompt = auto.decode(ids[:border], skip_special_tokens=True)
        if prompt.endswith("\ufffd") or ids[border - 1] in auto.all_special_ids:
            continue  # inside a character, or before the text
        detokenizer = IncrementalDetokenizer(tokenizer, prompt=ids[:border])
        text = ""
        while border < len(ids):
            step = draw.randint(1, 5)
            text += detokenizer.push(ids[border : border + step])
            border += step
        text += detokenizer.finish()
        assert prompt + text == auto.decode(ids, skip_special_tokens=True)
        checked += 1


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tokenizer(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    check(
        PreTrainedTokenizerFast(tokenizer_object=KINDS[name], clean_up_tokenization_spaces=False),
        seed=1,
    )


def test_a_real_tokenizer(stories_model: Path) -> None:
    from transformers import AutoTokenizer

    check(AutoTokenizer.from_pretrained(stories_model), seed=2)


def test_the_demo_tokenizer(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    check(AutoTokenizer.from_pretrained(demo_model), seed=3)
