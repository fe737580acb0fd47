from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UsageError
from pipeline.recipe.schema import Recipe
from pipeline.source.lines import Conversation, read_texts, sample
from pipeline.source.texts import check_texts
from pipeline.source.tokens import batches, token_rows


class Letters:
    """A tokenizer whose tokens are the code points, after a start token."""

    def encode(self, text: str, /, *, add_special_tokens: bool | str = "auto") -> list[int]:
        return [*([1] if add_special_tokens else []), *map(ord, text)]


def test_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffOne\nline.\r\n\r\n \n\n  Two é.  \n".encode())
    assert read_texts(path) == ["One\nline.", "Two é."]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a\\n\\nb", "id": 1}\n\n{"text": "c\u2028d"}\n')
    assert read_texts(path) == ["a\n\nb", "c\u2028d"]


def test_columns_that_a_row_has_not_are_null(tmp_path: Path) -> None:
    """As datasets of several kinds are written when they are joined."""
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"text": "a", "messages": null, "prompt": null}\n'
        '{"text": null, "messages": [{"role": "user", "content": "b"}], "tools": null}\n'
        '{"text": null, "messages": null, "prompt": "c", "completion": null}\n'
    )
    plain, chat, prompt = read_texts(path)
    assert (plain, prompt) == ("a", "c")
    assert isinstance(chat, Conversation)
    assert chat.messages == [{"role": "user", "content": "b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x"', r't\.jsonl:3: .*"text"'),
        ('{"txt": "x"}', r't\.jsonl:3: .*"text"'),
        ('["x"]', r't\.jsonl:3: .*"text"'),
        ('{"text": 5}', r't\.jsonl:3: "text" is int'),
        ('{"text": null}', r't\.jsonl:3: "text" is NoneType'),
        ('{"text": "x\\ud800y"}', r"t\.jsonl:3: .*half of a surrogate pair"),
        ("[" * 100000, r't\.jsonl:3: .*"text"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(UsageError, match=reason):
        read_texts(path)


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(UsageError, match=r"t\.txt:3: .*not UTF-8. Byte 0xe9"):
        read_texts(path)


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"t\.txt: the file holds no text"):
        read_texts(path)


def test_missing_files_directories_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such text file"):
        read_texts(tmp_path / "gone.txt")
    with pytest.raises(UsageError, match=r"its extension is \.csv"):
        read_texts(tmp_path / "t.csv")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(UsageError, match="the text file cannot be read"):
        read_texts(tmp_path / "d.txt")


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(r'{"text": "\ud83d\ude00"}')
    assert read_texts(path) == ["\U0001f600"]


def test_a_name_that_no_file_has() -> None:
    with pytest.raises(UsageError, match=r"cannot be read\. .*null"):
        read_texts(Path("a\0.txt"))


def recipe(calibration: Path, evaluation: Path, **changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "model": {"source": "m"},
            "quantize": {
                "format": "int8_sq",
                "calibration": {"text": str(calibration)},
                **changes,
            },
            "evaluate": {"text": str(evaluation)},
        }
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.txt", None, "there is no such text file"),
        ("t.csv", b"x", r"its extension is \.csv"),
        ("t.jsonl", b'{"text": "a"}\n{"text"\n', r"t\.jsonl:2: the line is not a JSON object"),
        ("t.txt", b"caf\xe9", r"t\.txt:1: the text file is not UTF-8"),
        ("t.txt", b"\n\n", "the file holds no text"),
    ],
)
def test_texts_are_checked_with_the_recipes_place(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / name
    good.write_text("words")
    if content is not None:
        bad.write_bytes(content)
    check_texts(recipe(good, good))
    with pytest.raises(RecipeError, match=rf"^evaluate\.text: .*{expected}"):
        check_texts(recipe(good, bad))
    with pytest.raises(RecipeError, match=rf"^quantize\.calibration\.text: .*{expected}"):
        check_texts(recipe(bad, good))
    # An unquantized format reads no calibration text.
    check_texts(recipe(bad, good, format="float16"))


def test_samples_depend_on_the_seed_only() -> None:
    texts = [str(number) for number in range(100)]
    first = sample(texts, 10, seed=1)
    assert first == sample(texts, 10, seed=1) != sample(texts, 10, seed=2)
    assert first == sorted(first, key=int)
    assert sample(texts, 1000, seed=1) == texts


def test_rows_are_equally_long_and_hold_no_padding() -> None:
    rows = token_rows(["abc", "de", "fghijklmnop"], Letters(), 6)
    # 4 + 3 + 6 tokens after cutting: three rows of four, one token left over.
    assert rows == [[1, 97, 98, 99], [1, 100, 101, 1], [102, 103, 104, 105]]


def test_one_short_text_is_one_short_row() -> None:
    assert token_rows(["ab"], Letters(), 512) == [[1, 97, 98]]


def test_batches_are_few_and_even() -> None:
    rows = [[number] for number in range(10)]
    assert [len(batch) for batch in batches(rows, 4)] == [3, 3, 4]
    assert [row for batch in batches(rows, 4) for row in batch] == rows
    assert [len(batch) for batch in batches(rows, 16)] == [10]
