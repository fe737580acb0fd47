"""Does the text end where it should, and are its counts and scores right?"""

from __future__ import annotations

import math

from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import CheckFailed, CheckSkipped, Context, Details, check
from pipeline.verify.requests import NO_END, REPLACEMENT
from pipeline.verify.tokens import token_ids
from trtllm_client import Completion

_FIRST_CANDIDATE, _CANDIDATE_STEP = 4, 2


@check("max_tokens is the number of tokens generated when nothing else ends the text")
def max_tokens(context: Context) -> Details:
    """Exact token counts without an end token; shorter answers are beginnings of longer ones."""
    prompt = context.plan.prompts[0]
    lengths = (1, 2, 7, context.plan.max_tokens)
    answers = [context.greedy(prompt, length, end_id=NO_END) for length in lengths]
    for length, answer in zip(lengths, answers, strict=True):
        if _count(answer) != length:
            raise CheckFailed(f"max_tokens {length} gave {answer.num_output_tokens} tokens")
        if not answers[-1].text.startswith(answer.text.rstrip(REPLACEMENT)):
            raise CheckFailed(
                f"the text of {length} tokens is not the beginning of the text of {lengths[-1]}",
                short=answer.text,
                long=answers[-1].text,
            )
    return {"lengths": list(lengths)}


@check("the end token ends the text early and is not part of it")
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
    whole = context.greedy(prompt, end_id=NO_END).text
    ids = token_ids(context, whole)
    # Ids of the finished text need not be those that were generated, hence several attempts.
    tried = {}
    for place, end_id in list(enumerate(ids))[_FIRST_CANDIDATE:-1:_CANDIDATE_STEP]:
        if end_id in ids[:place]:
            continue
        tried[end_id] = early = context.greedy(prompt, end_id=end_id).text
        if whole.startswith(early) and token_ids(context, early or prompt) == ids[:place]:
            return {"end_id": end_id, "text": early, **(natural or {})}
    raise CheckFailed(
        f"none of {len(tried)} tokens of the text ended it where it comes first when it was made "
        "the end token",
        whole=whole,
        tried=tried,
    )


@check("a stop word ends the text where it appears, also where it is split over tokens")
def stop_words(context: Context) -> Details:
    """Stop words are cut from the model's own greedy text, some across the borders of pieces.

    Whether the word itself is part of the text must be the same each time; which of the two it
    should be is another check's.
    """
    context.needs_bls(
        "the ensemble compares stop words token by token and keeps them, as NVIDIA's does"
    )
    prompt = context.plan.prompts[0]
    whole = context.greedy(prompt, end_id=NO_END).text.rstrip(REPLACEMENT)
    streams = context.decoupled()
    pieces = context.streamed(prompt, end_id=NO_END) if streams else whole.split(" ")
    words = _stop_candidates([piece for piece in pieces if piece], whole)
    if not words:
        raise CheckSkipped("not exercised: the greedy text is too short to cut stop words from")
    kept: set[bool] = set()
    for asked in (*((word,) for word in words), tuple(words)):
        ends = _ends(whole, asked)
        answers = {"unstreamed": context.greedy(prompt, end_id=NO_END, stop_words=asked).text}
        if streams:
            texts = context.streamed(prompt, end_id=NO_END, stop_words=asked)
            answers["streamed"] = "".join(texts)
        for how, got in answers.items():
            if got not in ends:
                raise CheckFailed(
                    f"{how}, stop word {asked} gave {got!r}, not {' or '.join(map(repr, ends))}",
                    whole=whole,
                )
            kept.add(ends.index(got) == 1)
    if len(kept) > 1:
        raise CheckFailed("the stop word is part of some answers and not of others", words=words)
    absent = context.greedy(prompt, end_id=NO_END, stop_words=(whole + "\x01",)).text
    if absent.rstrip(REPLACEMENT) != whole:
        raise CheckFailed("a stop word that never comes changed the text", got=absent, whole=whole)
    return {"words": words}


@check("log probabilities: one per token, at most 0, and their sum is right")
def log_probs(context: Context) -> Details:
    """Counts and sum of the log probabilities of a greedy text."""
    answer = context.greedy(context.plan.prompts[0], return_log_probs=True)
    scores, total = answer.output_log_probs, answer.cum_log_probs
    if scores is None or total is None:
        raise CheckFailed("return_log_probs gave no output_log_probs or no cum_log_probs")
    if len(scores) != _count(answer):
        raise CheckFailed(f"{len(scores)} log probabilities for {answer.num_output_tokens} tokens")
    if not all(math.isfinite(score) and score <= 0 for score in scores):
        raise CheckFailed("a log probability is above 0 or not finite", scores=list(scores))
    if not math.isclose(sum(scores), total, rel_tol=1e-3, abs_tol=1e-3):
        raise CheckFailed(f"cum_log_probs is {total:g}, the sum is {sum(scores):g}")
    return {"tokens": len(scores), "cum_log_probs": total}


def _natural_end(context: Context) -> Details | None:
    for prompt in context.plan.prompts:
        answer = context.greedy(prompt, context.plan.long_tokens // 2)
        if answer.finish_reason != "stop":
            continue
        longer = context.greedy(prompt, _count(answer) + 2, end_id=NO_END)
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
