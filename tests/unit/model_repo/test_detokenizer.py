"""Pieces joined must be what the tokenizer makes of all ids at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from model_repo.tensorrt_llm_bls.detokenizer import IncrementalDetokenizer

TEXTS = [
    "",
    "Once upon a time, there was a cat.",
    "  two leading spaces,\n\n a line\t tab ",
    "smörgåsbord 你好，世界 żółć",  # noqa: RUF001 - the text is the point
    "👩‍👩‍👧‍👦 family 🇩🇪 flag 🤦🏽‍♂️ 1️⃣",
    "a \ufffd replacement character of its own",
    "😀" * 40,
]


def byte_level() -> Tokenizer:
    """Byte-level BPE (GPT-2, Llama 3, Qwen), without merges: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, **{letter: index for index, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2: words with a leading mark, other characters as bytes, one leading space dropped."""
    words = ["▁", "▁a", "▁time", "▁there", "▁cat", "O", "nce", "▁Once", ",", ".", "▁upon", "▁was"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece's words as tokenizers writes them today; "never" drops no space at all."""
    words = ["▁", "▁a", "▁time", "▁there", "▁cat", "O", "nce", "▁Once", ",", ".", "cat", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's: a space in front of every word but the first, unless it goes on ("##")."""
    words = ["once", "upon", "a", "time", "##s", "##ly", "cat", "there", ","]
    vocabulary = {piece: index for index, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("[CLS]", "[SEP]")])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
KINDS = {
    **TOKENIZERS,
    **{f"metaspace_{scheme}": metaspace(scheme) for scheme in ("first", "always", "never")},
    "word_piece": word_piece(),
}


def pieces(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sizes: random.Random | None,
    prompt: Sequence[int] = (),
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt=prompt)
    parts, start = [], 0
    while start < len(ids):
        size = sizes.randint(1, 5) if sizes else 1
        parts.append(detokenizer.push(ids[start : start + size]))
        start += size
    return [*parts, detokenizer.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_pieces_join_to_the_whole_text(name: str, text: str, seed: int | None) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = pieces(tokenizer, ids, random.Random(seed) if seed else None)
    assert "".join(parts) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def ordinary(tokenizer: Tokenizer) -> list[int]:
    """Ids that are neither special nor a byte."""
    special = tokenizer.get_added_tokens_decoder()
    return [
        token_id
        for token, token_id in sorted(tokenizer.get_vocab().items())
        if token_id not in special and not token.startswith("<0x") and token != "<unk>"
    ]


def special(tokenizer: Tokenizer) -> int:
    return min(tokenizer.get_added_tokens_decoder())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(40))
def test_prompt_and_text_together_are_the_text_of_all_ids(name: str, seed: int) -> None:
    tokenizer, draw = KINDS[name], random.Random(seed)
    ids = [draw.choice(ordinary(tokenizer)) for _ in range(draw.randint(2, 60))]
    if name == "byte_level":  # any of its tokens may be a part of a character
        text = draw.choice([text for text in TEXTS if text and "\ufffd" not in text])
        ids = tokenizer.encode(text + " and so on", add_special_tokens=False).ids
    border = draw.choice(
        [n for n in range(1, len(ids)) if "\ufffd" not in tokenizer.decode(ids[:n])]
    )
    prompt = ([special(tokenizer)] if seed % 2 else []) + ids[:border]
    joined = "".join(pieces(tokenizer, ids[border:], draw, prompt))
    assert tokenizer.decode(prompt) + joined == tokenizer.decode(prompt + ids[border:])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_a_turn_after_a_special_token_begins_as_a_text_does(name: str, seed: int) -> None:
    tokenizer, draw = KINDS[name], random.Random(seed)
    ids = [draw.choice(ordinary(tokenizer)) for _ in range(20)]
    prompt = [*ids, special(tokenizer)]
    assert "".join(pieces(tokenizer, ids, draw, prompt)) == tokenizer.decode(ids)


def test_the_first_word_keeps_its_space_and_a_chat_turn_gains_none() -> None:
    """The texts written out: what the reader of "Once upon a" and " time" must see."""
    tokenizer = TOKENIZERS["byte_fallback"]
    time = tokenizer.token_to_id("▁time")
    prompt = tokenizer.encode("Once upon a", add_special_tokens=False).ids
    assert pieces(tokenizer, [time], None, prompt) == [" time", ""]
    assert pieces(tokenizer, [time], None, [*prompt, 2]) == ["time", ""]
    assert pieces(tokenizer, [time], None, [1]) == ["time", ""]


def test_characters_made_of_bytes_follow_each_other_over_the_border() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = tokenizer.encode("你好", add_special_tokens=False).ids
    prompt, answer = ids[:-3], ids[-3:]
    assert tokenizer.decode(prompt) == "你"
    assert pieces(tokenizer, answer, None, prompt) == ["", "", "好", ""]


def test_bytes_that_are_no_character_spoil_nothing_that_was_sent() -> None:
    """Decoded at once the bytes of both characters are one run, which is no text as a whole."""
    tokenizer = TOKENIZERS["byte_fallback"]
    prompt = tokenizer.encode("你", add_special_tokens=False).ids
    damaged = [prompt[-3], tokenizer.token_to_id("▁cat")]
    assert tokenizer.decode(prompt + damaged) == "\ufffd" * 4 + " cat"
    assert pieces(tokenizer, damaged, None, prompt) == ["", "\ufffd cat", ""]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_replacement_character_that_ends_the_prompt_is_the_prompts(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("a \ufffd there", add_special_tokens=False).ids
    border = next(n for n in range(len(ids)) if tokenizer.decode(ids[:n]).endswith("a \ufffd"))
    joined = "".join(pieces(tokenizer, ids[border:], None, ids[:border]))
    assert tokenizer.decode(ids[:border]) + joined == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_character_that_the_prompt_leaves_incomplete_stays_so(seed: int | None) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("a😀b", add_special_tokens=False).ids
    assert tokenizer.decode(ids[:3]) == "a\ufffd"
    sizes = random.Random(seed) if seed else None
    assert "".join(pieces(tokenizer, ids[3:], sizes, ids[:3])) == "\ufffd\ufffdb"


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_decode_as_they_would_at_once(seed: int) -> None:
    tokenizer, draw = TOKENIZERS["byte_level"], random.Random(seed)
    ids = [draw.randrange(257) for _ in range(200)]
    assert "".join(pieces(tokenizer, ids, draw)) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_are_one_text_however_many_come_together(seed: int) -> None:
    """Tokens of bytes and words in any order, as a model with random weights writes them."""
    tokenizer, draw = TOKENIZERS["byte_fallback"], random.Random(seed)
    words = range(259, tokenizer.get_vocab_size())
    ids = [draw.choice([draw.randrange(3, 259), draw.choice(words)]) for _ in range(200)]
    streamed = "".join(pieces(tokenizer, ids, None))
    assert "".join(pieces(tokenizer, ids, draw)) == streamed
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(ids) + detokenizer.finish() == streamed


def test_bytes_that_are_no_character_spoil_no_line_in_front_of_them() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [tokenizer.token_to_id(token) for token in ("▁cat", "<0x0A>", "<0xE5>", "<0xE5>", "▁was")]
    assert tokenizer.decode(ids) == "cat\ufffd\ufffd\ufffd was"
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(ids) + detokenizer.finish() == "cat\n\ufffd\ufffd was"


@pytest.mark.parametrize("seed", range(60))
def test_ids_without_a_token_leave_characters_whole(seed: int) -> None:
    """As a model with random weights chooses them, of more rows than the tokenizer has tokens."""
    tokenizer, draw = TOKENIZERS["byte_level"], random.Random(seed)
    size = tokenizer.get_vocab_size()
    ids = [draw.randrange(257) if draw.random() < 0.3 else size + draw.randrange(200)
           for _ in range(200)]  # fmt: skip
    assert "".join(pieces(tokenizer, ids, draw)) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(60))
def test_words_in_any_order_keep_their_spaces(seed: int) -> None:
    tokenizer, draw = TOKENIZERS["byte_fallback"], random.Random(seed)
    vocabulary = tokenizer.get_vocab_size()
    ids = [draw.choice([1, 2, *range(259, vocabulary)]) for _ in range(60)]
    assert "".join(pieces(tokenizer, ids, draw)) == tokenizer.decode(ids)


def test_a_character_appears_as_soon_as_its_last_byte() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZERS["byte_level"])
    ids = TOKENIZERS["byte_level"].encode("é😀", add_special_tokens=False).ids
    assert [detokenizer.push([token]) for token in ids] == ["", "é", "", "", "", "😀"]
    assert detokenizer.finish() == ""


def test_an_incomplete_character_at_the_end_is_shown_as_one() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZERS["byte_level"])
    ids = TOKENIZERS["byte_level"].encode("a😀", add_special_tokens=False).ids
    assert detokenizer.push(ids[:-1]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_can_be_kept() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    assert IncrementalDetokenizer(tokenizer).push([0]) == ""
    assert IncrementalDetokenizer(tokenizer, skip_special_tokens=False).push([0]) == "</s>"


@pytest.mark.parametrize("token", [0, 150, 100_000])
def test_the_cost_of_a_token_does_not_grow_with_the_text(token: int) -> None:
    """Special, damaged and unknown ids give no text to move on with."""
    tokenizer = Counting(TOKENIZERS["byte_level"])
    detokenizer = IncrementalDetokenizer(tokenizer)  # type: ignore[arg-type]
    costs = []
    for _ in range(400):
        before = tokenizer.decoded
        detokenizer.push([token])
        costs.append(tokenizer.decoded - before)
    assert max(costs[200:]) <= max(costs[:200])


class Counting:
    """A tokenizer that counts the ids it is asked to decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids: list[int], **options: bool) -> str:
        self.decoded += len(ids)
        return str(self._tokenizer.decode(ids, **options))

    def id_to_token(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)  # type: ignore[no-any-return]

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(self._tokenizer.get_added_tokens_decoder())


def test_a_real_tokenizer(stories_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(stories_model / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert "".join(pieces(tokenizer, ids, random.Random(4))) == tokenizer.decode(ids)


def test_the_demo_tokenizer(demo_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert "".join(pieces(tokenizer, ids, random.Random(4))) == tokenizer.decode(ids)
