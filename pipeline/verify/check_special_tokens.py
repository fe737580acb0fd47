"""What the tokenizer puts around a text: once, and as a request says."""

from __future__ import annotations

import json

from pipeline.source.probes import AUTO
from pipeline.triton.contract import ADD_SPECIAL_TOKENS, PREPROCESSING
from pipeline.triton.parameters import CHAT_TEMPLATE_TOKENS
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.check_openai import begins_with_one
from pipeline.verify.requests import number_of, request, text_inputs
from pipeline.verify.tokens import chooses_special_tokens, special_tokens_setting, token_ids
from trtllm_client import ClientError, InvalidRequest, add_input

_TOKENS = 2
# Not of the plan, whose prompts may begin with special tokens of their own.
_TEXT = "Once upon a time"


@check(
    "a text that begins with the token that begins every text is not given a second one",
    asks="a text with and without the begin token, add_special_tokens true, false and not given",
)
def begins_once(context: Context) -> Details:
    """``add_special_tokens`` of the server and of a request, on ``preprocessing`` and text models.

    A chat template writes that token itself. Given twice the model still answers, and worse.
    """
    if not context.on_triton:
        return begins_with_one(context)
    models = (PREPROCESSING, context.model)
    if not all(context.has(name) and chooses_special_tokens(context, name) for name in models):
        raise CheckSkipped(f"the server has no input {ADD_SPECIAL_TOKENS}, as NVIDIA's own")
    _refuses_another_type(context)
    whole, plain = (token_ids(context, _TEXT, add_special_tokens=added) for added in (True, False))
    if whole == plain:
        raise CheckSkipped("the tokenizer puts nothing around a text")
    begin = _begin_text(context, whole[0])
    setting = special_tokens_setting(context)
    text = begin + _TEXT
    twice, once, unset = (
        token_ids(context, text, add_special_tokens=added) for added in (True, False, None)
    )
    if whole[1 : 1 + len(plain)] != plain or once[:1] != whole[:1]:
        raise CheckSkipped(f"the tokenizer puts something else than {begin!r} in front of a text")
    if twice[:2] != [once[0]] * 2:
        raise CheckFailed(
            f"asked to add special tokens to {text!r}, the server gives {twice[:3]}..., not "
            f"{once[0]} twice"
        )
    expected = {AUTO: twice[1:], True: twice, False: once}[setting]
    if unset != expected:
        raise CheckFailed(
            f"{ADD_SPECIAL_TOKENS} is {str(setting).lower()}, but {text!r} becomes {unset[:3]}... "
            f"of {len(unset)} tokens, not {expected[:3]}... of {len(expected)}",
            expected=expected,
            got=unset,
        )
    counts = {
        model: [_count(context, model, text, added) for added in (None, False, True)]
        for model in context.text_models()
        if chooses_special_tokens(context, model)
    }
    right = [len(expected), len(once), len(twice)]
    for model, found in counts.items():
        if found != right:
            raise CheckFailed(
                f"{model} counts {found} tokens of {text!r} where special tokens are added by the "
                f"server's setting, not at all and in any case, not {right}"
            )
    return {"begin": begin, "setting": setting, "tokens": right, "models": list(counts)}


def _begin_text(context: Context, token: int) -> str:
    """The text of the token that begins a text: as the server tells clients, or from the probes."""
    declared = context.declared(CHAT_TEMPLATE_TOKENS, PREPROCESSING)
    begin = json.loads(declared).get("bos_token") if declared else None
    probes = context.probes.items if context.probes else ()
    known = (probe.text for probe in probes if probe.plain == (token,))
    begin = begin or next(known, None)
    if not begin:
        raise CheckSkipped(
            "the text of the token that begins a text is not known: the server says no chat "
            "template that has it, and --tokenizer does not name the model's folder"
        )
    return str(begin)


def _count(context: Context, model: str, text: str, added: bool | None) -> int:
    """The prompt's tokens, as a text model counts them."""
    fields = {} if added is None else {ADD_SPECIAL_TOKENS: added}
    inputs = text_inputs([text], _TOKENS, stream=False, return_num_input_tokens=True, **fields)
    message = request(model, inputs, outputs=("text_output", "num_input_tokens"))
    counts = [
        number_of(tensors, "num_input_tokens")
        for tensors in context.triton.responses(message)
        if "num_input_tokens" in tensors
    ]
    if not counts:
        raise CheckFailed(f"{model} sent no num_input_tokens")
    return int(counts[0])


def _refuses_another_type(context: Context) -> None:
    inputs = text_inputs([_TEXT], _TOKENS, stream=False)
    message = request(context.model, inputs, outputs=("text_output",))
    add_input(message, ADD_SPECIAL_TOKENS, [1], datatype="INT32")
    try:
        answers = list(context.triton.responses(message))
    except InvalidRequest:
        return
    except ClientError as error:
        raise CheckFailed(
            f"{ADD_SPECIAL_TOKENS} of another type gave {type(error).__name__}: {error.what}"
        ) from error
    raise CheckFailed(f"{ADD_SPECIAL_TOKENS} of another type was taken: {len(answers)} answers")
