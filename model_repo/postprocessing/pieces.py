"""The text of a piece of a sequence, without the pieces before it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from .detokenizer import REPLACEMENT, IncrementalDetokenizer


class PieceDecoder:
    """Decodes pieces so that, joined, their spaces are those of the whole text.

    A tokenizer that drops the space in front of a text (Llama 2's, Mistral's) would drop the one in
    front of every piece. So a piece is decoded behind a token of plain text, which is then cut off;
    only ids that begin with a special token are the beginning of a text.

    Args:
        tokenizer: The model's tokenizer.
        skip_special_tokens: Whether special tokens leave no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._before = self._plain_token()
        self._before_text = self._decode(self._before)

    def text(self, ids: Sequence[int]) -> str:
        """The text of one piece; a character of which it has a part only is not whole."""
        tokens = [int(token) for token in ids]
        begins = bool(tokens) and tokens[0] in self._special
        before, before_text = ([], "") if begins else (self._before, self._before_text)
        text = self._decode(before + tokens)
        if REPLACEMENT not in text and text.startswith(before_text):
            return text[len(before_text) :]
        # tensorrt_llm_bls sends this text, whose damage spreads no further than to one token.
        decoder = IncrementalDetokenizer(
            self._tokenizer, skip_special_tokens=self._skip, prompt=before
        )
        return decoder.push(tokens) + decoder.finish()

    def _plain_token(self) -> list[int]:
        """A token that is a letter or more, and leaves what follows it alone; or none."""
        added = self._tokenizer.get_added_tokens_decoder()
        for token_id in range(self._tokenizer.get_vocab_size()):
            token = self._tokenizer.id_to_token(token_id)
            if token is None or token_id in added:
                continue
            text = self._decode([token_id])
            # A token that names a byte decodes to something else than the end of its name.
            if text.isalnum() and token.endswith(text):
                return [token_id]
        return []

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip))
