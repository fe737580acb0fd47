"""How a model answers, which its ``config.pbtxt`` says and its answers do not."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_client._errors import ServerFailed
from trtllm_client._info import ModelMetadata

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What upstream's tensorrt_llm_bls takes for true.
_TRUE = ("true", "yes", "1", "t")


@dataclass(frozen=True)
class Traits:
    """How a model answers.

    Attributes:
        decoupled: Whether a request may have several responses, so that it can be streamed.
        accumulates: Whether each response of a stream holds the whole text so far
            (``accumulate_tokens``) instead of the new text.
    """

    decoupled: bool = True
    accumulates: bool = False

    @classmethod
    def of(cls, metadata: ModelMetadata, accumulates: bool | None) -> Traits:
        """Reads the traits from what the server says about the model.

        Args:
            accumulates: Instead of what the server says, if not None.
        """
        if accumulates is None:
            declared = dict(metadata.parameters).get("accumulate_tokens", "")
            accumulates = declared.lower() in _TRUE
        return cls(metadata.decoupled, accumulates)


class TextSoFar:
    """Takes the new text out of responses that each hold the whole text so far."""

    def __init__(self) -> None:
        self._sent = ""
        self._held = ""

    def new(self, text: str, *, final: bool) -> str:
        """Returns what is new in ``text``.

        Replacement characters at its end are held back until the answer is complete, since the
        next response may have the character that they stand for.

        Raises:
            ServerFailed: ``text`` does not begin with what came before.
        """
        if not text and self._sent:
            # Upstream's model sends nothing more for a text that a stop word has ended.
            return self.rest() if final else ""
        if not text.startswith(self._sent):
            raise ServerFailed(
                "a response does not begin with the text of those before it",
                why="the model's config.pbtxt says accumulate_tokens, which makes each response "
                "of a stream the whole text so far, but it sends pieces",
                fix="Write the repository again with trtllm-pipeline run, or make the client with "
                "accumulate_tokens=False",
            )
        certain = text if final else text.rstrip(_REPLACEMENT)
        new = certain[len(self._sent) :]
        self._sent = max(certain, self._sent, key=len)
        self._held = text[len(self._sent) :]
        return new

    def rest(self) -> str:
        """Returns what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        self._sent += held
        return held
