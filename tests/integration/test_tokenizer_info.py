"""xgrammar_tokenizer_info.json against the rule of upstream's script, on transformers' tokenizers.

``examples/generate_xgrammar_tokenizer_info.py`` lists ``get_vocab()`` in the order of the ids, and
takes ``tokenizer_str`` from ``backend_tokenizer.to_str()``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from pipeline.errors import UnsupportedError
from pipeline.targets.tensorrt.serve.tokenizer_info import tokenizer_info
from tests.integration import tokenizer_layouts as layouts

SPECIAL = {"<unk>", "<s>", "</s>", layouts.BOS, layouts.EOS, "<|user|>", "<|assistant|>"}


def info(
    folder: Path, tokenizer: Tokenizer, ends: list[int], vocab_size: int = 10**6
) -> dict[str, Any]:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    text = tokenizer_info(folder, vocab_size=vocab_size, where="recipe.yaml:9 (key)")
    return dict(json.loads(text))


def by_script(tokenizer: Tokenizer) -> list[str]:
    vocab = PreTrainedTokenizerFast(tokenizer_object=tokenizer).get_vocab()
    return [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]


@pytest.mark.parametrize("make", [layouts.byte_level, lambda: layouts.metaspace(legacy=True)])
def test_it_is_what_upstreams_script_writes(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    found = info(tmp_path, tokenizer, [2])
    assert set(found) == {"encoded_vocab", "tokenizer_str", "stop_token_ids"}
    script = by_script(tokenizer)
    assert len(found["encoded_vocab"]) == len(script)
    changed = [
        (ours, theirs)
        for ours, theirs in zip(found["encoded_vocab"], script, strict=True)
        if ours != theirs
    ]
    # Special tokens alone have no text.
    assert {ours for ours, _ in changed} == {""}
    assert {theirs for _, theirs in changed} == SPECIAL & set(script)
    served = PreTrainedTokenizerFast(tokenizer_object=tokenizer).backend_tokenizer.to_str()
    assert json.loads(found["tokenizer_str"]) == json.loads(served)


def test_all_end_ids_end_a_guided_text(tmp_path: Path) -> None:
    tokenizer = layouts.byte_level()
    ends = [tokenizer.token_to_id(layouts.EOS), tokenizer.token_to_id("<|user|>"), 5000]
    # One that only the tokenizer has would be an index beyond the engine's logits.
    assert info(tmp_path, tokenizer, ends, vocab_size=4000)["stop_token_ids"] == ends[:2]


def test_a_token_stands_at_its_id_where_ids_are_left_out(tmp_path: Path) -> None:
    content = json.loads(layouts.byte_level().to_str())
    vocab = content["model"]["vocab"]
    moved = max(vocab, key=vocab.__getitem__)
    vocab[moved] += 50
    tokenizer = Tokenizer.from_str(json.dumps(content))
    assert tokenizer.token_to_id(moved) == vocab[moved]
    # The script's list is shorter than the ids.
    assert by_script(tokenizer)[-1] == moved
    assert len(by_script(tokenizer)) < vocab[moved]
    found = info(tmp_path, tokenizer, [2])["encoded_vocab"]
    assert found[vocab[moved]] == moved
    assert len(found) == vocab[moved] + 1


def test_tokens_that_only_the_tokenizer_has_are_left_out(tmp_path: Path) -> None:
    tokenizer = layouts.byte_level()
    assert len(info(tmp_path, tokenizer, [2], vocab_size=250)["encoded_vocab"]) == 250


def test_a_model_without_an_end_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="needs a token that ends a text"):
        info(tmp_path, layouts.byte_level(), [])


@pytest.mark.parametrize(
    ("decoder", "named"), [(decoders.WordPiece(), "has WordPiece"), (None, "has none")]
)
def test_a_tokenizer_that_xgrammar_does_not_know_is_refused(
    tmp_path: Path, decoder: Any, named: str
) -> None:
    tokenizer = layouts.byte_level()
    tokenizer.decoder = decoder
    with pytest.raises(UnsupportedError, match=rf"does not know this tokenizer.*{named}"):
        info(tmp_path, tokenizer, [2])
