"""Is the text right, however it is asked for?"""

from __future__ import annotations

import concurrent.futures
from typing import Any

from pipeline.triton.contract import BLS, ENSEMBLE, PREPROCESSING
from pipeline.verify.check import (
    DECODES_PIECES,
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
    first_difference,
)
from pipeline.verify.requests import REPLACEMENT
from pipeline.verify.tokens import token_ids

_NEIGHBOURS = 4


@check("the same greedy request gives the same text, alone and with neighbours in the batch")
def greedy_determinism(context: Context) -> Details:
    """Each prompt twice alone, then again while other requests run."""
    prompts = context.plan.prompts
    alone = {prompt: context.greedy(prompt).text for prompt in prompts}
    for prompt in prompts:
        _same("twice alone", prompt, alone[prompt], context.greedy(prompt).text)
    # Neighbours of another length move in and out of the batch while a prompt is generated.
    with concurrent.futures.ThreadPoolExecutor(_NEIGHBOURS * 2) as pool:
        noise = [
            pool.submit(context.greedy, prompts[i % len(prompts)], context.plan.max_tokens + 5 * i)
            for i in range(_NEIGHBOURS)
        ]
        crowded = list(pool.map(lambda prompt: context.greedy(prompt).text, prompts))
        for future in noise:
            future.result()
    for prompt, text in zip(prompts, crowded, strict=True):
        _same("with neighbours", prompt, alone[prompt], text)
    return {"prompts": len(prompts), "sample": alone[prompts[0]]}


@check("the pieces of a streamed answer join to the unstreamed text, greedy and sampled")
def stream_equals_whole(context: Context) -> Details:
    """Streamed against unstreamed, for the most likely and for a seeded random text."""
    context.needs_streams()
    context.needs_bls(DECODES_PIECES)
    pieces = 0
    greedy: dict[str, Any] = {}
    sampled: dict[str, Any] = {"top_k": 20, "temperature": 0.8, "seed": 7}
    for prompt in context.plan.prompts:
        for fields in (greedy, sampled):
            whole = context.greedy(prompt, **fields).text
            streamed = context.streamed(prompt, **fields)
            _same("streamed", prompt, whole, "".join(streamed))
            pieces = max(pieces, sum(bool(piece) for piece in streamed))
    if pieces < 2:
        raise CheckFailed("no answer came in more than one piece", most_pieces=pieces)
    return {"answers": 2 * len(context.plan.prompts), "most_pieces": pieces}


@check("a character that is split over tokens arrives whole")
def utf8_across_tokens(context: Context) -> Details:
    """Looks for characters of several tokens in greedy texts; streamed must equal unstreamed.

    A model may write broken characters by itself, and max_tokens may cut the last one. But where
    only broken ones come, it is the server that does not wait for the rest of a character.
    """
    context.needs_streams()
    context.needs_bls(DECODES_PIECES)
    prompts = (*context.plan.prompts, *context.plan.multibyte_prompts)
    can_tokenize = context.has(PREPROCESSING)
    whole: set[str] = set()
    broken = []
    for prompt in prompts:
        text = context.greedy(prompt).text
        _same("streamed", prompt, text, "".join(context.streamed(prompt)))
        if REPLACEMENT in text.rstrip(REPLACEMENT):
            broken.append(text)
        found = {c for c in text if ord(c) > 127 and c != REPLACEMENT} - whole
        whole |= {c for c in found if not can_tokenize or _spans_tokens(context, c)}
    if broken and not whole:
        raise CheckFailed(f"every character of several tokens is broken: {broken[0]!r}")
    if not whole:
        raise CheckSkipped(
            "not exercised: the model wrote no character of several tokens for any of "
            f"{len(prompts)} prompts"
        )
    return {"characters": "".join(sorted(whole)), "texts_with_broken_characters": len(broken)}


@check("ensemble and tensorrt_llm_bls give the same greedy text")
def ensemble_equals_bls(context: Context) -> Details:
    """Both ways through the repository, unstreamed: the ensemble decodes each piece by itself."""
    missing = [model for model in (BLS, ENSEMBLE) if not context.has(model)]
    if missing:
        raise CheckSkipped(f"the server has no model {' and '.join(missing)}")
    for prompt in context.plan.prompts:
        texts = [context.greedy(prompt, model=model).text for model in (BLS, ENSEMBLE)]
        _same("on the ensemble", prompt, *texts)
    return {"prompts": len(context.plan.prompts)}


def _spans_tokens(context: Context, character: str) -> bool:
    # Next to a letter, since a tokenizer may put something in front of a text.
    return len(token_ids(context, f"a{character}")) > len(token_ids(context, "a")) + 1


def _same(what: str, prompt: str, expected: str, got: str) -> None:
    if expected != got:
        raise CheckFailed(
            f"the text after {prompt!r} differs {what}, {first_difference(expected, got)}",
            prompt=prompt,
            expected=expected,
            got=got,
        )
