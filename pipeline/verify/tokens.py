"""Token ids of a text and the model's end ids, from the server's own preprocessing model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.source.probes import AUTO
from pipeline.triton.contract import ADD_SPECIAL_TOKENS, ENGINE, POSTPROCESSING, PREPROCESSING
from pipeline.verify.check import CheckFailed, Context
from pipeline.verify.requests import NO_END, decoding_request, engine_inputs, request
from trtllm_client import InvalidRequest, Tensors, add_input, new_message

# Texts with nothing in common, so that a first token they share is not of the text.
_UNLIKE = ("a", "Zoë", "7", " x", "\n")
# What upstream's preprocessing takes for false.
_FALSE = ("false", "0", "f", "n", "no")
# Rows of one request, where the server takes so many.
_ROWS = 16


def token_ids(context: Context, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
    """The ids of a text, as the server tokenizes a prompt.

    Args:
        context: A server with ``preprocessing``.
        text: The text.
        add_special_tokens: Asked for only on a server for which :func:`chooses_special_tokens`;
            None is the server's setting.
    """
    if not context.on_triton:
        return context.openai.tokenize(text, add_special_tokens=add_special_tokens is not False)
    answer = _preprocess(
        context, text, ("INPUT_ID", "REQUEST_INPUT_LEN"), add_special_tokens=add_special_tokens
    )
    if "INPUT_ID" not in answer:
        raise CheckFailed("preprocessing sent no INPUT_ID")
    ids = answer["INPUT_ID"].values
    length = int(answer["REQUEST_INPUT_LEN"].values[0]) if "REQUEST_INPUT_LEN" in answer else None
    return [int(token) for token in ids[:length]]


def begin_tokens(context: Context) -> list[int]:
    """The token that the tokenizer puts in front of every text, if it does."""
    try:
        firsts = {tuple(token_ids(context, text)[:1]) for text in _UNLIKE}
    except InvalidRequest:  # of a text that has no token at all, so nothing is put in front of it
        return []
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


def chooses_special_tokens(context: Context, model: str = PREPROCESSING) -> bool:
    """Tells whether a request to a model may say ``add_special_tokens``; upstream's may not."""
    names = {tensor.name.lower() for tensor in context.client.model_metadata(model).inputs}
    return ADD_SPECIAL_TOKENS in names


def special_tokens_setting(context: Context) -> bool | str:
    """The setting ``add_special_tokens`` of the server: True, False or ``auto``.

    Where upstream's ``preprocessing`` has none, or one that it does not understand, it is true.
    """
    declared = (context.declared(ADD_SPECIAL_TOKENS, PREPROCESSING) or "").lower()
    if declared == AUTO:
        return AUTO
    return declared not in _FALSE


def _preprocess(
    context: Context,
    text: str,
    outputs: tuple[str, ...],
    *,
    add_special_tokens: bool | None = None,
) -> Tensors:
    message = new_message(PREPROCESSING, outputs=outputs)
    add_input(message, "QUERY", [text], datatype="BYTES")
    add_input(message, "REQUEST_OUTPUT_LEN", [1], datatype="INT32")
    if add_special_tokens is not None:
        name = ADD_SPECIAL_TOKENS.upper()
        add_input(message, name, [add_special_tokens], datatype="BOOL")
    return context.triton.infer_tensors(message)


def _rows(values: tuple[bytes | int | float, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Upstream's word list [1, 2, L]: all ids, and where each word ends, filled up with -1."""
    numbers = tuple(int(value) for value in values)
    half = len(numbers) // 2
    return numbers[:half], tuple(end for end in numbers[half:] if end > 0)


def generated_ids(
    context: Context, prompt: str, tokens: int, ends: Sequence[int] = (NO_END,)
) -> list[int]:
    """Lets the engine continue a prompt, and returns the ids it makes.

    Args:
        context: A server with ``tensorrt_llm`` and ``preprocessing``.
        prompt: The prompt.
        tokens: How many, at most.
        ends: The ids that end it, as the text models give them to the engine.
    """
    count = len(ends) - 1
    more = {"stop_words_list": [*ends[1:], *range(1, count + 1)]} if count else {}
    inputs = engine_inputs(
        token_ids(context, prompt),
        tokens,
        stream=False,
        end_id=ends[0],
        exclude_input_in_output=True,
    )
    shapes = {"stop_words_list": (1, 2, count)}
    message = request(
        ENGINE, {**inputs, **more}, shapes=shapes, outputs=("output_ids", "sequence_length")
    )
    ids: list[int] = []
    for tensors in context.triton.responses(message):
        length = int(tensors["sequence_length"].values[0])
        ids += [int(token) for token in tensors["output_ids"].values[:length]]
    return ids


def silent_tokens(context: Context, ids: Sequence[int]) -> set[int]:
    """Finds those of some ids that leave no text, wherever they stand."""
    if not ids:
        return set()
    anchor = _plain_token(context)
    distinct = sorted(set(ids))
    plain = texts_of_ids(context, [[anchor, anchor]])[0]
    found: set[int] = set()
    rows = _rows_at_once(context)
    for start in range(0, len(distinct), rows):
        some = distinct[start : start + rows]
        texts = texts_of_ids(context, [[anchor, token, anchor] for token in some])
        found |= {token for token, text in zip(some, texts, strict=True) if text == plain}
    return found


def _plain_token(context: Context) -> int:
    """A token of a prompt that is a word or a part of one.

    Next to a part of a character, other parts would seem to leave no text.
    """
    ids = token_ids(context, context.plan.plain_prompts[0])[: _rows_at_once(context)]
    texts = texts_of_ids(context, [[token] for token in ids])
    plain = (token for token, text in zip(ids, texts, strict=True) if text.strip().isalnum())
    return next(plain, ids[0])


def _rows_at_once(context: Context) -> int:
    return max(min(context.client.model_metadata(POSTPROCESSING).max_batch_size, _ROWS), 1)


def texts_of_ids(context: Context, rows: list[list[int]]) -> list[str]:
    """Decodes equally long rows of ids with ``postprocessing``, each row at once."""
    output = context.triton.infer_tensors(decoding_request(rows))["OUTPUT"]
    return [bytes(text).decode(errors="replace") for text in output.values]  # type: ignore[arg-type]


def leaves_no_text(context: Context, token: int) -> bool:
    """Tells whether a token is known to leave no text, such as a special one."""
    return context.has(POSTPROCESSING) and bool(silent_tokens(context, [token]))
