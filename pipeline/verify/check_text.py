"""Is the text right, however it is asked for?"""

from __future__ import annotations

import concurrent.futures
from typing import Any

from pipeline.triton.contract import BLS, ENGINE, ENSEMBLE, POSTPROCESSING, PREPROCESSING
from pipeline.verify.check import (
    DECODES_PIECES,
    CheckFailed,
    CheckSkipped,
    Context,
    Details,
    check,
)
from pipeline.verify.requests import REPLACEMENT
from pipeline.verify.same_text import Answer, Scored, difference, joined
from pipeline.verify.tokens import generated_ids, leaves_no_text, texts_of_ids, token_ids
from trtllm_client import InvalidRequest

_NEIGHBOURS = 4


@check(
    "the same greedy request gives the same text, alone and with neighbours in the batch",
    asks="each prompt twice alone, and again while others are generated",
)
def greedy_determinism(context: Context) -> Details:
    """Each prompt twice alone, then again while other requests run."""
    prompts = context.plan.prompts
    alone = {prompt: context.greedy(prompt) for prompt in prompts}
    for prompt in prompts:
        _same(context, "twice alone", prompt, alone[prompt], context.greedy(prompt))
    # Neighbours of another length move in and out of the batch while a prompt is generated.
    with concurrent.futures.ThreadPoolExecutor(_NEIGHBOURS * 2) as pool:
        noise = [
            pool.submit(
                context.greedy, prompts[i % len(prompts)], max(context.plan.max_tokens - 5 * i, 1)
            )
            for i in range(_NEIGHBOURS)
        ]
        crowded = list(pool.map(context.greedy, prompts))
        for future in noise:
            future.result()
    for prompt, answer in zip(prompts, crowded, strict=True):
        _same(context, "with neighbours", prompt, alone[prompt], answer)
    return {"prompts": len(prompts), "sample": alone[prompts[0]].text}


@check(
    "the pieces of a streamed answer join to the unstreamed text, greedy and sampled",
    asks="each prompt whole and streamed, greedy, and sampled with a seed",
)
def stream_equals_whole(context: Context) -> Details:
    """Streamed against unstreamed, for the most likely and for a seeded random text."""
    context.needs_streams()
    context.needs_bls(DECODES_PIECES)
    pieces = 0
    greedy: dict[str, Any] = {}
    sampled: dict[str, Any] = {"top_k": 20, "temperature": 0.8, "seed": 7}
    for prompt in context.plan.prompts:
        for fields in (greedy, sampled):
            whole = context.greedy(prompt, **fields)
            streamed = context.streamed(prompt, **fields)
            _same(context, "streamed", prompt, whole, joined(streamed), greedy=fields is greedy)
            pieces = max(pieces, sum(bool(piece.text) for piece in streamed))
    if pieces < 2:
        raise CheckFailed("no answer came in more than one piece", most_pieces=pieces)
    return {"answers": 2 * len(context.plan.prompts), "most_pieces": pieces}


@check(
    "a character that is split over tokens arrives whole",
    asks="prompts that lead to emoji, accents and Chinese, whole and streamed",
)
def utf8_across_tokens(context: Context) -> Details:
    """Looks for characters of several tokens in greedy texts; streamed must equal unstreamed.

    A model may write broken characters by itself, which the tokenizer cannot mend when it decodes
    the whole answer at once, and max_tokens may cut the last one. But where only broken ones come,
    it is the server that does not wait for the rest of a character.
    """
    context.needs_streams()
    context.needs_bls(DECODES_PIECES)
    can_tokenize = context.tokenizes
    whole: set[str] = set()
    broken: list[str] = []
    prompts, of_the_model = 0, 0
    for prompt in (*context.plan.prompts, *context.plan.multibyte_prompts):
        try:
            answer = context.greedy(prompt)
        except InvalidRequest:
            if prompt in context.plan.prompts:
                raise
            continue  # longer than the engine takes, with a tokenizer that knows no such characters
        prompts += 1
        text = answer.text
        _same(context, "streamed", prompt, answer, joined(context.streamed(prompt)))
        if REPLACEMENT in text.rstrip(REPLACEMENT):
            if _writes_broken_characters(context, prompt):
                of_the_model += 1
            else:
                broken.append(text)
        found = {c for c in text if ord(c) > 127 and c != REPLACEMENT} - whole
        whole |= {c for c in found if not can_tokenize or _spans_tokens(context, c)}
    if broken and not whole:
        raise CheckFailed(f"every character of several tokens is broken: {broken[0]!r}")
    if not whole:
        raise CheckSkipped(
            "not exercised: the model wrote no whole character of several tokens for any of "
            f"{prompts} prompts"
        )
    return {
        "characters": "".join(sorted(whole)),
        "texts_with_broken_characters": len(broken) + of_the_model,
    }


def _writes_broken_characters(context: Context, prompt: str) -> bool:
    """Whether the tokenizer, too, finds broken characters in the tokens of an answer."""
    if not all(context.has(model) for model in (ENGINE, PREPROCESSING, POSTPROCESSING)):
        return False
    ids = generated_ids(context, prompt, context.plan.max_tokens)
    text = texts_of_ids(context, [ids])[0] if ids else ""
    return REPLACEMENT in text.rstrip(REPLACEMENT)


@check(
    "ensemble and tensorrt_llm_bls give the same greedy text",
    asks="each prompt of the ensemble and of tensorrt_llm_bls",
    tensors=True,
)
def ensemble_equals_bls(context: Context) -> Details:
    """Both ways through the repository, unstreamed: the ensemble decodes each piece by itself."""
    missing = [model for model in (BLS, ENSEMBLE) if not context.has(model)]
    if missing:
        raise CheckSkipped(f"the server has no model {' and '.join(missing)}")
    for prompt in context.plan.prompts:
        bls, ensemble = (context.greedy(prompt, model=model) for model in (BLS, ENSEMBLE))
        _same(context, "on the ensemble", prompt, bls, _as_bls(context, prompt, bls, ensemble))
    return {"prompts": len(context.plan.prompts)}


def _as_bls(context: Context, prompt: str, bls: Scored, ensemble: Scored) -> Scored:
    """The ensemble's answer without the space that its tokenizer puts in front of a word.

    After a prompt that ends with a token of no text, a text begins anew; the ensemble cannot know
    that, because its ``postprocessing`` does not see the prompt.
    """
    text = ensemble.text
    if not text.startswith(" ") or bls.text.startswith(" "):
        return ensemble
    ids = token_ids(context, prompt) if context.has(PREPROCESSING) else []
    if not ids or not leaves_no_text(context, ids[-1]):
        return ensemble
    return Answer(text.removeprefix(" "), ensemble.output_log_probs)


def _spans_tokens(context: Context, character: str) -> bool:
    # Next to a letter, since a tokenizer may put something in front of a text.
    return len(token_ids(context, f"a{character}")) > len(token_ids(context, "a")) + 1


def _same(
    context: Context, what: str, prompt: str, expected: Scored, got: Scored, *, greedy: bool = True
) -> None:
    problem = difference(context, prompt, expected, got, greedy=greedy)
    if problem:
        raise CheckFailed(
            f"the text after {prompt!r} differs {what}, {problem}",
            prompt=prompt,
            expected=expected.text,
            got=got.text,
        )
