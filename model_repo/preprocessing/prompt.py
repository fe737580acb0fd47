"""Text to token ids with the model's own tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .end_ids import read_end_ids
from .engine_limits import EngineLimits

SHRINKING = 4
"""A tokenizer may first shorten a text, to a third at most where it composes Unicode characters."""

MAX_WORDS = 1024
"""Words of one list. Each costs a call of the tokenizer, and ends a text or is looked for in it."""

UNKNOWN = EngineLimits()


class PromptError(Exception):
    """A request that the engine cannot be asked; the message goes to the client."""


class PromptEncoder:
    """A tokenizer directory, opened.

    Args:
        tokenizer_dir: Holds ``tokenizer.json``; ``generation_config.json`` and
            ``tokenizer_config.json`` are read for the end and pad ids where they are.
        add_special_tokens: Whether prompts get what the tokenizer puts around a text, such as bos,
            where a request does not say. None gives it to them, but leaves out what is put in front
            where the text itself begins with it, as a rendered chat template does.
        limits: What the engine takes.

    Attributes:
        limits: What the engine takes.
        end_ids: Every id that ends a text; empty when the model names none.
        pad_id: The tokenizer's pad id, or the first end id, or 0.

    Raises:
        ValueError: A file is damaged.
    """

    def __init__(
        self,
        tokenizer_dir: Path,
        *,
        add_special_tokens: bool | None = None,
        limits: EngineLimits = UNKNOWN,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        # Files saved while training may cut or pad every text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_special_tokens = add_special_tokens
        self.limits = limits
        longest = max((len(token.encode()) for token in self._tokenizer.get_vocab()), default=1)
        max_tokens = limits.max_input_len
        self._max_bytes = None if max_tokens is None else SHRINKING * longest * max_tokens
        self.end_ids = read_end_ids(tokenizer_dir, limits.vocab_size)
        config = _read_json(tokenizer_dir / "tokenizer_config.json")
        # tokenizer.json cannot say that special tokens in a text are plain text.
        self._tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
        pad = self._id_of(config.get("pad_token"))
        self.pad_id = pad if pad is not None else self.end_ids[0] if self.end_ids else 0

    @property
    def vocab_size(self) -> int:
        """Tokens of the engine; of the tokenizer, added ones included, where that is not known."""
        return self.limits.vocab_size or int(self._tokenizer.get_vocab_size())

    def encode(
        self, text: bytes, name: str, *, add_special_tokens: bool | None = None
    ) -> list[int]:
        """The token ids of a prompt.

        Args:
            name: What to call the text in an error.
            add_special_tokens: What the request says; None is this encoder's setting.

        Raises:
            PromptError: It is not UTF-8, is so long that it must have too many tokens, has one that
                the engine lacks, or has none; an empty text has one where the tokenizer puts bos
                in front.
        """
        self._check_size(len(text), name)
        decoded = _decode(text, name)
        added = self._add_special_tokens if add_special_tokens is None else add_special_tokens
        encoding = self._tokenizer.encode(decoded, add_special_tokens=added is not False)
        ids = _once(encoding) if added is None else list(encoding.ids)
        if not ids and not text:
            raise PromptError(
                f"{name} is empty, and this tokenizer puts no token in front of a text: give at "
                "least one character to continue"
            )
        if not ids:
            raise PromptError(f"{name} has no tokens: it holds only what the tokenizer drops")
        self.check_known(ids, name)
        return ids

    def word_ids(self, words: Sequence[bytes], name: str) -> list[list[int]]:
        """The token ids of each word on its own, without special tokens.

        Args:
            name: What to call the list in an error.

        Raises:
            PromptError: One is not UTF-8, there are too many, or they are together too long.
        """
        if len(words) > MAX_WORDS:
            raise PromptError(f"{name} has {len(words)} words; it may have at most {MAX_WORDS}")
        self._check_size(sum(map(len, words)), name)
        return [
            list(self._tokenizer.encode(_decode(word, name), add_special_tokens=False).ids)
            for word in words
        ]

    def check_known(self, ids: Iterable[int], name: str) -> None:
        """Refuses ids that the engine has no token for.

        Args:
            name: What to call the text in an error.

        Raises:
            PromptError: There is one.
        """
        unknown = [token for token in ids if token >= self.vocab_size]
        if unknown:
            raise PromptError(
                f"{name} has the token {self._tokenizer.id_to_token(unknown[0])!r}, which only the "
                f"tokenizer knows: its id is {unknown[0]}, and the engine's are 0 to "
                f"{self.vocab_size - 1}"
            )

    def _check_size(self, size: int, name: str) -> None:
        # Finding the tokens of a megabyte takes seconds, in which everyone else's prompt waits.
        if self._max_bytes is not None and size > self._max_bytes:
            raise PromptError(
                f"{name} is too long: its {size} bytes cannot fit into the "
                f"{self.limits.max_input_len} tokens (max_input_len) that the engine was compiled "
                "for"
            )

    def _id_of(self, token: Any) -> int | None:
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)


def word_list(rows: Sequence[Iterable[Sequence[int]]]) -> npt.NDArray[np.int32]:
    """Token sequences in upstream's word list format.

    Args:
        rows: Per batch element, the words as token ids; empty words are left out.

    Returns:
        int32 [batch, 2, L]: all ids one after the other, padded with 0, and where each word ends,
        padded with -1. L is 0 when there is no word at all.
    """
    kept = [[word for word in row if word] for row in rows]
    length = max((sum(map(len, row)) for row in kept), default=0)
    result = np.zeros((len(kept), 2, length), np.int32)
    result[:, 1] = -1
    for row, words in enumerate(kept):
        ids = [token for word in words for token in word]
        ends = np.cumsum([len(word) for word in words])
        result[row, 0, : len(ids)] = ids
        result[row, 1, : len(ends)] = ends
    return result


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> npt.NDArray[np.int32]:
    """int32 [batch, longest row], shorter rows filled up at their end."""
    result = np.full((len(rows), max(map(len, rows))), pad_id, np.int32)
    for row, ids in enumerate(rows):
        result[row, : len(ids)] = ids
    return result


def _once(encoding: Any) -> list[int]:
    """Ids without what the tokenizer put in front, where the text's own ids begin with the same."""
    ids, added = list(encoding.ids), encoding.special_tokens_mask
    count = next((place for place, special in enumerate(added) if not special), 0)
    of_text = not any(added[count : 2 * count])
    return ids[count:] if of_text and ids[:count] == ids[count : 2 * count] else ids


def _decode(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not valid UTF-8: byte 0x{text[error.start]:02x} at position {error.start}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
