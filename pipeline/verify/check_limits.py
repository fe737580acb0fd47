"""Does the text end where it should, and are its counts and scores right?"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from pipeline.triton.contract import ENGINE, PREPROCESSING
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.requests import (
    ALL_DETAILS,
    NO_END,
    REPLACEMENT,
    number_of,
    request,
    text_inputs,
)
from pipeline.verify.same_text import LONGEST_CHARACTER, Scored, difference, joined
from pipeline.verify.tokens import generated_ids, token_ids
from trtllm_client import Completion, InvalidRequest

_FIRST_CANDIDATE, _CANDIDATE_STEP = 4, 2
_ATTEMPTS = 5


@check(
    "max_tokens is the number of tokens generated when nothing else ends the text",
    asks="one prompt with max_tokens 1, 2, 7 and more, and end_id -1",
)
def max_tokens(context: Context) -> Details:
    """Exact token counts without an end token; shorter answers are beginnings of longer ones."""
    prompt = context.plan.prompts[0]
    lengths = (1, 2, 7, context.plan.max_tokens)
    answers = [context.greedy(prompt, length, end_id=NO_END) for length in lengths]
    for length, answer in zip(lengths, answers, strict=True):
        if _count(answer) != length:
            raise CheckFailed(f"max_tokens {length} gave {answer.num_output_tokens} tokens")
        if answers[-1].text.startswith(answer.text.rstrip(REPLACEMENT)):
            continue
        if problem := difference(context, prompt, answers[-1], answer):
            raise CheckFailed(
                f"the text of {length} tokens is not the beginning of the text of {lengths[-1]}, "
                f"{problem}",
                short=answer.text,
                long=answers[-1].text,
            )
    return {"lengths": list(lengths)}


@check(
    "the end token ends the text early and is not part of it",
    asks="a token of the greedy text as end_id, and end_id -1",
)
def end_token(context: Context) -> Details:
    """A token of the greedy text is made the end token; the text must end before it.

    The end token of the model itself is put to the test where one of its texts ends by itself.
    """
    natural = _natural_end(context)
    if not context.has(PREPROCESSING):
        if natural is None:
            raise CheckSkipped("no text ended by itself, and without preprocessing no id is known")
        return natural
    prompt = context.plan.prompts[0]
    whole = context.greedy(prompt, end_id=NO_END)
    ids = _ids_of(context, prompt, whole)
    tried = {}
    for place, end_id in list(enumerate(ids))[_FIRST_CANDIDATE:-1:_CANDIDATE_STEP]:
        if end_id in ids[:place]:
            continue
        early = context.greedy(prompt, end_id=end_id)
        before = context.greedy(prompt, place, end_id=NO_END)
        tried[end_id] = early.text
        if _count(early) == place and not difference(context, prompt, before, early):
            return {"end_id": end_id, "text": early.text, **(natural or {})}
    if not tried:
        raise CheckSkipped(
            "not exercised: every token of the text comes more than once, so that none can end it "
            "where it comes first"
        )
    raise CheckFailed(
        f"none of {len(tried)} tokens of the text ended it where it comes first when it was made "
        "the end token",
        whole=whole.text,
        tried=tried,
    )


def _ids_of(context: Context, prompt: str, answer: Completion) -> list[int]:
    """The ids of an answer: those that the engine makes, or its text's where there is no engine."""
    if context.has(ENGINE):
        return generated_ids(context, prompt, _count(answer))
    try:
        return token_ids(context, answer.text)
    except InvalidRequest as error:
        raise CheckSkipped(f"not exercised: the text has no ids: {error.what}") from error


@check(
    "a stop word ends the text where it appears, also where it is split over tokens",
    asks="pieces of the greedy text as stop words, also across tokens, one and several",
)
def stop_words(context: Context) -> Details:
    """Stop words are cut from the model's own greedy text, some across the borders of pieces.

    Whether the word itself is part of the text must be the same each time; which of the two it
    should be is another check's.
    """
    context.needs_bls(
        "the ensemble compares stop words token by token and keeps them, as NVIDIA's does"
    )
    prompt = context.plan.prompts[0]
    answer = context.greedy(prompt, end_id=NO_END)
    whole = answer.text.rstrip(REPLACEMENT)
    streams = context.decoupled()
    if streams:
        pieces = [piece.text for piece in context.streamed(prompt, end_id=NO_END)]
    else:
        pieces = whole.split(" ")
    words = _stop_candidates([piece for piece in pieces if piece], whole)
    if not words:
        raise CheckSkipped("not exercised: the greedy text is too short to cut stop words from")
    kept: set[bool] = set()
    for asked in (*((word,) for word in words), tuple(words)):
        ends = _ends(whole, asked)
        ask: dict[str, Callable[[], Scored]] = {"unstreamed": partial(_stopped, context, asked)}
        if streams:
            ask["streamed"] = partial(_stopped_stream, context, asked)
        for how, once in ask.items():
            end, got, problem = _end_of(context, answer, ends, once)
            if end is not None:
                kept.add(end == 1)
            if end is None and problem is not None:
                raise CheckFailed(
                    f"{how}, stop word {asked} gave {got.text!r}, not "
                    f"{' or '.join(map(repr, ends))}{problem}",
                    whole=whole,
                )
    if len(kept) > 1:
        raise CheckFailed("the stop word is part of some answers and not of others", words=words)
    if not kept:
        raise CheckSkipped("not exercised: no answer with a stop word began as the one without")
    absent = context.greedy(prompt, end_id=NO_END, stop_words=(whole + "\x01",))
    if problem := difference(context, prompt, answer, absent, may_end=False):
        raise CheckFailed(
            f"a stop word that never comes changed the text, {problem}",
            got=absent.text,
            whole=whole,
        )
    return {"words": words}


def _stopped(context: Context, words: tuple[str, ...]) -> Scored:
    return context.greedy(context.plan.prompts[0], end_id=NO_END, stop_words=words)


def _stopped_stream(context: Context, words: tuple[str, ...]) -> Scored:
    pieces = context.streamed(context.plan.prompts[0], end_id=NO_END, stop_words=words)
    return joined(pieces)


def _end_of(
    context: Context, whole: Scored, ends: tuple[str, str], ask: Callable[[], Scored]
) -> tuple[int | None, Scored, str | None]:
    """At which of two ends an answer with stop words ends, and what is wrong if at neither.

    Where texts may part, an answer may have become another text and ended at a word of its own,
    which then need not be part of it; so a few are asked for.
    """
    problems = []
    for _ in range(1 if context.tolerance is None else _ATTEMPTS):
        got = ask()
        if got.text in ends:
            return ends.index(got.text), got, None
        problems.append(_wrong_end(context, whole, got))
    # One that ended at a word of its own where the texts part looks like one that ended too early.
    return None, got, None if None in problems else problems[-1]


def _wrong_end(context: Context, whole: Scored, got: Scored) -> str | None:
    """What is wrong with an answer that ends at no stop word; None where it is another text."""
    if whole.text.startswith(got.text.rstrip(REPLACEMENT)) or got.text.startswith(whole.text):
        return ""
    problem = difference(context, context.plan.prompts[0], whole, got)
    return problem and f", {problem}"


@check(
    "log probabilities: one per token, at most 0, and their sum is right",
    asks="one prompt with return_log_probs, whole and streamed",
)
def log_probs(context: Context) -> Details:
    """Counts and sum of the log probabilities of a greedy text, and counts of a streamed one.

    TensorRT-LLM puts all log probabilities so far into every response of a stream, and
    ``tensorrt_llm_bls`` has to make of them what is new. ``normalize_log_probs`` takes each of them
    relative to the tokens that could be sampled, but not their sum.
    """
    prompt = context.plan.prompts[0]
    answer = context.greedy(prompt, return_log_probs=True)
    scores, total = answer.output_log_probs, answer.cum_log_probs
    if scores is None or total is None:
        raise CheckFailed("return_log_probs gave no output_log_probs or no cum_log_probs")
    if len(scores) != _count(answer) and not _unscored(context, answer):
        raise CheckFailed(f"{len(scores)} log probabilities for {answer.num_output_tokens} tokens")
    if not all(math.isfinite(score) and score <= 0 for score in scores):
        raise CheckFailed("a log probability is above 0 or not finite", scores=list(scores))
    if context.is_bls and context.decoupled() and not context.accumulates:
        found, tokens = _streamed_scores(context, prompt)
        if found != tokens:
            raise CheckFailed(f"streamed, {found} log probabilities for {tokens} tokens")
    normalized = context.normalizes_log_probs
    if not normalized and not math.isclose(sum(scores), total, rel_tol=1e-3, abs_tol=1e-3):
        raise CheckFailed(f"cum_log_probs is {total:g}, the sum is {sum(scores):g}")
    return {"tokens": len(scores), "cum_log_probs": total, "normalize_log_probs": normalized}


def _unscored(context: Context, answer: Completion) -> bool:
    """Whether tokens without a log probability are those that llama.cpp's server has none for.

    It sends them with pieces of text. A token that completes no character has no piece, nor has the
    one that ends the text.
    """
    split = sum(ord(character) > 127 for character in answer.text) * (LONGEST_CHARACTER - 1)
    missing = _count(answer) - len(answer.output_log_probs or ())
    most = split + (answer.finish_reason == "stop") + LONGEST_CHARACTER - 1
    return not context.on_triton and 0 <= missing <= most


def _streamed_scores(context: Context, prompt: str) -> tuple[int, int]:
    """How many log probabilities and how many tokens the responses of a stream bring."""
    if not context.on_triton:
        whole = context.greedy(prompt, return_log_probs=True).output_log_probs or ()
        pieces = context.streamed(prompt, return_log_probs=True)
        return sum(len(piece.output_log_probs or ()) for piece in pieces), len(whole)
    inputs = text_inputs([prompt], context.plan.max_tokens, stream=True, **ALL_DETAILS)
    responses = list(context.triton.responses(request(context.model, inputs)))
    scores = [tensors["output_log_probs"] for tensors in responses if "output_log_probs" in tensors]
    tokens = sum(number_of(tensors, "num_output_tokens") for tensors in responses)
    return sum(len(one.values) for one in scores), tokens


def _natural_end(context: Context) -> Details | None:
    for prompt in context.plan.prompts:
        tokens = min(context.plan.long_tokens // 2, context.longest)
        answer = context.greedy(prompt, tokens)
        if answer.finish_reason != "stop":
            continue
        longer = context.greedy(prompt, min(_count(answer) + 2, tokens), end_id=NO_END)
        if _count(longer) <= _count(answer):
            raise CheckFailed(
                "a text still ends by itself when end_id -1 takes the end token away",
                prompt=prompt,
                tokens=longer.num_output_tokens,
            )
        return {"ended_by_itself": answer.num_output_tokens}
    return None


def _ends(whole: str, words: tuple[str, ...]) -> tuple[str, str]:
    """The text without and with the stop word that ends it: the one that is complete first."""
    end, start = min((whole.index(word) + len(word), whole.index(word)) for word in words)
    return whole[:start], whole[:end]


def _stop_candidates(pieces: list[str], whole: str) -> list[str]:
    """A few texts of ``whole``: inside one piece, and across the border of two."""
    words = []
    for index in range(len(pieces) // 3, len(pieces) - 1, max(len(pieces) // 4, 1)):
        border = pieces[index][-2:] + pieces[index + 1][:2]
        words += [border, pieces[index].strip()]
    # A word at the very start would leave nothing to compare.
    return [word for word in dict.fromkeys(words) if len(word) > 1 and whole.find(word) > 0]


def _count(answer: Completion) -> int:
    if answer.num_output_tokens is None:
        raise CheckFailed("the server does not count tokens (num_output_tokens)")
    return answer.num_output_tokens
