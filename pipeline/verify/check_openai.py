"""What checks ask of a server with OpenAI's API, where they ask tensors of Triton's models."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details
from pipeline.verify.requests import NO_END
from pipeline.verify.same_text import changed_since
from trtllm_client import ClientError, InvalidRequest

_COMPLETIONS = "/v1/completions"
_TEXT = "Once upon a time"
_TOKENS = 2
# Longer prompts than this would be a load test of a large model.
_LONGEST = 8192


def bad_bodies(context: Context) -> Details:
    """Sends bodies that no server may answer, and then a request whose answer is known.

    Values that llama.cpp's server answers as if they were others, such as a ``top_p`` above 1, are
    refused by the client.

    Raises:
        CheckFailed: One was answered, or refused with a fault of the server's own.
    """
    prompt = context.plan.prompts[0]
    before = context.greedy(prompt)
    good: dict[str, Any] = {"prompt": prompt, "max_tokens": 4}
    rows: Mapping[str, bytes] = {
        "no JSON": b"max_tokens=4",
        "bytes that are not UTF-8": b'{"prompt": "caf\xe9 \xff", "max_tokens": 4}',
        "no prompt": _body({"max_tokens": 4}),
        "a number as prompt": _body({**good, "prompt": 7}),
        "max_tokens as text": _body({**good, "max_tokens": "4"}),
        "max_tokens negative": _body({**good, "max_tokens": -5}),
        "temperature as text": _body({**good, "temperature": "warm"}),
        "token ids that the model has not": _body({**good, "prompt": [2**30]}),
        "prompt too long": _body({**good, "prompt": f"{prompt} " * 40_000}),
        "a grammar that is none": _body({**good, "grammar": "root ::= ("}),
    }
    answers: dict[str, str] = {}
    wrong = []
    for name, body in rows.items():
        try:
            answer = context.openai.post(_COMPLETIONS, body, timeout=context.plan.patience)
            answers[name] = f"answered with {answer[:100]!r}"
        except InvalidRequest as error:
            answers[name] = error.what
            continue
        except ClientError as error:
            answers[name] = f"{type(error).__name__}: {error.what}"
        wrong.append(f"{name}: {answers[name]}")
    if not context.client.is_ready():
        raise CheckFailed("the server is not ready after wrong requests", answers=answers)
    if problem := changed_since(context, prompt, before):
        wrong.append(problem)
    if wrong:
        raise CheckFailed("; ".join(wrong), answers=answers)
    return {"answers": answers}


def _body(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()


def same_tokens(context: Context) -> Details:
    """Compares the ids of every probe text with those of the model's own tokenizer, and back.

    llama.cpp does not normalize a text, as some tokenizers do (NFC); such texts are counted and not
    held against it.

    Raises:
        CheckFailed: A text has other tokens, or its tokens another text.
    """
    probes = context.probes
    assert probes is not None
    client = context.openai
    compared = unnormalized = 0
    for probe in probes.items:
        for added, expected in (
            (True, list(probes.ids_of(probe, True))),
            (False, list(probe.plain)),
        ):
            if not expected:
                continue
            got = client.tokenize(probe.text, add_special_tokens=added)
            if got == expected:
                compared += 1
                continue
            if not unicodedata.is_normalized("NFC", probe.text):
                unnormalized += 1
                continue
            raise CheckFailed(
                f"{probe.text!r} gives other tokens: {got[:20]}, not {expected[:20]}",
                text=probe.text,
                expected=expected,
                got=got,
            )
        text = client.detokenize(probe.plain) if probe.plain else probe.decoded
        if text.removeprefix(" ") not in (probe.text, probe.text.removeprefix(" ")) and (
            text.removeprefix(" ") != probe.decoded.removeprefix(" ")
        ):
            raise CheckFailed(
                f"the tokens of {probe.text!r} give another text: {text!r}",
                text=probe.text,
                got=text,
            )
    if not compared:
        raise CheckSkipped("not exercised: no text has a token")
    return {"texts": len(probes.items), "compared": compared, "not_normalized": unnormalized}


def begins_with_one(context: Context) -> Details:
    """Counts the tokens of a text with and without the token that begins every text.

    llama.cpp's server puts it in front of a text that has it already; the client sends token ids
    then.

    Raises:
        CheckFailed: A text has two of them, or none.
        CheckSkipped: The tokenizer puts nothing in front of a text.
    """
    client = context.openai
    whole, plain = (client.tokenize(_TEXT, add_special_tokens=added) for added in (True, False))
    if whole == plain:
        raise CheckSkipped("the tokenizer puts nothing around a text")
    begin = client.detokenize(whole[:1]).strip()
    if whole[1:] != plain or client.tokenize(begin, add_special_tokens=False) != whole[:1]:
        raise CheckSkipped(f"the tokenizer puts something else than {begin!r} in front of a text")
    counts = {
        "as it is": context.greedy(_TEXT, _TOKENS).num_input_tokens,
        "with it in front": context.greedy(begin + _TEXT, _TOKENS).num_input_tokens,
        "nothing added": context.greedy(_TEXT, _TOKENS, add_special_tokens=False).num_input_tokens,
    }
    right = {
        "as it is": len(whole),
        "with it in front": len(whole),
        "nothing added": len(plain),
    }
    if counts != right:
        raise CheckFailed(f"the tokens of {_TEXT!r} are {counts}, not {right}")
    return {"begin": begin, "tokens": counts}


def longest_that_fits(context: Context) -> Details:
    """Sends the longest prompt that leaves room for a token, one more, and an answer too long.

    Raises:
        CheckFailed: What fits is refused, or what does not is answered as if it did.
        CheckSkipped: The server does not say how many tokens a sequence has.
    """
    client = context.openai
    declared = dict(client.model_metadata().parameters).get("max_seq_len", "")
    if not declared.isdecimal():
        raise CheckSkipped("the server does not say how many tokens a sequence may have")
    most = int(declared)
    if most > _LONGEST:
        raise CheckSkipped(f"not exercised: a prompt of {most} tokens would be a load test")
    ids = client.tokenize(_TEXT)

    def ask(tokens: int) -> int:
        prompt = (ids * (tokens // len(ids) + 1))[:tokens]
        body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True, "temperature": 0}
        answer = json.loads(client.post(_COMPLETIONS, _body(body)))
        return int(answer["usage"]["completion_tokens"])

    if ask(most - 1) != 1:
        raise CheckFailed(f"a prompt of {most - 1} tokens has no answer of one token")
    try:
        ask(most + 1)
    except InvalidRequest as error:
        said = error.what
    else:
        raise CheckFailed(f"a prompt of {most + 1} tokens was answered, and {most} fit")
    cut = context.greedy(context.plan.prompts[0], most + 1, end_id=NO_END)
    total = (cut.num_input_tokens or 0) + (cut.num_output_tokens or 0)
    if cut.finish_reason != "length" or total > most + 1:
        raise CheckFailed(
            f"an answer that was cut at {total} tokens says that it ended by {cut.finish_reason}"
        )
    return {"longest_sequence": most, "cut_at": total, "said": said}
