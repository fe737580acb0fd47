"""Is the text right, however it is asked for?"""

from __future__ import annotations

import concurrent.futures
from typing import Any

from pipeline.triton.contract import BLS, ENSEMBLE
from pipeline.verify.check import (
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
    first_difference,
)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
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
    """No replacement character inside a greedy text, streamed or not.

    One at the very end is right where max_tokens cut a character in two.
    """
    characters = set()
    for prompt in context.plan.multibyte_prompts:
        whole = context.greedy(prompt).text
        streamed = context.streamed(prompt)
        _same("streamed", prompt, whole, "".join(streamed))
        inner = whole.rstrip(REPLACEMENT)
        if REPLACEMENT in inner:
            raise CheckFailed(
                f"the text after {prompt!r} has a broken character: {whole!r}", pieces=streamed
            )
        characters |= {character for character in inner if ord(character) > 127}
    if not characters:
        raise CheckSkipped(
            "not exercised: the model wrote no character of several bytes for any of "
            f"{len(context.plan.multibyte_prompts)} prompts"
        )
    return {"characters": "".join(sorted(characters))}


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


def _same(what: str, prompt: str, expected: str, got: str) -> None:
    if expected != got:
        raise CheckFailed(
            f"the text after {prompt!r} differs {what}, {first_difference(expected, got)}",
            prompt=prompt,
            expected=expected,
            got=got,
        )
