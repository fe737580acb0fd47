"""Token ids of a text and the model's end ids, from the server's own preprocessing model."""

from __future__ import annotations

from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import CheckFailed, Context
from trtllm_client import Tensors, add_input, new_message

# Texts with nothing in common, so that a first token they share is not of the text.
_UNLIKE = ("a", "Zoë", "7", " x", "\n")


def token_ids(context: Context, text: str) -> list[int]:
    """The ids of a text, as the server tokenizes a prompt."""
    answer = _preprocess(context, text, ("INPUT_ID", "REQUEST_INPUT_LEN"))
    if "INPUT_ID" not in answer:
        raise CheckFailed("preprocessing sent no INPUT_ID")
    ids = answer["INPUT_ID"].values
    length = int(answer["REQUEST_INPUT_LEN"].values[0]) if "REQUEST_INPUT_LEN" in answer else None
    return [int(token) for token in ids[:length]]


def begin_tokens(context: Context) -> list[int]:
    """The token that the tokenizer puts in front of every text, if it does."""
    firsts = {tuple(token_ids(context, text)[:1]) for text in _UNLIKE}
    return list(next(iter(firsts))) if len(firsts) == 1 else []


def end_ids(context: Context) -> list[int]:
    """The ids that end a text of the model, as a request that names none gets them.

    The first is the end id; the others are stop words of one token, which is how upstream's engine
    can be told about more than one.
    """
    answer = _preprocess(context, context.plan.prompts[0], ("OUT_END_ID", "STOP_WORDS_IDS"))
    first = [int(token) for token in answer["OUT_END_ID"].values] if "OUT_END_ID" in answer else []
    words = answer.get("STOP_WORDS_IDS")
    ids, ends = _rows(words.values) if words else ((), ())
    more = [ids[end - 1] for start, end in zip((0, *ends), ends, strict=False) if end == start + 1]
    return [token for token in dict.fromkeys((*first, *more)) if token >= 0]


def _preprocess(context: Context, text: str, outputs: tuple[str, ...]) -> Tensors:
    message = new_message(PREPROCESSING, outputs=outputs)
    add_input(message, "QUERY", [text], datatype="BYTES")
    add_input(message, "REQUEST_OUTPUT_LEN", [1], datatype="INT32")
    return context.client.infer_tensors(message)


def _rows(values: tuple[bytes | int | float, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Upstream's word list [1, 2, L]: all ids, and where each word ends, filled up with -1."""
    numbers = tuple(int(value) for value in values)
    half = len(numbers) // 2
    return numbers[:half], tuple(end for end in numbers[half:] if end > 0)
