"""The bytes of tokens, against what tokenizers themselves make of texts and of single tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from model_repo.tensorrt_llm.vocabulary import token_texts
from pipeline.source.probes import TEXTS
from tests.conftest import DEMO_MODEL
from tests.integration.tokenizer_layouts import byte_level, metaspace
from tests.integration.tokenizer_support import assert_bytes_of_tokens

MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "demo": lambda: Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")),
    "byte level": byte_level,
    "metaspace": lambda: metaspace(legacy=False),
    "metaspace, legacy": lambda: metaspace(legacy=True),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_joined_bytes_are_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens(["<tool_call>", "ünd Ġ"])  # one that is no special token is text
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_bytes_of_tokens(tmp_path / "tokenizer.json", TEXTS)


def test_special_tokens_end_ids_and_unknown_ids_have_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = byte_level()
    tokenizer.save(str(path))
    size = tokenizer.get_vocab_size()
    texts = token_texts(path, size + 7, [5])
    assert len(texts) == size + 7  # an engine's vocabulary may be padded
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert len(special) == 4
    assert {id_ for id_, text in enumerate(texts) if not text} == {
        5,
        *special,
        *range(size, size + 7),
    }


def test_a_decoder_that_looks_at_neighbours_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=re.escape("this one's decoder is WordPiece")):
        token_texts(tmp_path / "tokenizer.json", 3, [])
