"""Prompts of every number and length: two at once, an empty one, and the border to the answer."""

from __future__ import annotations

from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
    first_difference,
)
from pipeline.verify.requests import NO_END, number_of, request, text_inputs, text_of
from pipeline.verify.tokens import begin_tokens, token_ids
from trtllm_client import ClientError, InvalidRequest

_TOKENS = 12


@check("a batch of two prompts is answered as two requests are, each response with its batch_index")
def batch_of_two(context: Context) -> Details:
    """``end_to_end_grpc_client.py --batch-inputs``, whole and streamed."""
    context.needs_streams()
    if context.client.model_metadata().max_batch_size < 2:
        raise CheckSkipped("the model takes one prompt per request (max_batch_size)")
    prompts = context.plan.prompts[:2]
    alone = [context.greedy(prompt, _TOKENS, end_id=NO_END).text for prompt in prompts]
    for stream in (False, True) if context.is_bls else (False,):
        inputs = text_inputs(prompts, _TOKENS, stream=stream)
        message = request(
            context.model, inputs, rows=len(prompts), outputs=("text_output", "batch_index")
        )
        texts = ["" for _ in prompts]
        for tensors in context.client.responses(message):
            if "batch_index" not in tensors:
                raise CheckFailed("a response to a batch has no batch_index")
            index = number_of(tensors, "batch_index")
            if not 0 <= index < len(prompts):
                raise CheckFailed(f"batch_index is {index} in a batch of {len(prompts)}")
            text = text_of(tensors)
            texts[index] = (text or texts[index]) if context.accumulates else texts[index] + text
        for number, (expected, got) in enumerate(zip(alone, texts, strict=True)):
            if expected != got:
                raise CheckFailed(
                    f"prompt {number} of a batch {'streamed' if stream else 'whole'} has another "
                    f"text than alone, {first_difference(expected, got)}"
                )
    return {"texts": alone}


@check("an empty prompt is continued where the tokenizer begins a text with a token of its own")
def empty_prompt(context: Context) -> Details:
    """Upstream's models continue the begin token; without one there is nothing to continue."""
    if not context.has(PREPROCESSING):
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


@check("prompt and answer joined are the text that exclude_input_in_output false gives")
def border(context: Context) -> Details:
    """What stands between a prompt and its continuation, such as a space, is kept, also streamed.

    Upstream decodes prompt and answer together only where the prompt is asked for, so this is the
    one place where both can be compared.
    """
    compared = []
    for prompt in context.plan.prompts:
        both = context.greedy(prompt, _TOKENS, end_id=NO_END, exclude_input_in_output=False).text
        if not both.startswith(prompt):
            continue  # the tokenizer changes the text, or takes something in it for a token
        answers = {"whole": _answer(context, prompt)}
        if context.is_bls and context.decoupled():
            fields = {"end_id": NO_END, "exclude_input_in_output": True}
            answers["streamed"] = "".join(context.streamed(prompt, _TOKENS, **fields))
        for how, answer in answers.items():
            if prompt + answer != both:
                raise CheckFailed(
                    f"{how}, the answer to {prompt!r} does not continue it, "
                    f"{first_difference(both, prompt + answer)}"
                )
        compared.append(prompt)
    if not compared:
        raise CheckSkipped("not exercised: no answer repeats its prompt letter by letter")
    return {"prompts": len(compared)}


def _answer(context: Context, prompt: str) -> str:
    fields = {"end_id": NO_END, "exclude_input_in_output": True}
    return context.greedy(prompt, _TOKENS, **fields).text
