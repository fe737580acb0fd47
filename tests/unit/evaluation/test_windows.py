"""Windows score each token once, with the context that was promised, and bytes are counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.errors import UsageError
from pipeline.evaluation.windows import Document, read_documents, strided_windows, text_length


class Letters:
    """One token per character, and bos in front where it is wanted."""

    def __init__(self, bos: int | None = None, *, spans: bool = True) -> None:
        self._bos, self._spans = bos, spans

    def encode(self, text: str, /, *, add_special_tokens: bool | str = "auto") -> list[int]:
        return self.encode_with_spans(text, add_special_tokens=add_special_tokens)[0]

    def encode_with_spans(
        self, text: str, /, *, add_special_tokens: bool | str = "auto"
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        ids = [ord(letter) for letter in text]
        spans = [(index, index + 1) for index in range(len(text))]
        if self._bos is not None and add_special_tokens:
            ids, spans = [self._bos, *ids], [(0, 0), *spans]
        return ids, spans if self._spans else None

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        assert skip_special_tokens or self._bos not in ids
        return "".join(chr(id_) for id_ in ids if id_ != self._bos)


def of_lengths(*lengths: int) -> list[Document]:
    """Documents whose ids tell where they stand."""
    return [
        Document("", range(1000 * number, 1000 * number + length), 0)
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("length", "stride"), [(2, None), (2, 1), (8, None), (8, 1), (8, 7), (8, 50), (9, 4), (64, 3)]
)
def test_every_token_is_scored_once_with_its_context(length: int, stride: int | None) -> None:
    documents = of_lengths(2, 3, 7, 8, 9, 10, 16, 17, 33, 100)
    step = min(length // 2 if stride is None else stride, length - 1)
    scored: list[tuple[int, int]] = []
    for window in strided_windows(documents, length, stride):
        ids = documents[window.document].ids
        begin = window.ids[0] - ids[0]
        assert list(window.ids) == list(ids[begin : begin + len(window.ids)])
        assert 1 <= window.first < len(window.ids) <= length
        for place in range(window.first, len(window.ids)):
            # Everything before it in the document, or what the stride leaves.
            assert place >= min(begin + place, length - step)
            scored.append((window.document, begin + place))
    assert scored == [(n, i) for n, doc in enumerate(documents) for i in range(1, len(doc.ids))]


def test_windows_by_hand() -> None:
    windows = strided_windows([Document("", "abcdefghijk", 0)], 6, 3)  # type: ignore[arg-type]
    assert [(window.ids, window.first) for window in windows] == [
        ("abcdef", 1),
        ("defghi", 3),
        ("fghijk", 4),
    ]


def test_documents_stop_at_the_number_of_tokens() -> None:
    documents = read_documents(["abcdefgh", "xy", "z", "0123456789", "never"], Letters(), 12)
    # 7 + 1 + 4 predictions; "z" has none.
    assert ["".join(map(chr, document.ids)) for document in documents] == [
        "abcdefgh",
        "xy",
        "01234",
    ]
    assert [document.scored for document in documents] == [7, 1, 4]
    assert [document.bytes for document in documents] == [7, 1, 4]


def test_with_bos_the_whole_text_counts() -> None:
    (document,) = read_documents(["né 🐌"], Letters(bos=7), 100)
    assert document.scored == 4
    assert document.bytes == len("né 🐌".encode()) == 8
    (cut,) = read_documents(["né 🐌"], Letters(bos=7), 2)
    assert cut.bytes == len("né".encode())


def test_without_bos_the_first_token_is_context_only() -> None:
    (document,) = read_documents(["én🐌"], Letters(), 100)
    assert document.bytes == len("n🐌".encode())


def test_bytes_of_a_tokenizer_without_spans_are_those_of_its_text() -> None:
    for tokenizer in (Letters(spans=False), Letters(7, spans=False)):
        (document,) = read_documents(["né 🐌"], tokenizer, 3)
        expected = "né 🐌"[1:] if document.ids[0] == ord("n") else "né "
        assert document.bytes == len(expected.encode())


def test_a_document_is_known_by_its_beginning() -> None:
    text = "word " * 40
    (document,) = read_documents([text], Letters(), 5)
    assert document.begins == text[:80]


def test_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no evaluation text has two tokens"):
        read_documents(["a", "b"], Letters(), 12)


# Of "Hi 🐌!" in a byte-level vocabulary: bos, "Hi", " ", the character's four bytes, "!", eos.
SPANS = [(0, 0), (0, 2), (2, 3), (3, 4), (3, 4), (3, 4), (3, 4), (4, 5), (0, 0)]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, ""),
        (2, "Hi"),
        (3, "Hi "),
        (4, "Hi "),
        (6, "Hi "),
        (7, "Hi 🐌"),
        (8, "Hi 🐌!"),
        (9, "Hi 🐌!"),
    ],
)
def test_a_character_counts_with_its_last_token(count: int, text: str) -> None:
    assert text_length("Hi 🐌!", SPANS, count) == len(text)


def test_a_space_that_no_token_names_belongs_to_the_word_behind_it() -> None:
    # ByteLevel with trim_offsets leaves the space of " world" out of its span.
    assert text_length("hello world", [(0, 5), (6, 11)], 1) == 5
    assert text_length("hello world", [(0, 5), (6, 11)], 2) == 11
