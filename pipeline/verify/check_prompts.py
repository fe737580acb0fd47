"""Prompts of every number and length: two at once, an empty one, and the border to the answer."""

from __future__ import annotations

from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
)
from pipeline.verify.requests import NO_END, number_of, request, text_inputs
from pipeline.verify.same_text import Answer, Scored, answer_of, difference, joined
from pipeline.verify.tokens import begin_tokens, token_ids
from trtllm_client import ClientError, InvalidRequest, Tensors

_TOKENS = 12


@check(
    "a batch of two prompts is answered as two requests are, each response with its batch_index",
    asks="two prompts in one request, whole and streamed",
    tensors=True,
)
def batch_of_two(context: Context) -> Details:
    """``end_to_end_grpc_client.py --batch-inputs``, whole and streamed."""
    context.needs_streams()
    prompts = context.plan.prompts[:2]
    if context.client.model_metadata().max_batch_size < len(prompts):
        raise CheckSkipped("the model takes one prompt per request (max_batch_size)")
    if context.most_requests < len(prompts):
        raise CheckSkipped("the model takes one prompt at a time (max_concurrent_requests)")
    alone = [context.greedy(prompt, _TOKENS, end_id=NO_END) for prompt in prompts]
    for stream in (False, True) if context.is_bls else (False,):
        for number, answer in enumerate(_batch(context, prompts, stream=stream)):
            problem = difference(context, prompts[number], alone[number], answer, may_end=False)
            if problem:
                raise CheckFailed(
                    f"prompt {number} of a batch {'streamed' if stream else 'whole'} has another "
                    f"text than alone, {problem}"
                )
    return {"texts": [answer.text for answer in alone]}


def _batch(context: Context, prompts: tuple[str, ...], *, stream: bool) -> list[Answer]:
    """The answers to several prompts of one request."""
    inputs = text_inputs(prompts, _TOKENS, stream=stream, **context.scores)
    wanted = ("text_output", "batch_index", *(("output_log_probs",) if context.scores else ()))
    message = request(context.model, inputs, rows=len(prompts), outputs=wanted)
    responses: list[list[Tensors]] = [[] for _ in prompts]
    for tensors in context.triton.responses(message):
        if "batch_index" not in tensors:
            raise CheckFailed("a response to a batch has no batch_index")
        index = number_of(tensors, "batch_index")
        if not 0 <= index < len(prompts):
            raise CheckFailed(f"batch_index is {index} in a batch of {len(prompts)}")
        responses[index].append(tensors)
    return [answer_of(one, accumulates=context.accumulates) for one in responses]


@check(
    "an empty prompt is continued where the tokenizer begins a text with a token of its own",
    asks="a prompt of no letters",
)
def empty_prompt(context: Context) -> Details:
    """Upstream's models continue the begin token; without one there is nothing to continue."""
    if not context.tokenizes:
        raise CheckSkipped("the server has no preprocessing model that says how a text begins")
    begins = begin_tokens(context)
    try:
        text = context.greedy("", _TOKENS, end_id=NO_END).text
    except InvalidRequest as error:
        if begins:
            raise CheckFailed(
                f"every text begins with the token {begins[0]}, but an empty prompt is "
                f"refused: {error.what}"
            ) from error
        return {"refusal": error.what}
    except ClientError as error:
        raise CheckFailed(f"an empty prompt gave {type(error).__name__}: {error.what}") from error
    if not begins:
        raise CheckFailed(f"an empty prompt of no token was answered with {text!r}")
    ids = token_ids(context, "")
    if ids != begins:
        raise CheckFailed(f"an empty prompt has the token ids {ids}, not only the begin token")
    return {"begin_token": ids[0], "text": text}


@check(
    "prompt and answer joined are the text that exclude_input_in_output false gives",
    asks="each prompt with exclude_input_in_output false and true, whole and streamed",
    tensors=True,
)
def border(context: Context) -> Details:
    """What stands between a prompt and its continuation, such as a space, is kept, also streamed.

    Upstream decodes prompt and answer together only where the prompt is asked for, so this is the
    one place where both can be compared.
    """
    compared = []
    for prompt in context.plan.plain_prompts:
        both = context.greedy(prompt, _TOKENS, end_id=NO_END, exclude_input_in_output=False)
        if not both.text.startswith(prompt):
            continue  # the tokenizer changes the text, or takes something in it for a token
        rest = Answer(both.text.removeprefix(prompt), both.output_log_probs)
        fields = {"end_id": NO_END, "exclude_input_in_output": True}
        answers: dict[str, Scored] = {"whole": context.greedy(prompt, _TOKENS, **fields)}
        if context.is_bls and context.decoupled():
            answers["streamed"] = joined(context.streamed(prompt, _TOKENS, **fields))
        for how, answer in answers.items():
            if problem := difference(context, prompt, rest, answer, may_end=False):
                raise CheckFailed(
                    f"{how}, the answer to {prompt!r} does not continue it, {problem}"
                )
        compared.append(prompt)
    if not compared:
        raise CheckSkipped("not exercised: no answer repeats its prompt letter by letter")
    return {"prompts": len(compared)}
