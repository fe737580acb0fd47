"""The texts that calibration and evaluation read, and their tokens."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from pipeline.errors import RecipeError, SourceError, UsageError, check_all
from pipeline.models.facts import ModelFacts
from pipeline.reading.files import read_regular
from pipeline.reading.json_text import parse_json
from pipeline.recipe.schema import Recipe
from pipeline.source.probes import exact_text
from pipeline.source.tokenizer import HuggingFaceTokenizer, open_tokenizer
from pipeline.store.digests import file_digest

Rows = list[list[int]]
# JSON joins the escapes of a whole pair into one character, so any that is left is alone.
SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def encode(self, text: str, /) -> list[int]:
        """Returns token ids with the model's own special tokens."""


class PairTokenizer(Tokenizer, Protocol):
    """A tokenizer that also tells what begins a text, and can leave that out."""

    @property
    def beginning(self) -> tuple[int, str] | None:
        """Returns the token that a text may begin with, and its text: bos, or else eos."""

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids with the model's own special tokens, or without."""


class SpanTokenizer(Protocol):
    """A tokenizer that knows which part of a text each token stands for."""

    def encode_with_spans(self, text: str, /) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Returns token ids with the model's own special tokens, and the characters of each.

        A span is empty where a token has no text. None where the tokenizer does not tell spans.
        """

    def decode(self, ids: Sequence[int], /) -> str:
        """Returns the text of token ids without special tokens, with every space they hold."""


class TextTokenizer(PairTokenizer, SpanTokenizer, Protocol):
    """All that is used of a model's own tokenizer."""


def text_digest(recipe: Recipe, key: str) -> str | None:
    """Computes the SHA-256 of a text file that the recipe names; None where it names none.

    Args:
        recipe: The recipe.
        key: ``quantize.calibration.text`` or ``evaluate.text``.

    Raises:
        RecipeError: The file cannot be read.
    """
    path = recipe.text_paths().get(key)
    if path is None:
        return None
    try:
        return file_digest(path)
    except OSError as error:
        raise RecipeError(
            f"the text {path} cannot be read",
            where=recipe.place(key),
            why=error.strerror,
            fix="Name a .txt or .jsonl file; relative paths begin at the recipe's folder",
        ) from error


def check_texts(recipe: Recipe) -> None:
    """Reads every text that the recipe names, before hours are spent on what comes before it.

    Raises:
        RecipeError: A text is missing, of another kind, not UTF-8, malformed or empty.
    """
    check_all(
        partial(_check_text, path, recipe.place(key)) for key, path in recipe.text_paths().items()
    )


def _check_text(path: Path, place: str) -> None:
    with named_at(place):
        read_texts(path)


@contextmanager
def named_at(place: str) -> Iterator[None]:
    """Makes what is wrong with a file a mistake of the recipe that names it.

    Args:
        place: Where the recipe names it, from :meth:`Recipe.place`.

    Raises:
        RecipeError: For a UsageError.
    """
    try:
        yield
    except UsageError as error:
        raise RecipeError(
            f"{error.where}: {error.what}", where=place, why=error.why, fix=error.fix
        ) from error


def read_texts(path: Path) -> list[str]:
    """Reads a file of texts.

    Args:
        path: ``.txt``: paragraphs between blank lines. ``.jsonl``: one ``{"text": "..."}`` a line.

    Returns:
        The texts in file order, without surrounding white space; at least one.

    Raises:
        UsageError: The file is missing, of another kind, not UTF-8, malformed or empty.
    """
    readers = {".txt": _paragraphs, ".jsonl": _json_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        found = f"its extension is {path.suffix}" if path.suffix else "it has no extension"
        raise UsageError(
            f"unsupported text file: {found}",
            where=str(path),
            fix="Use .txt (paragraphs between blank lines) or .jsonl (objects with a text)",
        )
    texts = list(reader(read_text_file(path), path))
    if not texts:
        raise UsageError(
            "the file holds no text",
            where=str(path),
            fix="Write paragraphs between blank lines, or one object with a text a line",
        )
    return texts


def sample(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Chooses at most ``count`` of the texts by ``seed``, in file order."""
    chosen = random.Random(seed).sample(range(len(texts)), min(count, len(texts)))  # noqa: S311
    return [texts[index] for index in sorted(chosen)]


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> TextTokenizer:
    """Loads the tokenizer of a Hugging Face snapshot, from local files only.

    To encode a text raises SourceError for a token that the model has no embedding of: such a
    token is only found in a text, because tokenizers with spare ids beyond the model's are common.

    Raises:
        MissingDependencyError: transformers is not installed.
        SourceError: The snapshot has no tokenizer that can be read.
    """
    rows = ModelFacts.from_directory(directory).vocab_size
    tokenizer = open_tokenizer(directory, trust_remote_code=trust_remote_code)
    return _TokenizerOfModel(tokenizer, rows, directory)


class _TokenizerOfModel:
    """A tokenizer whose tokens are rows of a model's embedding."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, rows: int, directory: Path) -> None:
        self._tokenizer, self._rows, self._directory = tokenizer, rows, directory

    @property
    def beginning(self) -> tuple[int, str] | None:
        tokenizer = self._tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return token, tokenizer.decode(
                    [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
        return None

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        return self._checked(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_with_spans(self, text: str, /) -> tuple[list[int], list[tuple[int, int]] | None]:
        if not self._tokenizer.is_fast:
            return self.encode(text), None
        found = self._tokenizer(text, return_offsets_mapping=True)
        return self._checked(found["input_ids"]), found["offset_mapping"]

    def decode(self, ids: Sequence[int], /) -> str:
        return exact_text(self._tokenizer, ids)

    def _checked(self, ids: list[int]) -> list[int]:
        largest = max(ids, default=0)
        if largest >= self._rows:
            raise SourceError(
                f"the tokenizer gives token {largest}, which the model has no row for",
                where=str(self._directory),
                why=f"vocab_size of its config.json is {self._rows}",
                fix="Use the tokenizer that belongs to the model, or resize its embeddings",
            )
        return ids


def token_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Rows:
    """Packs texts into rows of equal length, so that no statistic counts a padding token.

    Each text is cut to ``length`` tokens; all of them are then joined and cut into as few equally
    long rows as hold them. Fewer tokens than there are rows are left over and dropped.

    Args:
        texts: At least one.
        tokenizer: Adds the model's own special tokens.
        length: Longest row, in tokens.

    Raises:
        UsageError: The texts have no tokens.
    """
    tokens = [token for text in texts for token in tokenizer.encode(text)[:length]]
    if not tokens:
        raise UsageError("the texts have no tokens for this model's tokenizer")
    count = -(-len(tokens) // length)
    width = len(tokens) // count
    return [tokens[start : start + width] for start in range(0, count * width, width)]


def batches(rows: Rows, batch_size: int) -> list[Rows]:
    """Cuts rows into as few batches as allowed, their sizes differing by at most one.

    AWQ averages its statistics over batches, so a short last batch would count too much.
    """
    count = -(-len(rows) // batch_size)
    bounds = [index * len(rows) // count for index in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(bounds)]


def read_text_file(path: Path) -> str:
    """Reads a file of texts in UTF-8, without a byte order mark.

    Raises:
        UsageError: It is missing, cannot be read or is not UTF-8; with the line.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError as error:
        raise UsageError(
            "there is no such text file",
            where=str(path),
            fix="Correct the path; relative ones begin at the recipe's folder, those of --set here",
        ) from error
    except OSError as error:
        raise UsageError(
            "the text file cannot be read",
            where=str(path),
            why=error.strerror,
            # What is read twice, as a pipe cannot be.
            fix="Name a file that this user may read more than once",
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            "the text file is not UTF-8",
            where=f"{path}:{line}",
            why=f"Byte 0x{data[error.start]:02x} cannot be decoded",
            fix="Convert it, from latin1 if that is what it is, and name the new file: iconv "
            f"-f latin1 -t utf-8 -o {shlex.quote(f'{path}.utf-8{path.suffix}')} "
            f"{shlex.quote(str(path))}",
        ) from error


def _paragraphs(content: str, path: Path) -> Iterator[str]:  # noqa: ARG001
    for paragraph in re.split(r"\n[^\S\n]*\n", content.replace("\r\n", "\n")):
        if text := paragraph.strip():
            yield text


def _json_lines(content: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = parse_json(line, whole=False)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                'the line is not a JSON object with a "text"',
                where=f"{path}:{number}",
                why=str(error) if isinstance(error, ValueError) else None,
                fix='Write one object a line: {"text": "Once upon a time ..."}',
            ) from error
        if not isinstance(text, str):
            raise UsageError(
                f'"text" is {type(text).__name__}, not a string',
                where=f"{path}:{number}",
                fix="Put the text in double quotes",
            )
        if not text.isascii() and SURROGATE.search(text):
            raise UsageError(
                '"text" has half of a surrogate pair, which is not a character',
                where=f"{path}:{number}",
                fix="Write the character itself, or both halves of its \\u escape",
            )
        if text := text.strip():
            yield text
