"""Token ids to text where the text of some special tokens counts.

Some models write a call with special tokens of their own, such as Mistral's ``[TOOL_CALLS]``, which
leave no text otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol


class Detokenizer(Protocol):
    """Writes the text of one sequence of ids as they come."""

    def push(self, ids: Iterable[int]) -> str:
        """Returns the text that is certain now."""
        ...

    def finish(self) -> str:
        """Returns the text that was held back."""
        ...


def special_markers(tokenizer: Any, markers: Sequence[str]) -> dict[int, str]:
    """Returns which of some texts are special tokens, by id.

    Args:
        tokenizer: Of the tokenizers library.
        markers: The texts.
    """
    return {
        int(id_): str(token.content)
        for id_, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content in markers
    }


class MarkedDetokenizer:
    """Writes the text of one sequence of ids with that of its markers.

    What follows a marker begins as a text of its own, as behind any special token.

    Args:
        new: Makes what writes the text between two markers, given the ids before it.
        markers: Texts by id.
        prompt: Ids that the sequence continues.
    """

    def __init__(
        self,
        new: Callable[[Sequence[int]], Detokenizer],
        markers: Mapping[int, str],
        prompt: Sequence[int] = (),
    ) -> None:
        self._new, self._markers = new, markers
        self._between = new(prompt)

    def push(self, ids: Iterable[int]) -> str:
        """Returns the text that is certain now."""
        text = ""
        run: list[int] = []
        for id_ in ids:
            if id_ not in self._markers:
                run.append(id_)
                continue
            text += self._between.push(run) + self._between.finish() + self._markers[id_]
            run = []
            self._between = self._new((id_,))
        return text + self._between.push(run)

    def finish(self) -> str:
        """Returns the text that was held back."""
        return self._between.finish()
