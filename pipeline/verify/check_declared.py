"""Does the model do what its config.pbtxt says?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.triton.contract import ENGINE, POSTPROCESSING, PREPROCESSING
from pipeline.verify.accumulation import all_begin_alike, streamed, texts_of
from pipeline.verify.check import (
    TRUE,
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    as_long_as_accepted,
    check,
)
from pipeline.verify.requests import (
    NO_END,
    text_inputs,
)
from pipeline.verify.same_text import answer_of, difference
from pipeline.verify.tokens import begin_tokens, generated_ids, silent_tokens, token_ids
from pipeline.verify.tokens import end_ids as declared_end_ids
from trtllm_client import ClientError

_FEW = 4
_MOST_WORDS = 6


@check(
    "each response of a stream holds the new text, or all of it where accumulate_tokens says so",
    asks="one prompt streamed, response by response",
    tensors=True,
)
def accumulate_tokens(context: Context) -> Details:
    """The parameter of ``tensorrt_llm_bls`` against a stream as it arrives."""
    context.needs_bls("only tensorrt_llm_bls has the parameter accumulate_tokens")
    context.needs_streams()
    prompt = context.plan.prompts[0]
    inputs = text_inputs([prompt], context.plan.max_tokens, stream=True, **context.scores)
    responses = streamed(context.triton, inputs)
    texts = texts_of(responses)
    whole = context.greedy(prompt, end_id=NO_END)
    if sum(map(bool, texts)) < 2:
        raise CheckSkipped("not exercised: no stream came in more than one response with text")
    # Upstream's default is false.
    declared = (context.declared("accumulate_tokens") or "").lower() in TRUE
    # Pieces of a text that repeats itself may begin alike, too.
    found = all_begin_alike(texts) and "".join(texts) != whole.text
    if declared != found:
        sends = "the whole text so far" if found else "new text only"
        raise CheckFailed(
            f"config.pbtxt says accumulate_tokens {str(declared).lower()}, but each response of a "
            f"stream holds {sends}",
            responses=texts,
        )
    answer = answer_of(responses, accumulates=found)
    if problem := difference(context, prompt, whole, answer, may_end=False):
        raise CheckFailed(f"streamed and unstreamed, the text differs {problem}", responses=texts)
    return {"accumulate_tokens": declared, "responses": len(texts)}


@check(
    "a stop word stays in the text or not, as the model declares, as upstream's where it does not",
    asks="a word of the greedy text as stop word",
)
def stop_word_kept(context: Context) -> Details:
    """``include_stop_str_in_output`` on ``tensorrt_llm_bls``; upstream's models keep the word.

    The ensemble has no such parameter: it stops on tokens, which stay.
    """
    prompt = context.plan.prompts[0]
    whole = context.greedy(prompt, end_id=NO_END).text
    declared = context.declared("include_stop_str_in_output") if context.is_bls else None
    # OpenAI's API leaves it out.
    kept = context.on_triton and (declared is None or declared.lower() in TRUE)
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
    raise CheckSkipped(
        f"not exercised: none of the words {words} ended the text"
        if words
        else "not exercised: the text has no words to stop at"
    )


@check(
    "every end id of the model can be asked for, and no other special token passes unnoticed",
    asks="each end id of the model as end_id, and answers without one",
    tensors=True,
)
def end_ids(context: Context) -> Details:
    """The ids that ``preprocessing`` names, against what the engine generates.

    A special token in the middle of an answer leaves no text, so nobody sees it; most often the
    model meant to end there, and the server does not know the id as an end. The token that texts
    begin with is not looked at: some models put it between two texts. Nor are those that the
    tokenizer makes of the prompts, such as one for all unknown words.
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
                pool.submit(generated_ids, context, p, tokens, ends) for p in context.plan.prompts
            ]
            return [future.result() for future in asked]

    answers = as_long_as_accepted(context.longest, ask)
    begins = begin_tokens(context)
    expected = {*ends, *begins}
    expected.update(*(token_ids(context, prompt) for prompt in prompts))
    if context.plan.closing:
        # A prompt of several turns has what closes one, which in an answer is an end.
        closing = set(token_ids(context, context.plan.closing))
        expected -= closing - {*ends, *begins}
    # Rows of the embedding without a token leave no text either; a random model chooses them, too.
    known = (
        {token for probe in context.probes.items for token in probe.ids} if context.probes else None
    )
    for prompt, ids in zip(prompts, answers, strict=True):
        silent = silent_tokens(context, ids[:-1]) - expected
        if silent := silent if known is None else silent & known:
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
