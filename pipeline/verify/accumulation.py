"""Whether the responses of a stream hold new text, or all of it each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from pipeline.verify.requests import REPLACEMENT, Value, request, text_inputs, text_of
from trtllm_client import Client, ClientError, Tensors

_TOKENS = 8


def seen_to_accumulate(client: Client, prompt: str) -> bool:
    """Whether each response of a stream began with the one before it.

    Args:
        client: Connected to the model in question.
        prompt: A prompt that is fine.
    """
    inputs = text_inputs([prompt], _TOKENS, stream=True)
    try:
        texts = texts_of(streamed(client, inputs))
    except ClientError:
        return False  # what is wrong with the server is for the checks to say
    return all_begin_alike(texts)


def streamed(client: Client, inputs: Mapping[str, Sequence[Value]]) -> list[Tensors]:
    """Streams a request, and returns its responses as they arrived."""
    return list(client.responses(request(client.model, inputs)))


def texts_of(responses: Iterable[Tensors]) -> list[str]:
    """Reads the text of each response; empty ones are left out."""
    return [text for tensors in responses if (text := text_of(tensors))]


def all_begin_alike(texts: list[str]) -> bool:
    """Whether each text begins with the one before and they grow; two at least are needed to tell.

    A last replacement character may stand for a character that is only complete in the next text.
    Texts that are all the same are new ones: a model may say one word over and over. Empty ones
    begin everything and say nothing.
    """
    spoken = [text for text in texts if text]
    return len(set(spoken)) > 1 and all(
        later.startswith(earlier.rstrip(REPLACEMENT)) for earlier, later in pairwise(spoken)
    )
