"""Does the model do what its config.pbtxt says?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.client import ClientError
from pipeline.triton.contract import ENGINE, POSTPROCESSING, PREPROCESSING
from pipeline.verify.accumulation import all_begin_alike, streamed_texts
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    as_long_as_accepted,
    check,
)
from pipeline.verify.requests import (
    NO_END,
    decoding_request,
    engine_inputs,
    request,
    text_inputs,
)
from pipeline.verify.tokens import begin_tokens, token_ids
from pipeline.verify.tokens import end_ids as declared_end_ids

_TRUE = ("true", "yes", "1", "t")
_FEW = 4
_MOST_WORDS = 6
# Rows of one request; no server of these models is built for fewer without saying so.
_ROWS = 16


@check("each response of a stream holds the new text, or all of it where accumulate_tokens says so")
def accumulate_tokens(context: Context) -> Details:
    """The parameter of ``tensorrt_llm_bls`` against a stream as it arrives."""
    context.needs_bls("only tensorrt_llm_bls has the parameter accumulate_tokens")
    context.needs_streams()
    prompt = context.plan.prompts[0]
    inputs = text_inputs([prompt], context.plan.max_tokens, stream=True)
    texts = streamed_texts(context.client, inputs)
    whole = context.greedy(prompt, end_id=NO_END).text
    if len(texts) < 2:
        raise CheckSkipped("not exercised: no stream came in more than one response")
    # Upstream's default is false.
    declared = (context.declared("accumulate_tokens") or "").lower() in _TRUE
    found = all_begin_alike(texts)
    if declared != found:
        sends = "the whole text so far" if found else "new text only"
        raise CheckFailed(
            f"config.pbtxt says accumulate_tokens {str(declared).lower()}, but each response of a "
            f"stream holds {sends}",
            responses=texts,
        )
    text = texts[-1] if found else "".join(texts)
    if text != whole:
        raise CheckFailed(f"the stream gave {text!r}, unstreamed it is {whole!r}", responses=texts)
    return {"accumulate_tokens": declared, "responses": len(texts)}


@check(
    "a stop word stays in the text or not, as the model declares, as upstream's where it does not"
)
def stop_word_kept(context: Context) -> Details:
    """``include_stop_str_in_output`` on ``tensorrt_llm_bls``; upstream's models keep the word.

    The ensemble has no such parameter: it stops on tokens, which stay.
    """
    prompt = context.plan.prompts[0]
    whole = context.greedy(prompt, end_id=NO_END).text
    declared = context.declared("include_stop_str_in_output") if context.is_bls else None
    kept = declared is None or declared.lower() in _TRUE
    # With the space in front, because the ensemble finds a word only as the tokens of the text.
    words = [f" {word}" for word in whole.split(" ")[2:-1] if word][:_MOST_WORDS]
    for word in words:
        got = context.greedy(prompt, end_id=NO_END, stop_words=(word,)).text
        before = whole[: whole.index(word)]
        if got in (before, before + word):
            if got.endswith(word) != kept:
                says = "nothing" if declared is None else declared
                raise CheckFailed(
                    f"the stop word {word!r} {'is not' if kept else 'is'} in the text, but "
                    f"include_stop_str_in_output says {says}"
                    f"{', and upstream keeps it' if declared is None else ''}",
                    text=got,
                )
            return {"word": word, "kept": kept}
    raise CheckSkipped(f"not exercised: none of the words {words} ended the text")


@check("every end id of the model can be asked for, and no other special token passes unnoticed")
def end_ids(context: Context) -> Details:
    """The ids that ``preprocessing`` names, against what the engine generates.

    A special token in the middle of an answer leaves no text, so nobody sees it; most often the
    model meant to end there, and the server does not know the id as an end. The token that texts
    begin with is not looked at: some models put it between two texts.
    """
    for model in (PREPROCESSING, ENGINE, POSTPROCESSING):
        if not context.has(model):
            raise CheckSkipped(f"the server has no {model}")
    ends = declared_end_ids(context)
    if not ends:
        raise CheckSkipped("the model names no end id")
    for end_id in ends:
        _ask_for(context, end_id)
    prompts = context.plan.prompts

    def ask(tokens: int) -> list[list[int]]:
        with ThreadPoolExecutor(len(context.plan.prompts)) as pool:
            asked = [
                pool.submit(_generated, context, p, ends, tokens) for p in context.plan.prompts
            ]
            return [future.result() for future in asked]

    answers = as_long_as_accepted(context.plan.long_tokens, ask)
    expected = {*ends, *begin_tokens(context)}
    for prompt, ids in zip(prompts, answers, strict=True):
        if silent := _special(context, ids[:-1]) - expected:
            raise CheckFailed(
                f"after {prompt!r} the model generated the special token {min(silent)} and went "
                f"on; the server's end ids are {ends}",
                special_tokens=sorted(silent),
            )
    longest = max(len(ids) for ids in answers)
    return {
        "end_ids": ends,
        "texts_that_ended_by_themselves": sum(len(ids) < longest for ids in answers),
    }


def _ask_for(context: Context, end_id: int) -> None:
    try:
        context.greedy(context.plan.prompts[0], _FEW, end_id=end_id)
    except ClientError as error:
        raise CheckFailed(f"the model's own end id {end_id} is refused: {error.what}") from error


def _generated(context: Context, prompt: str, ends: list[int], tokens: int) -> list[int]:
    """The ids that the engine makes of a prompt, with the end ids that the text models give it."""
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
    for tensors in context.client.responses(message):
        length = int(tensors["sequence_length"].values[0])
        ids += [int(token) for token in tensors["output_ids"].values[:length]]
    return ids


def _special(context: Context, ids: list[int]) -> set[int]:
    """The ids that leave no text, wherever they stand."""
    if not ids:
        return set()
    anchor = _plain_token(context)
    distinct = sorted(set(ids))
    plain = _texts(context, [[anchor, anchor]])[0]
    found: set[int] = set()
    for start in range(0, len(distinct), _ROWS):
        some = distinct[start : start + _ROWS]
        texts = _texts(context, [[anchor, token, anchor] for token in some])
        found |= {token for token, text in zip(some, texts, strict=True) if text == plain}
    return found


def _plain_token(context: Context) -> int:
    """A token of a prompt that is a word or a part of one.

    Next to a part of a character, other parts would seem to leave no text.
    """
    ids = token_ids(context, context.plan.prompts[0])[:_ROWS]
    texts = _texts(context, [[token] for token in ids])
    plain = (token for token, text in zip(ids, texts, strict=True) if text.strip().isalnum())
    return next(plain, ids[0])


def _texts(context: Context, rows: list[list[int]]) -> list[str]:
    output = context.client.infer_tensors(decoding_request(rows))["OUTPUT"]
    return [bytes(text).decode(errors="replace") for text in output.values]  # type: ignore[arg-type]
