"""The text of the special tokens that a call is written with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.gateway.tools.forms import FORMS
from pipeline.gateway.tools.markers import MarkedDetokenizer, special_markers
from pipeline.triton.contract import BLS
from pipeline.triton.sources import load_module, model_sources

SPECIAL = ("<s>", "</s>", "[TOOL_CALLS]", "[ARGS]")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for each byte, special tokens, and a word that is none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(["<tool_call>"])
    return made


def detokenizer(tokenizer: Tokenizer, form: str, prompt: Sequence[int]) -> MarkedDetokenizer:
    module = load_module(model_sources(), BLS, "detokenizer")

    def new(before: Sequence[int]) -> Any:
        return module.IncrementalDetokenizer(tokenizer, prompt=before)

    return MarkedDetokenizer(new, special_markers(tokenizer, FORMS[form].markers), prompt)


TEXT = "<s>Zü😀[TOOL_CALLS]née[ARGS]{}<s></s>[TOOL_CALLS][ARGS]<tool_call>é"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(("form", "kept"), [("mistral", SPECIAL[2:]), ("hermes", ())])
def test_markers_have_their_text_and_other_special_tokens_none(
    tokenizer: Tokenizer, form: str, kept: Sequence[str], size: int
) -> None:
    ids = tokenizer.encode(TEXT).ids
    writer = detokenizer(tokenizer, form, ids[:1])
    found = "".join(writer.push(ids[n : n + size]) for n in range(1, len(ids), size))
    wanted = TEXT
    for token in SPECIAL:
        wanted = wanted if token in kept else wanted.replace(token, "")
    assert found + writer.finish() == wanted


def test_an_incomplete_character_in_front_of_a_marker_is_not_held(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("é").ids
    marker = tokenizer.token_to_id("[TOOL_CALLS]")
    writer = detokenizer(tokenizer, "mistral", ())
    assert writer.push([first]) == ""
    assert writer.push([marker]) == "\N{REPLACEMENT CHARACTER}[TOOL_CALLS]"
