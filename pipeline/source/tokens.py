"""The tokenizer of a model as calibration and evaluation use it, and the rows made with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

from pipeline.errors import SourceError, UsageError
from pipeline.models.facts import ModelFacts
from pipeline.source.rendering import Rendered, Text
from pipeline.source.special_tokens import tokens_in_front, without_second
from pipeline.source.tokenizer import HuggingFaceTokenizer, open_tokenizer

Rows = list[list[int]]
SpecialTokens = bool | Literal["auto"]
"""``auto`` adds what the tokenizer puts around a text, but nothing in front that is there."""


class Tokenizer(Protocol):
    """What is used of a model's tokenizer."""

    def encode(self, text: str, /, *, add_special_tokens: SpecialTokens = "auto") -> list[int]:
        """Returns token ids with the model's own special tokens, or without."""


class PairTokenizer(Tokenizer, Protocol):
    """A tokenizer that also tells what begins a text."""

    @property
    def beginning(self) -> tuple[int, str] | None:
        """Returns the token that a text may begin with, and its text: bos, or else eos."""


class SpanTokenizer(Protocol):
    """A tokenizer that knows which part of a text each token stands for."""

    def encode_with_spans(
        self, text: str, /, *, add_special_tokens: SpecialTokens = "auto"
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Returns the token ids, and the characters of each.

        A span is empty where a token has no text. None where the tokenizer does not tell spans.
        """

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids, with every space they hold."""


class TextTokenizer(PairTokenizer, SpanTokenizer, Protocol):
    """All that is used of a model's own tokenizer."""


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

    def encode(self, text: str, /, *, add_special_tokens: SpecialTokens = "auto") -> list[int]:
        return self._checked(self._encode(text, add_special_tokens))

    def encode_with_spans(
        self, text: str, /, *, add_special_tokens: SpecialTokens = "auto"
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        if not self._tokenizer.is_fast:
            return ids, None
        found = self._tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=bool(add_special_tokens)
        )
        spans = found["offset_mapping"]
        return ids, spans[len(spans) - len(ids) :]

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _encode(self, text: str, add_special_tokens: SpecialTokens) -> list[int]:
        if add_special_tokens != "auto":
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        plain = self._tokenizer.encode(text, add_special_tokens=False)
        return list(without_second(self._tokenizer.encode(text), plain, self._in_front))

    @cached_property
    def _in_front(self) -> tuple[int, ...]:
        return tokens_in_front(self._tokenizer)

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


def text_ids(tokenizer: Tokenizer, text: Text) -> list[int]:
    """Encodes a text as the model is to see it; a rendered one has its special tokens already."""
    if isinstance(text, Rendered):
        return tokenizer.encode(text.text, add_special_tokens=False)
    return tokenizer.encode(text)


def token_rows(texts: Sequence[Text], tokenizer: Tokenizer, length: int) -> Rows:
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
    tokens = [token for text in texts for token in text_ids(tokenizer, text)[:length]]
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
