"""Cuts held-out texts into windows that a model can score.

A token's likelihood depends on how much text stands before it. The windows of a document therefore
overlap: the first scores all of its tokens but the first, each later one only what the windows
before it did not reach, with the rest as context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.source.rendering import Rendered, Text
from pipeline.source.tokens import SpecialTokens, TextTokenizer

# How much of a document stands for it where it is named.
BEGINNING = 80


@dataclass(frozen=True)
class Document:
    """One text's tokens, as far as they are scored.

    Attributes:
        begins: The text's first :data:`BEGINNING` characters.
        ids: Token ids, two or more; the first is context only.
        bytes: UTF-8 bytes of the text that all ids but the first stand for; of a conversation, of
            what its template made of it.
        question: Ids of a conversation up to where its last answer begins; empty for other texts.
    """

    begins: str
    ids: Sequence[int]
    bytes: int
    question: Sequence[int] = ()

    @property
    def scored(self) -> int:
        """Counts the tokens that are scored."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Window:
    """What a model sees at once.

    Attributes:
        document: Index of the document.
        ids: Token ids, a part of the document's.
        first: Index in ``ids`` of the first token that is scored, 1 or more; all behind it are too.
    """

    document: int
    ids: Sequence[int]
    first: int

    @property
    def scored(self) -> int:
        """Counts the tokens that are scored."""
        return len(self.ids) - self.first


def read_documents(texts: Iterable[Text], tokenizer: TextTokenizer, tokens: int) -> list[Document]:
    """Tokenizes texts in their order until ``tokens`` are to be scored.

    The first token of a text is context only. Where the tokenizer puts a token such as bos in front
    of a text, that is it, and the whole text is scored. A text of one token is left out. A rendered
    conversation has its special tokens already, and they are scored as any other.

    Raises:
        UsageError: No text has two tokens.
    """
    documents: list[Document] = []
    left = tokens
    for given in texts:
        rendered = given if isinstance(given, Rendered) else None
        text = rendered.text if rendered else str(given)
        special: SpecialTokens = False if rendered else "auto"
        ids, spans = tokenizer.encode_with_spans(text, add_special_tokens=special)
        kept = ids[: left + 1]
        if len(kept) < 2:
            continue
        if spans is None:
            counted = tokenizer.decode(kept[1:], skip_special_tokens=not rendered)
        else:
            counted = text[text_length(text, spans, 1) : text_length(text, spans, len(kept))]
        size = len(counted.encode("utf-8"))
        question = tokenizer.encode(rendered.question, add_special_tokens=False) if rendered else []
        documents.append(Document(text[:BEGINNING], kept, size, question))
        left -= len(kept) - 1
        if not left:
            break
    if not documents:
        raise UsageError("no evaluation text has two tokens for this model's tokenizer")
    return documents


def text_length(text: str, spans: Sequence[tuple[int, int]], count: int) -> int:
    """Measures the characters of a text that its first ``count`` tokens stand for.

    A character of several tokens, as a rare one of a byte-level vocabulary, counts with its last.

    Args:
        text: The text.
        spans: First character of every token, and the one behind its last; empty for a token that
            has no text.
        count: At most as many as there are spans.
    """
    following = next((start for start, end in spans[count:] if start < end), None)
    if following is None:
        return len(text)
    reached = max((end for start, end in spans[:count] if start < end), default=0)
    return min(reached, following)


def strided_windows(
    documents: Sequence[Document], length: int, stride: int | None = None
) -> list[Window]:
    """Cuts documents into windows whose scored parts meet: each token is scored exactly once.

    Each window after a document's first is as long as ``length`` allows, so the last one, which may
    score a few tokens only, has most of its tokens as context. That is how EleutherAI's lm-eval
    rolls over a text (``get_rolling_token_windows`` of its ``utils.py``); transformers' guide
    (https://huggingface.co/docs/transformers/perplexity) shortens the last window instead.

    Args:
        documents: Two tokens or more each.
        length: The longest window, in tokens, 2 or more.
        stride: Tokens that each window after a document's first scores, at most; brought into 1 to
            ``length - 1``. Every token behind the first window then has ``length - stride`` tokens
            of context or more. None is half of ``length``.

    Returns:
        The windows in the documents' order; no window crosses from one document into the next.
    """
    step = min(max(1, length // 2 if stride is None else stride), length - 1)
    windows = []
    for index, document in enumerate(documents):
        ids = document.ids
        windows.append(Window(index, ids[:length], 1))
        for done in range(length, len(ids), step):
            end = min(done + step, len(ids))
            windows.append(Window(index, ids[end - length : end], length - (end - done)))
    return windows
